"""The commands of ``ckpt`` that find damage and mend it: validate, scrub and repair."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.running import payload, run, run_json
from tests.helpers import flip_bit


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


@pytest.mark.parametrize("backups", [False, True])
def test_validate_all_experiments(store: Path, ids: list[str], backups: bool) -> None:
    """With --all and no name, every experiment is read, each with its own result and commands that name it."""
    shutil.copytree(store / "digits", store / "letters")
    options = ["--all", "--backups"] if backups else ["--all"]
    found = run_json("validate", *options, store=store)
    assert found["experiment_name"] is None
    assert [item["experiment_name"] for item in found["reports"]] == ["digits"] * 3 + ["letters"] * 3
    flip_bit((store / "letters" / "backups" if backups else store / "letters") / f"{ids[0]}.pt", 100)
    found = run_json("validate", *options, store=store, code=1)
    assert not found["is_valid"]
    assert [item["experiment_name"] for item in found["reports"] if not item["is_valid"]] == ["letters"]
    result = run("validate", *options, store=store, code=1)
    assert re.findall(r"^--- (\w+) ---$", result.stdout, re.MULTILINE) == ["digits", "letters"]
    (command,) = re.findall(r"fix: ckpt (repair .*)", result.stdout)
    assert "6 " in result.stderr
    assert "1 damaged" in result.stderr
    run(*shlex.split(command), store=store)
    run("validate", *options, store=store)
    assert len(run_json("validate", *options, "--experiment", "letters", store=store)["reports"]) == 3
    run("validate", store=store, code=2)


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
    hint = run_json("delete", ids[0], "--store", elsewhere, "--yes", code=4)["error"]["hint"]
    assert f"`ckpt pin {ids[0]} --off --store '{elsewhere}'`" in hint


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
    assert re.search(r"^damage +the payload was altered between bytes 0 and", text, re.MULTILINE)
    flip_bit(backup, 100)
    assert run_json("repair", ids[0], "--backups", store=store)["bytes_rewritten"] == backup.stat().st_size
    run("validate", "--all", store=store)
    run("validate", "--all", "--backups", store=store)
    for path in (payload(store, ids[0]), backup):
        flip_bit(path, 100)
    error = run_json("repair", ids[0], store=store, code=1)["error"]
    assert (error["type"], error["damages"][0]["file"]) == ("CorruptCheckpointError", f"{ids[0]}.pt")
