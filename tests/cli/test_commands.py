"""Every command of ``ckpt`` on a real store, for people and with ``--json``."""

from __future__ import annotations

import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import HOSTILE_TAG, run, run_json
from tests.helpers import flip_bit, leave_unfinished


def payload(store: Path, checkpoint_id: str) -> Path:
    return store / "digits" / f"{checkpoint_id}.pt"


def tree(root: Path) -> dict[str, tuple[int, int]]:
    """What is there, and when it was last written."""
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}


# --- finding ---


def test_list_shows_each_checkpoint_on_one_whole_line(store: Path, ids: list[str]) -> None:
    """A piped list has a line for each id, with its metrics, tags and marks, and nothing is cut or coloured."""
    header, *lines = run("list", store=store).stdout.splitlines()
    assert header.split()[:3] == ["id", "accuracy", "marks"]
    assert [line.split()[0] for line in lines] == ids
    assert [("best" in line, "latest" in line) for line in lines] == [(False, False), (True, False), (False, True)]
    assert HOSTILE_TAG + ", baseline" in lines[0]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--tag", "baseline"], [0]),
        (["--tag", "baseline", "--tag", "epoch-2"], []),
        (["--search", "FIRST"], [0]),
        (["--min-epoch", "2"], [1, 2]),
        (["--max-epoch", "2"], [0, 1]),
        (["--sort-by", "loss"], [2, 1, 0]),
        (["--sort-by", "epoch", "--descending", "--limit", "2"], [2, 1]),
        (["--backups", "--max-epoch", "1"], [0]),
    ],
)
def test_list_filters_and_sorts(store: Path, ids: list[str], options: list[str], found: list[int]) -> None:
    """Every option of `list` does what it says, in both kinds of output."""
    listed = run_json("list", *options, store=store)["checkpoints"]
    assert [item["checkpoint_id"] for item in listed] == [ids[number] for number in found]
    assert [line.split()[0] for line in run("list", *options, store=store).stdout.splitlines()[1:]] == [
        ids[number] for number in found
    ]


def test_list_names_checkpoints_it_cannot_read(store: Path, ids: list[str]) -> None:
    """A checkpoint whose manifest is damaged is missing from the table and named beside it."""
    flip_bit(payload(store, ids[0]).with_suffix(".json"), 100)
    result = run("list", store=store)
    assert ids[0] not in result.stdout
    assert f"Not shown: {ids[0]}" in result.stderr
    assert [item["checkpoint_id"] for item in run_json("list", store=store)["unreadable"]] == [ids[0]]


def test_show_tells_everything(store: Path, ids: list[str]) -> None:
    """`show` takes an id, a keyword or a tag, and prints what the manifest holds; NaN is a text in JSON."""
    for name in (ids[0], "baseline", HOSTILE_TAG):
        text = run("show", name, store=store).stdout
        assert ids[0] in text
        assert str(payload(store, ids[0])) in text
        assert "the first\n" in text
    shown = run_json("show", "latest", store=store)
    assert (shown["checkpoint_id"], shown["metrics"]["accuracy"], shown["has_backup"]) == (ids[2], "NaN", True)
    assert shown["files"][0]["sha256"] == shown["checksum"]
    assert run_json("show", "best", store=store)["checkpoint_id"] == ids[1]


def test_show_says_where_else_it_is(store: Path, ids: list[str]) -> None:
    """Another epoch's id is no answer where something of this one is left."""
    (store / "digits" / f"{ids[0]}.json").unlink()
    shown = run("show", ids[0], store=store, code=2).stderr
    assert f"`ckpt restore {ids[0]}`" in shown
    (store / "digits/backups" / f"{ids[0]}.json").unlink()
    shown += run("show", ids[0], store=store, code=2).stderr
    assert "`ckpt import`" in shown
    run("delete", ids[1], "-y", store=store)
    shown += run("show", ids[1], store=store, code=2).stderr
    assert "`ckpt undelete" in shown
    assert "Did you mean" not in shown
    assert "Did you mean" in run("show", ids[1][:-1], store=store, code=2).stderr


def test_show_warns_of_a_missing_payload(store: Path, ids: list[str]) -> None:
    """A manifest without its payload is shown, and the damage and the remedy with it."""
    payload(store, ids[0]).unlink()
    assert "ckpt restore" in run("show", ids[0], store=store).stderr
    assert run_json("show", ids[0], store=store)["is_complete"] is False


def test_experiments_lists_them(store: Path, ids: list[str]) -> None:
    """`experiments` counts what each experiment of the store holds."""
    assert run("experiments", store=store).stdout.splitlines()[1].split()[:2] == ["digits", "3"]
    (found,) = run_json("experiments", store=store)["experiments"]
    assert (found["experiment_name"], found["latest_checkpoint"]) == ("digits", ids[2])


def test_several_experiments_need_a_name(store: Path) -> None:
    """With two experiments the command line must say which; the error names them, the variable is enough."""
    shutil.copytree(store / "digits", store / "letters")
    error = run_json("list", store=store, code=2)["error"]
    assert "digits, letters" in error["expected"]
    for name in ("digits", "letters"):
        assert run_json("summary", "-e", name, store=store)["experiment_name"] == name
    assert run_json("list", store=store, env={"CKPT_EXPERIMENT": "letters"})["experiment_name"] == "letters"


# --- analysing ---


def test_summary(store: Path, ids: list[str]) -> None:
    """`summary` gives totals, best, latest and statistics."""
    text = run("summary", store=store).stdout
    assert re.search(rf"best +{ids[1]}\n", text)
    assert "accuracy (max)" in text
    found = run_json("summary", store=store)
    assert (found["total_checkpoints"], found["statistics"]["accuracy"]["count"]) == (3, 2)


def test_compare(store: Path, ids: list[str]) -> None:
    """`compare` lines up metrics, configuration, tags and, when asked, tensors."""
    text = run("compare", ids[0], "latest", "--tensors", store=store).stdout
    assert f"#1  {ids[0]}\n#2  {ids[2]}\n" in text
    for part in ("-0.666667", "optimizer.lr", HOSTILE_TAG, "largest difference"):
        assert part in text
    assert "+nan" not in text  # the latest has no finite accuracy: there is no change to tell
    found = run_json("compare", *ids, "--metric", "loss", "--tensors", store=store)
    assert found["metrics_comparison"] == {"loss": [1.0, 0.5, 1 / 3]}
    assert found["tensors_comparison"].keys() == set(ids[1:])
    assert run_json("compare", *ids, store=store)["metrics_comparison"]["accuracy"] == [0.5, 0.9, "NaN"]


# --- keeping safe ---


def test_validate_intact(store: Path, ids: list[str]) -> None:
    """Intact checkpoints and backups validate, by default the latest, and the exit code is 0."""
    assert [line.split()[:2] for line in run("validate", store=store).stdout.splitlines()[1:]] == [[ids[2], "intact"]]
    for options in (["--all"], ["--all", "--backups"], [*ids, "latest"]):
        reports = run_json("validate", *options, store=store)["reports"]
        assert [(report["checkpoint_id"], report["is_valid"]) for report in reports] == [(name, True) for name in ids]


@pytest.mark.parametrize("backups", [False, True])
def test_validate_locates_damage(store: Path, ids: list[str], backups: bool) -> None:
    """A flipped byte is reported with file and byte range, a damaged manifest too, and the exit code is 1."""
    folder = store / "digits" / "backups" if backups else store / "digits"
    options = ["--all", "--backups"] if backups else ["--all"]
    flip_bit(folder / f"{ids[0]}.pt", 100)
    flip_bit(folder / f"{ids[1]}.json", 100)
    size_bytes = (folder / f"{ids[0]}.pt").stat().st_size
    text = run("validate", *options, store=store, code=1).stdout
    copy, option = ("backup", "--backups ") if backups else ("checkpoint", "")
    assert f"{ids[0]}\n  {copy}: altered, bytes 0-{size_bytes}" in text
    assert f"{ids[1]}\n  {copy}: the manifest" in text
    assert f"fix: ckpt repair {option}{ids[0]}\n" in text
    found = run_json("validate", *options, store=store, code=1)
    assert not found["is_valid"]
    damages = {report["checkpoint_id"]: report["damages"] for report in found["reports"]}
    assert (damages[ids[0]][0]["start"], damages[ids[0]][0]["stop"], damages[ids[2]]) == (0, size_bytes, [])


def test_validate_quick(store: Path, ids: list[str]) -> None:
    """--quick says the same of intact and of damaged files."""
    flip_bit(payload(store, ids[0]), 100)
    quick, thorough = (run_json("validate", "--all", *more, store=store, code=1) for more in (["--quick"], []))
    assert quick == thorough
    run("validate", "--quick", ids[1], store=store)


def test_scrub(store: Path, ids: list[str]) -> None:
    """`scrub` reads checkpoints and backups, says what is damaged with its tensors, and exits with 1 for that."""
    text = run("scrub", store=store).stdout
    assert re.search(r"checkpoints +3, 0 damaged", text)
    flip_bit(store / "digits" / "backups" / f"{ids[0]}.pt", 100)
    text = run("scrub", "--rate", "1GiB", "--restart", store=store, code=1).stdout
    assert re.search(r"backups +3, 1 damaged", text)
    assert re.search(rf"\n{ids[0]}\n  backup: altered, bytes 0-\d+: model_state_dict\.", text)
    assert f"fix: ckpt repair --backups {ids[0]}\n" in text
    found = run_json("scrub", store=store, code=1)
    assert (found["is_intact"], len(found["checkpoints"]), len(found["backups"])) == (False, 3, 3)


def test_damage_names_what_works(store: Path, ids: list[str]) -> None:
    """Where neither copy has the bytes, no repair is advised; each command that is printed does what it says."""
    backups = store / "digits" / "backups"
    for folder in (store / "digits", backups):
        flip_bit(folder / f"{ids[0]}.pt", 100)
    payload(store, ids[1]).unlink()
    (backups / f"{ids[1]}.json").unlink()
    for command in (["scrub"], ["validate", "--all"]):
        shown = run(*command, "-s", store, "-e", "digits", code=1).stdout
        fixes = re.findall("fix: (.*)", shown)
        options = f" --store {store} --experiment digits"
        assert f"ckpt quarantine {ids[0]}{options}" in fixes
        assert f"ckpt quarantine {ids[1]}{options}" in fixes
        assert (f"ckpt quarantine --backups {ids[0]}{options}" in fixes) == (command == ["scrub"])
    for line in fixes:
        run(*shlex.split(line)[1:])
    run("validate", "--all", store=store)


def test_commands_in_messages_repeat_what_was_typed(store: Path, ids: list[str]) -> None:
    """The options that chose the store, quoted where a shell needs it; those of the environment are there anyway."""
    elsewhere = store.rename(store.with_name("my store"))
    run("pin", ids[0], "--store", elsewhere)
    refused = run("delete", ids[0], "--store", elsewhere, "--yes", code=4).stderr
    assert f"`ckpt pin {ids[0]} --off --store '{elsewhere}'`" in refused
    assert f"`ckpt pin {ids[0]} --off`" in run("delete", ids[0], "--yes", store=elsewhere, code=4).stderr
    assert "store" not in run_json("delete", ids[0], "--store", elsewhere, "--yes", code=4)["error"]["hint"]


@pytest.mark.parametrize("command", [["validate", "--all"], ["scrub"]])
def test_nothing_is_not_intact(store: Path, ids: list[str], command: list[str]) -> None:
    """An experiment without checkpoints is an error that names its backups, unless that was asked for."""
    for file in (store / "digits").glob("checkpoint_epoch*"):
        file.unlink()
    refused = run(*command, "-e", "digits", store=store, code=2).stderr
    assert "'digits' has no checkpoints" in refused
    assert "There are 3 backups: `ckpt list --backups --experiment digits`" in refused
    run(*command, "--allow-missing", "-e", "digits", store=store)
    shutil.rmtree(store / "digits" / "backups")
    assert "backups" not in run(*command, "-e", "digits", store=store, code=2).stderr


def test_scrub_goes_on(store: Path, ids: list[str]) -> None:
    """What an interrupted scrub has read is told of, and read again with --restart only."""
    run("scrub", store=store)
    record = store / "digits" / ".ckpt-scrub.json"
    interrupted = re.sub(r'"completed_at":"[^"]+"', '"completed_at":null', record.read_text())
    record.write_text(interrupted)
    assert "6 of 6 were already read" in run("scrub", store=store).stderr
    record.write_text(interrupted)
    assert run_json("scrub", "--restart", store=store)["files_resumed"] == 0


def test_repair(store: Path, ids: list[str]) -> None:
    """`repair` says what was damaged and how much was rewritten; --backups goes the other way; damage in both is 1."""
    backup = store / "digits" / "backups" / f"{ids[0]}.pt"
    assert "nothing to repair" in run("repair", ids[0], store=store).stdout
    flip_bit(payload(store, ids[0]), 100)
    text = run("repair", "baseline", store=store).stdout
    assert re.search(r"rewritten +\d+\.\d KiB\n", text)
    assert "was altered between bytes 0 and" in text
    flip_bit(backup, 100)
    assert run_json("repair", ids[0], "--backups", store=store)["bytes_rewritten"] == backup.stat().st_size
    run("validate", "--all", store=store)
    run("validate", "--all", "--backups", store=store)
    for path in (payload(store, ids[0]), backup):
        flip_bit(path, 100)
    error = run_json("repair", ids[0], store=store, code=1)["error"]
    assert (error["type"], error["damages"][0]["file"]) == ("CorruptCheckpointError", f"{ids[0]}.pt")


def test_restore_brings_back_damaged_and_deleted(store: Path, ids: list[str]) -> None:
    """What is damaged, or deleted with its whole experiment, comes back from the backup and validates."""
    flip_bit(payload(store, ids[0]), 100)
    assert ids[0] in run("restore", "baseline", store=store).stdout
    for file in (store / "digits").glob("checkpoint_*"):
        file.unlink()
    restored = run_json("restore", ids[1], "-e", "digits", store=store)
    assert (restored["checkpoint_id"], restored["metrics"]["accuracy"]) == (ids[1], 0.9)
    run("validate", "--all", store=store)


def test_backup_reports_each_outcome(store: Path, ids: list[str]) -> None:
    """A damaged checkpoint is reported with exit code 1 and never copied; the others are backed up."""
    shutil.rmtree(store / "digits" / "backups")
    flip_bit(payload(store, ids[0]), 100)
    outcomes = run_json("backup", "--all", store=store, code=1)["backups"]
    assert [outcome["result"] for outcome in outcomes] == ["damaged", "copied", "copied"]
    assert outcomes[0]["error"]["damages"][0]["file"] == f"{ids[0]}.pt"
    assert f"{ids[2]}  already there" in run("backup", store=store).stdout
    assert "was altered" in run("backup", ids[0], store=store, code=1).stderr


@pytest.mark.parametrize("is_backup_damaged", [False, True])
def test_backup_is_not_silent_about_damage(store: Path, ids: list[str], is_backup_damaged: bool) -> None:
    """A damaged checkpoint is no success because a file of its size is among the backups."""
    flip_bit(payload(store, ids[0]), 100)
    backup = store / "digits" / "backups" / f"{ids[0]}.pt"
    if is_backup_damaged:
        flip_bit(backup, 100)
    before = backup.read_bytes()
    for options in ([ids[0]], ["--all", "--verify"]):
        found = run_json("backup", *options, store=store, code=1)
        assert found["verified"]
        assert found["backups"][0]["result"] == "damaged"
    assert backup.read_bytes() == before
    payload(store, ids[0]).unlink()  # which shows without reading a byte
    assert run_json("backup", "--all", store=store, code=1)["backups"][0]["result"] == "damaged"


def test_backup_verifies_and_retires(store: Path, ids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged backup is replaced; a copy that max_backups does not keep is not reported as kept."""
    flip_bit(store / "digits" / "backups" / f"{ids[0]}.pt", 100)
    quick = run("backup", "--all", store=store)
    assert "already there" in quick.stdout
    assert "only the sizes were compared" in quick.stderr
    assert run_json("backup", "--all", "--verify", store=store)["backups"][0]["result"] == "copied"
    flip_bit(store / "digits" / "backups" / f"{ids[0]}.pt", 100)
    named = run("backup", ids[0], store=store)
    assert "copied" in named.stdout
    assert named.stderr == ""
    shutil.rmtree(store / "digits" / "backups")
    monkeypatch.setenv("CKPT_MAX_BACKUPS", "1")
    result = run("backup", "--all", store=store)
    held = [item["checkpoint_id"] for item in run_json("list", "--backups", store=store)["checkpoints"]]
    copied = [line.split()[0] for line in result.stdout.splitlines() if " copied " in line]
    assert copied == held
    assert "max_backups=1" in result.stderr


def test_list_shows_backups_that_are_all_that_is_left(store: Path, ids: list[str], tmp_path: Path) -> None:
    """Also where they lie in a place of their own, beside a store that has lost the experiment."""
    shutil.copytree(store / "digits" / "backups", tmp_path / "elsewhere" / "digits")
    shutil.rmtree(store / "digits")
    env = {"CKPT_BACKUP_DIR": str(tmp_path / "elsewhere")}
    listed = run_json("list", "--backups", "--experiment", "digits", store=store, env=env)
    assert [item["checkpoint_id"] for item in listed["checkpoints"]] == ids
    assert run("list", "--backups", "--experiment", "gone", store=store, env=env, code=2).stdout == ""


def test_pin_protects_and_lets_go(store: Path, ids: list[str]) -> None:
    """A pinned checkpoint is refused by delete, together with everything named beside it, until it is unpinned."""
    assert "yes" in run("pin", "baseline", store=store).stdout
    assert run_json("delete", ids[1], ids[0], "--yes", store=store, code=4)["error"]["checkpoint_id"] == ids[0]
    assert len(run_json("list", store=store)["checkpoints"]) == 3
    assert run_json("pin", ids[0], "--off", store=store)["pinned"] is False
    run("delete", ids[0], "--yes", store=store)


def test_tag_edits(store: Path, ids: list[str]) -> None:
    """`tag` adds and removes tags and replaces the description."""
    options = ("--add", "a", "--add", "b", "--remove", "epoch-2", "--description", "kept")
    assert "a, b" in run("tag", "epoch-2", *options, store=store).stdout
    shown = run_json("tag", ids[1], "--description", "", store=store)
    assert (shown["tags"], shown["description"]) == (["a", "b"], "")


def test_export_and_import(store: Path, ids: list[str], tmp_path: Path) -> None:
    """An export is plain for torch.load, and becomes the newest checkpoint of an experiment that may be new."""
    path = run_json("export", "best", tmp_path / "out", store=store)["path"]
    assert torch.load(path, weights_only=True)["epoch"] == 2
    assert str(tmp_path / "out") in run("export", "best", tmp_path / "out", store=store).stdout
    imported = run_json("import", path, "-s", tmp_path / "elsewhere", "-e", "new")
    assert imported == {"experiment_name": "new", "checkpoint_id": ids[1], "result": "imported"}
    run("validate", "-s", tmp_path / "elsewhere")
    assert ids[1] in run("import", path, store=store).stdout


# --- retiring ---


def test_cleanup_shows_its_plan_and_carries_it_out(store: Path, ids: list[str]) -> None:
    """A dry run changes nothing; with --yes what was planned goes, and the best by the run's own measure stays."""
    before = tree(store)
    text = run("cleanup", "--keep", "0", "--dry-run", store=store).stdout
    assert [re.split(r" {2,}", line)[:3] for line in text.splitlines()[1:]] == [
        [ids[2], "keep", "newest valid"],
        [ids[1], "keep", "best valid by accuracy"],
        [ids[0], "delete", "no rule keeps it"],
    ]
    assert run_json("cleanup", "--keep", "0", "--dry-run", store=store)["dry_run"] is True
    assert tree(store) == before
    assert "1 checkpoint deleted" in run("cleanup", "--keep", "0", "--yes", store=store).stderr
    assert run_json("cleanup", "--keep", "0", "--yes", store=store)["deleted_ids"] == []
    assert [item["checkpoint_id"] for item in run_json("list", store=store)["checkpoints"]] == ids[1:]


def test_cleanup_follows_the_configuration(store: Path, ids: list[str], tmp_path: Path) -> None:
    """max_checkpoints comes from the file; a variable overrides it, and an option overrides that."""
    file = tmp_path / "config.yaml"
    file.write_text("max_checkpoints: 0\n")

    def planned(*options: str | Path, **env: str) -> int:
        report = run_json("cleanup", "--dry-run", *options, store=store, env=env)
        return sum(not decision["keep"] for decision in report["plan"]["decisions"])

    assert planned() == 0
    assert planned("--config", file) == 1
    assert planned("--config", file, CKPT_MAX_CHECKPOINTS="3") == 0
    assert planned("--config", file, "--keep", "0", CKPT_MAX_CHECKPOINTS="3") == 1


def test_cleanup_by_a_policy_file(store: Path, ids: list[str], tmp_path: Path) -> None:
    """--policy takes the place of the number, and the plan says which rule decided; both at once are refused."""
    file = tmp_path / "policy.yaml"
    file.write_text("kind: any_of\npolicies:\n- {kind: every, epochs: 100}\n- {kind: tagged, tags: [none]}\n")
    text = run("cleanup", "--policy", file, "--dry-run", store=store).stdout
    assert [re.split(r" {2,}", line)[1:3] for line in text.splitlines()[1:]] == [
        ["keep", "newest valid"],
        ["keep", "best valid by accuracy"],
        ["keep", "first of its 100 epochs"],
    ]
    file.write_text("kind: newer_than\nseconds: 1\n")
    before = tree(store)
    assert "cannot be combined" in run("cleanup", "--policy", file, "--keep", "1", "--yes", store=store, code=2).stderr
    broken = run_json("cleanup", "--policy", tmp_path / "missing.yaml", "--yes", store=store, code=2)
    assert broken["error"]["type"] == "ConfigError"
    assert tree(store) == before
    time.sleep(2.1)  # time stamps have whole seconds
    assert run_json("cleanup", "--policy", file, "--yes", store=store)["deleted_ids"] == [ids[0]]


def test_delete(store: Path, ids: list[str]) -> None:
    """`delete` resolves names first, so that `latest` means what was the latest, and leaves the backup."""
    assert run_json("delete", "latest", ids[2], "baseline", "-y", store=store)["deleted_ids"] == [ids[2], ids[0]]
    assert ids[1] in run("delete", "latest", "--yes", store=store).stdout
    assert run_json("list", store=store)["checkpoints"] == []
    assert len(list((store / "digits" / "backups").glob("*.pt"))) == 3


def test_undelete_and_trash(store: Path, ids: list[str]) -> None:
    """What was deleted is listed, comes back as it was, and goes for good when the trash is emptied."""
    before = run_json("list", store=store)["checkpoints"]
    run("delete", ids[0], ids[1], "--yes", store=store)
    assert [item["checkpoint_id"] for item in run_json("trash", store=store)["deleted"]] == ids[:2]
    assert ids[0] in run("trash", store=store).stdout
    assert run_json("undelete", ids[0], ids[1], store=store)["undeleted_ids"] == ids[:2]
    assert run_json("list", store=store)["checkpoints"] == before
    run("delete", ids[2], "--yes", store=store)
    run("undelete", ids[2], "--pin", store=store)
    found = run_json("list", store=store)["checkpoints"]
    assert [item["checkpoint_id"] for item in found if item["pinned"]] == [ids[2]]
    run("delete", ids[0], "--yes", store=store)
    assert run_json("trash", "--empty", store=store, code=4)["error"]["type"] == "ConfirmationError"
    assert run_json("trash", "--empty", "--yes", store=store)["removed"] == [ids[0]]
    assert run_json("trash", "--empty", store=store)["removed"] == []  # nothing to ask about
    assert run_json("undelete", ids[0], store=store, code=2)["error"]["type"] == "CheckpointNotFoundError"


def test_what_expired_is_told_from_leftovers(store: Path, ids: list[str]) -> None:
    """Neither the trash nor a cleanup counts what a killed writer left for a checkpoint, or the reverse."""
    run("delete", ids[0], "-y", store=store)
    leave_unfinished(store / "digits")
    assert "1 checkpoint deleted for good, " in run("trash", "--empty", "--yes", store=store).stderr
    run("delete", ids[1], "-y", store=store)
    shown = run("cleanup", "--yes", store=store, env={"CKPT_TRASH_SECONDS": "0"}).stderr
    assert "0 checkpoints deleted, 0 B freed.\n" in shown
    assert re.search(r"1 checkpoint from the trash deleted for good, \d+\.\d KiB freed\.", shown)
    assert "leftover" not in shown


def test_backups_are_deleted_and_cleaned_up_by_themselves(store: Path, ids: list[str]) -> None:
    """--backups leaves the checkpoints, and a plan shows what a cleanup of checkpoints does to backups."""

    def held() -> list[str]:
        return [item["checkpoint_id"] for item in run_json("list", "--backups", store=store)["checkpoints"]]

    shown = run("cleanup", "--dry-run", store=store, env={"CKPT_MAX_BACKUPS": "0"})
    assert "Backups" in shown.stdout
    assert "Would delete 0 checkpoints (0 B) and, for good, 1 backup (" in shown.stderr
    assert "Would delete 1 backup (" in run("cleanup", "--backups", "--keep", "0", "--dry-run", store=store).stderr
    assert held() == ids
    assert "1 backup deleted" in run("cleanup", "--backups", "--keep", "0", "--yes", store=store).stderr
    assert held() == ids[1:]
    assert "no backup of" in run("delete", "--backups", "--yes", ids[0], ids[1], store=store, code=2).stderr
    assert held() == ids[1:]
    freed = run_json("delete", "--backups", "--yes", "best", store=store)
    assert freed["deleted_ids"] == [ids[1]]
    assert freed["freed_bytes"] > 0
    assert held() == ids[2:]
    assert [item["checkpoint_id"] for item in run_json("list", store=store)["checkpoints"]] == ids


def test_backups_are_all_that_is_left(store: Path, ids: list[str], tmp_path: Path) -> None:
    """What is about backups works without a checkpoint, and names resolve among the backups; a typing error is told."""
    elsewhere = {"CKPT_BACKUP_DIR": str(tmp_path / "backups")}
    (tmp_path / "backups").mkdir()
    (store / "digits/backups").rename(tmp_path / "backups/digits")
    shutil.rmtree(store / "digits")
    run("validate", "--backups", "--all", "-e", "digits", store=store, env=elsewhere)
    validated = run_json("validate", "--backups", "best", "latest", "-e", "digits", store=store, env=elsewhere)
    assert [item["checkpoint_id"] for item in validated["reports"]] == ids[1:]
    run("quarantine", "--backups", "-e", "digits", store=store, env=elsewhere)
    for command in (["cleanup", "--backups", "--dry-run"], ["quarantine", "--backups"], ["validate", "--backups"]):
        error = run_json(*command, "-e", "digist", store=store, env=elsewhere, code=2)["error"]
        assert error["type"] == "ExperimentNotFoundError"
        assert "'digits'" in error["hint"]
    cleaned = run_json("cleanup", "--backups", "--keep", "0", "-e", "digits", "-y", store=store, env=elsewhere)
    assert cleaned["deleted_ids"] == ids[:1]
    deleted = run_json("delete", "--backups", "best", "-e", "digits", "-y", store=store, env=elsewhere)
    assert deleted["deleted_ids"] == [ids[1]]


def test_backups_that_are_away_stop_no_work_on_checkpoints(store: Path, ids: list[str], tmp_path: Path) -> None:
    """It is done and told, and a cleanup that left the backups ends with 3."""
    (tmp_path / "backups").write_text("mine")
    away = {"CKPT_BACKUP_DIR": str(tmp_path / "backups"), "CKPT_TRASH_SECONDS": "0"}
    planned = run("cleanup", "--keep", "0", "--dry-run", store=store, env=away, code=3)
    assert "The backups cannot be cleaned up: " in planned.stderr
    done = run("cleanup", "--keep", "0", "--yes", store=store, env=away, code=3)
    assert "1 checkpoint deleted" in done.stderr
    assert "The backups were not cleaned up: " in done.stderr
    assert str(tmp_path / "backups") in run_json("cleanup", "-y", store=store, env=away, code=3)["backups_error"]
    assert "The backups cannot be listed" in run("quarantine", store=store, env=away).stderr
    run("quarantine", "--backups", store=store, env=away, code=3)
    assert run_json("delete", ids[1], "-y", store=store, env=away)["deleted_ids"] == [ids[1]]


@pytest.mark.parametrize("command", [["delete", "latest"], ["cleanup", "--keep", "0"]])
def test_unconfirmed_deletion_is_refused(store: Path, command: list[str]) -> None:
    """Where nobody can be asked, nothing is deleted without --yes, and the exit code is 4."""
    before = tree(store)
    assert "--yes" in run(*command, store=store, code=4).stderr
    assert run_json(*command, store=store, code=4)["error"]["type"] == "ConfirmationError"
    assert tree(store) == before


# --- the fallback folder ---


@pytest.fixture
def fallback(store: Path, tmp_path: Path) -> Path:
    """A fallback folder that holds two checkpoints of the store's experiment, and one of an experiment it has not."""
    path = tmp_path / "fallback"
    config = CheckpointConfig(checkpoint_dir=str(path), backup_checkpoints=False, save_metadata=False)
    for experiment, epochs in (("digits", (4, 5)), ("letters", (1,))):
        for epoch in epochs:
            CheckpointManager(config, experiment).save_checkpoint(model=torch.nn.Linear(4, 2), epoch=epoch)
    return path


def test_reconcile_moves_every_experiment_home(store: Path, ids: list[str], fallback: Path) -> None:
    """By option or variable; a second call has nothing to do."""
    result = run("reconcile", "--fallback", fallback, store=store)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["digits", "digits", "letters"]
    assert "3 checkpoints moved" in result.stderr
    listed = run_json("list", "--experiment", "digits", store=store)["checkpoints"]
    assert [item["epoch"] for item in listed] == [1, 2, 3, 4, 5]
    assert len(run_json("list", "--experiment", "letters", store=store)["checkpoints"]) == 1
    again = run_json("reconcile", store=store, env={"CKPT_FALLBACK_DIR": str(fallback)})
    assert again == {"experiments": []}


def test_reconcile_of_one_experiment(store: Path, fallback: Path) -> None:
    """The others stay; one that is not there is named."""
    (report,) = run_json("reconcile", "--fallback", fallback, "-e", "letters", store=store)["experiments"]
    assert (report["experiment_name"], len(report["moved"]), report["failed"]) == ("letters", 1, {})
    assert len(list((fallback / "digits").glob("*.pt"))) == 2
    error = run_json("reconcile", "--fallback", fallback, "-e", "digit", store=store, code=2)["error"]
    assert error["type"] == "ExperimentNotFoundError"


def test_reconcile_reports_what_stays(store: Path, fallback: Path) -> None:
    """Damage is exit code 1, as everywhere, and the others move."""
    damaged, *_ = sorted((fallback / "digits").glob("*.pt"))
    flip_bit(damaged, 300)
    result = run("reconcile", "--fallback", fallback, "-e", "digits", store=store, code=1)
    assert "stays: it is damaged" in result.stdout
    assert damaged.exists()
    assert "1 checkpoint moved" in result.stderr


def test_reconcile_without_a_fallback_folder(store: Path, tmp_path: Path) -> None:
    """Not named is bad usage; empty or not there is nothing to do, and nothing is created."""
    assert run_json("reconcile", store=store, code=2)["error"]["type"] == "ConfigError"
    assert run_json("reconcile", "--fallback", tmp_path / "none", store=store) == {"experiments": []}
    assert not (tmp_path / "none").exists()


def test_reconcile_into_no_store(fallback: Path, tmp_path: Path) -> None:
    """A mistyped store, or the mount point of a missing disk, gets nothing, and the fallback folder keeps all."""
    before = sorted(path.name for path in fallback.rglob("*.pt"))
    for wrong in (tmp_path / "typo", tmp_path):
        error = run_json("reconcile", "--fallback", fallback, store=wrong, code=2)["error"]
        assert error["type"] == "NotAStoreError"
    assert sorted(path.name for path in fallback.rglob("*.pt")) == before
    assert not (tmp_path / "typo").exists()


def test_import_says_what_is_new(store: Path, tmp_path: Path) -> None:
    """An experiment that was not there is named as new, with the one that was perhaps meant; a repeat is told."""
    run("export", "best", tmp_path / "out", store=store)
    command = ("import", tmp_path / "out", "--experiment", "digit")
    first, again = run(*command, store=store), run(*command, store=store)
    assert first.stdout.startswith("imported")
    assert "'digit' is a new experiment. Did you mean 'digits'?" in first.stderr
    assert again.stdout.startswith("already there")
    assert again.stderr == ""
    assert run_json(*command, store=store)["result"] == "already there"
