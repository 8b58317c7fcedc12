"""The commands of ``ckpt`` that look: list, show, summary and compare, for people and with ``--json``."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.names import CheckpointId
from tests.cli.running import HOSTILE_TAG, payload, run, run_json
from tests.helpers import flip_bit

# --- finding ---


def test_list_shows_each_checkpoint_on_one_whole_line(store: Path, ids: list[str]) -> None:
    """A piped list has a line for each id, with its metrics, tags and marks, and nothing is cut or coloured."""
    header, *lines = run("list", store=store).stdout.splitlines()
    assert header.split()[:3] == ["id", "accuracy", "epoch"]
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
        (["--where", "accuracy>0.6"], [1]),
        (["-w", "epoch>=2", "-w", "loss<0.4"], [2]),
        (["--backups", "--where", "epoch!=2"], [0, 2]),
    ],
)
def test_list_filters_and_sorts(store: Path, ids: list[str], options: list[str], found: list[int]) -> None:
    """Every option of `list` does what it says, in both kinds of output."""
    listed = run_json("list", *options, store=store)["checkpoints"]
    assert [item["checkpoint_id"] for item in listed] == [ids[number] for number in found]
    assert [line.split()[0] for line in run("list", *options, store=store).stdout.splitlines()[1:]] == [
        ids[number] for number in found
    ]


def test_a_checkpoint_is_named_as_people_think_of_it(store: Path, ids: list[str]) -> None:
    """By how many before the latest, a tag for sure, epoch and step alone, or with its experiment."""
    experiment = run_json("summary", store=store)["experiment_name"]
    for name, number in (("latest~2", 0), ("@baseline", 0), ("epoch_2", 1), (f"{experiment}/latest~1", 1)):
        assert run_json("show", name, store=store)["checkpoint_id"] == ids[number]


def test_an_experiment_in_a_name_is_one_option_the_less(store: Path, ids: list[str]) -> None:
    """It counts more than a variable, is repeated in hints, and contradicts neither an option nor another name."""
    experiment = run_json("summary", store=store)["experiment_name"]
    other = {"CKPT_EXPERIMENT": "another"}
    assert run_json("show", f"{experiment}/latest", store=store, env=other)["checkpoint_id"] == ids[2]
    failed = run("show", f"{experiment}/nothing", store=store, code=2)
    assert f"--experiment {experiment}" in " ".join(failed.output.split())
    for arguments in (["--experiment", "b", "a/latest"], ["a/latest", "b/latest"]):
        assert run_json("validate", *arguments, store=store, code=2)["error"]["got"] in ("a, b", "b, a")


def test_list_shows_what_was_asked_about_and_the_next_page(store: Path, ids: list[str]) -> None:
    """In 80 columns, and a page at a time; what is no condition is bad usage."""
    shown = run("list", "--sort-by", "loss", "--limit", "2", store=store, env={"COLUMNS": "80"})
    assert "loss" in shown.stdout
    assert f"--after {ids[1]} shows the next" in " ".join(shown.stderr.split())
    (last,) = run_json("list", "--sort-by", "loss", "--limit", "2", "--after", ids[1], store=store)["checkpoints"]
    assert last["checkpoint_id"] == ids[0]
    assert "shows the next" not in run("list", "--limit", "3", store=store).stderr
    assert run_json("list", "--where", "loss", store=store, code=2)["error"]["type"] == "ConfigError"
    assert run_json("list", "--where", "los<3", store=store, code=2)["error"]["type"] == "UnknownMetricError"


@pytest.mark.parametrize("is_missing", [True, False])
def test_list_marks_what_is_incomplete(store: Path, ids: list[str], is_missing: bool) -> None:
    """A payload that is missing or cut short is seen without reading a byte."""
    path = payload(store, ids[2])
    path.unlink() if is_missing else path.write_bytes(path.read_bytes()[:-1])
    result = run("list", store=store, env={"COLUMNS": "120"})
    (line,) = [line for line in result.stdout.splitlines() if "incomplete" in line]
    assert line.startswith(ids[2])
    assert "`ckpt doctor" in result.stderr
    assert [item["is_complete"] for item in run_json("list", store=store)["checkpoints"]] == [True, True, False]


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


def test_show_tells_what_compression_saves(tmp_path: Path) -> None:
    """The size before it, what is left of that, and how fast it was written; nothing where nothing is compressed."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), compression=True), "run")
    manager.save_checkpoint(model=nn.Linear(300, 300), epoch=1)
    shown = run("show", "latest", store=tmp_path).stdout
    assert re.search(r"compression +8\d\.\d% of 36\d\.\d KiB, written at [\d.]+ .?i?B/s", shown), shown
    fields = run_json("show", "latest", store=tmp_path)
    assert fields["format"] == "torch+planes"
    assert fields["files"][0]["compression"]["plain_size_bytes"] == fields["uncompressed_size"] > fields["file_size"]
    plain = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path)), "run")
    plain.save_checkpoint(model=nn.Linear(2, 1), epoch=2)
    assert "compression" not in run("show", "latest", store=tmp_path).stdout


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
    other_second = ids[2][:-1] + str((int(ids[2][-1]) + 1) % 10)
    assert "Did you mean" in run("show", other_second, store=store, code=2).stderr


def test_runs_are_told_apart(store: Path, ids: list[str]) -> None:
    """`show` tells the run, which `--where` takes; `list` as soon as there are several."""
    run_id = run_json("show", ids[0], store=store)["run_id"]
    assert re.search(rf"^run +{run_id}$", run("show", ids[0], store=store).stdout, re.MULTILINE)
    assert run_id not in run("list", store=store).stdout
    config = CheckpointConfig(checkpoint_dir=str(store))
    CheckpointManager(config, "digits", run_id="second").save_checkpoint(model=nn.Linear(1, 1), epoch=4)
    lines = run("list", store=store).stdout.splitlines()
    assert [("second" in line, run_id in line) for line in lines[1:]] == [(False, True)] * 3 + [(True, False)]
    assert run("list", "--where", "run_id=second", store=store).stdout.count("checkpoint_") == 1


def test_only_a_close_id_is_suggested(store: Path, ids: list[str]) -> None:
    """A typing error is, wherever it is; an id of another epoch that looks much the same is not."""
    later = CheckpointId.parse(ids[1])
    for close in (ids[1].replace("_epoch_0002", "_epoch_0020"), ids[1].replace("checkpoint", "chekpoint")):
        assert f"Did you mean '{ids[1]}'?" in " ".join(run("show", close, store=store, code=2).stderr.split())
    for other in (replace(later, epoch=7, step=70), replace(later, epoch=7, step=70, suffix=1)):
        assert "Did you mean" not in run("show", str(other), store=store, code=2).stderr


def test_show_warns_of_a_missing_payload(store: Path, ids: list[str]) -> None:
    """A manifest without its payload is shown, and the damage and the remedy with it."""
    payload(store, ids[0]).unlink()
    assert "ckpt restore" in run("show", ids[0], store=store).stderr
    assert run_json("show", ids[0], store=store)["is_complete"] is False


def test_several_experiments_need_a_name(store: Path) -> None:
    """With two experiments the command line must say which; the error names them, the variable is enough."""
    shutil.copytree(store / "digits", store / "letters")
    error = run_json("list", store=store, code=2)["error"]
    assert "digits, letters" in error["expected"]
    for name in ("digits", "letters"):
        assert run_json("summary", "-e", name, store=store)["experiment_name"] == name
    assert run_json("list", store=store, env={"CKPT_EXPERIMENT": "letters"})["experiment_name"] == "letters"


def test_compare_takes_several_experiments(store: Path, ids: list[str]) -> None:
    """The names say which; other commands are about one experiment."""
    shutil.copytree(store / "digits", store / "letters")
    both = ["digits/best", "letters/latest"]
    for names in (both, ["best", "letters/latest", "-e", "digits"]):
        found = run_json("compare", *names, store=store)
        assert found["checkpoint_ids"] == [ids[1], f"letters/{ids[2]}"]
    assert f"#2  letters/{ids[2]}" in run("compare", *both, store=store).stdout
    assert "several experiments" in run("validate", *both, store=store, code=2).stderr


def test_list_shows_backups_that_are_all_that_is_left(store: Path, ids: list[str], tmp_path: Path) -> None:
    """Also where they lie in a place of their own, beside a store that has lost the experiment."""
    shutil.copytree(store / "digits" / "backups", tmp_path / "elsewhere" / "digits")
    shutil.rmtree(store / "digits")
    env = {"CKPT_BACKUP_DIR": str(tmp_path / "elsewhere")}
    listed = run_json("list", "--backups", "--experiment", "digits", store=store, env=env)
    assert [item["checkpoint_id"] for item in listed["checkpoints"]] == ids
    assert run("list", "--backups", "--experiment", "gone", store=store, env=env, code=2).stdout == ""


@pytest.mark.parametrize("lost", ["experiment", "store", "disk", "checkpoints"])
@pytest.mark.parametrize("is_named", [True, False])
def test_lost_checkpoints_are_not_shown_as_none(
    store: Path, ids: list[str], tmp_path: Path, lost: str, is_named: bool
) -> None:
    """`list` and `show` fail, and name the command that lists the backups, which does."""
    shutil.move(store / "digits" / "backups", tmp_path / "elsewhere" / "digits")
    env = {"CKPT_BACKUP_DIR": str(tmp_path / "elsewhere")}
    if lost == "checkpoints":
        shutil.move(tmp_path / "elsewhere" / "digits", store / "digits" / "backups")
        env = {}
        for path in (store / "digits").glob("checkpoint_*.*"):
            path.unlink()
    elif lost == "disk":
        shutil.rmtree(store)
    else:
        shutil.rmtree(store / "digits")
        if lost == "store":
            shutil.rmtree(store)
            store.mkdir()
    name = ["--experiment", "digits"] if is_named else []
    for command in (["list"], ["show", "latest"]):
        error = run_json(*command, *name, store=store, env=env, code=2)["error"]
        assert "`ckpt list --backups" in error["hint"]
        printed = " ".join(run(*command, *name, store=store, env=env, code=2).stderr.split())
        (proposed,) = re.findall(r"`ckpt (list --backups[^`]*)`", printed)
        listed = run_json(*proposed.split(), store=store, env=env)["checkpoints"]
        assert [item["checkpoint_id"] for item in listed] == ids


# --- analysing ---


def test_summary(store: Path, ids: list[str]) -> None:
    """`summary` gives totals, best, latest and statistics."""
    text = run("summary", store=store).stdout
    assert re.search(rf"best +{ids[1]}\n", text)
    assert "accuracy (max)" in text
    found = run_json("summary", store=store)
    assert (found["total_checkpoints"], found["statistics"]["accuracy"]["count"]) == (3, 2)


def test_compare_says_when_all_names_mean_the_same(store: Path, ids: list[str]) -> None:
    """A comparison of a checkpoint with itself shows no difference, and could be taken for one of two."""
    compared = run("compare", "latest", ids[2], store=store)
    assert "All 2 names stand for this one checkpoint." in compared.stderr
    assert "names stand for" not in run("compare", "latest", ids[0], store=store).stderr


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
