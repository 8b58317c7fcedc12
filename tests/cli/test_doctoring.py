"""``ckpt doctor`` and ``ckpt quarantine``, as programs and people use them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.running import on_posix, run, run_json, run_on_terminal
from tests.helpers import flip_bit, leave_unfinished


@pytest.fixture
def lost(store: Path, ids: list[str]) -> str:
    """The first checkpoint, damaged in both copies."""
    for folder in (store / "digits", store / "digits/backups"):
        flip_bit(folder / f"{ids[0]}.pt", 300)
    return ids[0]


def test_doctor_of_a_sound_store(store: Path) -> None:
    """It says so, and exits with 0."""
    assert "digits: healthy." in run("doctor", "--deep", store=store).stderr
    assert "--deep reads every byte" in run("doctor", store=store).stderr
    document = run_json("doctor", store=store)
    assert document == {"experiment_name": "digits", "findings": [], "done": [], "is_healthy": True}


def test_doctor_shows_and_fixes(store: Path, ids: list[str]) -> None:
    """A check names the command that fixes a finding, --fix does what that command does, and then it is healthy."""
    unfinished = leave_unfinished(store / "digits")
    (store / "digits/notes.txt").write_text("mine")
    shown = run("doctor", "--store", store, code=1)
    assert f"{unfinished}\n  half save (checkpoint)\n" in shown.stdout
    assert f"  fix: ckpt cleanup --store {store}\n" in shown.stdout
    assert "notes.txt" in shown.stdout
    assert f"1 problem. `ckpt doctor --fix --store {store}` fixes 1." in shown.stderr
    document = run_json("doctor", store=store, code=1)
    assert [(item["kind"], item["is_problem"]) for item in document["findings"]] == [
        ("half save", True),
        ("unknown", False),
    ]
    fixed = run("doctor", "--fix", store=store)
    assert "\nDone\n" in fixed.stdout
    assert "digits: healthy." in fixed.stderr
    assert not list((store / "digits").glob(f"{unfinished}*"))
    assert run_json("doctor", "--fix", store=store)["done"] == []


def test_doctor_leaves_payloads_without_a_manifest_to_a_person(store: Path, ids: list[str]) -> None:
    """It names what brings the checkpoint back: its backup or, without one, an import."""
    (store / "digits" / f"{ids[1]}.json").unlink()
    advised = f"`ckpt restore {ids[1]}` brings back its backup"
    assert advised in " ".join(run("doctor", "--fix", store=store, code=1).stdout.split())
    assert f"`ckpt restore {ids[1]}`" in run("repair", ids[1], store=store, code=2).stderr
    for file in (store / "digits/backups").glob(f"{ids[1]}.*"):
        file.unlink()
    shown = " ".join(run("doctor", store=store, code=1).stdout.split())
    (command,) = re.findall(r"without a manifest: `ckpt ([^`]*)` takes it in", shown)
    imported = run_json(*shlex.split(command), store=store)
    assert imported["checkpoint_id"] in run("list", store=store).stdout


def test_doctor_tells_of_damage_when_it_reads_everything(store: Path, lost: str) -> None:
    """And goes on telling of what it has set aside, until a person decides."""
    run("doctor", store=store)
    assert "damaged" in run("doctor", "--deep", store=store, code=1).stdout
    document = run_json("doctor", "--deep", "--fix", store=store, code=1)
    assert [item["outcome"].partition(":")[0] for item in document["done"] if item["finding"]["kind"] == "damaged"] == [
        "set aside",
        "set aside",
    ]
    left = [("quarantined", "checkpoints"), ("quarantined", "backups")]
    assert [(item["kind"], item["place"]) for item in document["findings"]] == left
    run("delete", "--yes", lost, store=store)
    findings = run_json("doctor", "--deep", store=store, code=1)["findings"]
    assert [(item["kind"], item["place"]) for item in findings] == left[1:]
    run("delete", "--backups", "--yes", lost, store=store)
    run("doctor", "--deep", store=store)


def test_quarantine_of_backups(store: Path, ids: list[str], lost: str) -> None:
    """They are told apart from checkpoints, and only --backups acts on them."""
    run("delete", "--yes", lost, store=store, env={"CKPT_TRASH_SECONDS": "0"})
    assert "set aside" in run("quarantine", "--backups", lost, store=store).stdout
    shown = run("quarantine", store=store)
    assert f"{lost}\n  backup, " in shown.stdout
    assert "0 checkpoints and 1 backup in quarantine" in shown.stderr
    assert "`ckpt delete ID`" not in shown.stderr
    assert "`ckpt delete --backups ID`" in shown.stderr
    assert "1 backup in quarantine" in run("quarantine", "--backups", store=store).stderr
    assert f"ckpt delete --backups {lost}" in run("repair", "--backups", lost, store=store, code=1).stderr
    run("delete", "--yes", lost, store=store, code=2)
    assert run_json("delete", "--backups", "--yes", lost, store=store)["deleted_ids"] == [lost]
    run("doctor", "--deep", store=store)


def test_doctor_names_backups_and_sizes(store: Path, ids: list[str]) -> None:
    """What is damaged, where it lies, how large it is, and what to do."""
    (store / "digits/backups" / f"{ids[0]}.pt").unlink()
    shown = run("doctor", store=store, code=1).stdout
    assert re.search(rf"\n{ids[0]}\n  damaged \(backup, \d+\.\d KiB\)\n  the payload is missing; ", shown)
    (command,) = re.findall("  fix: ckpt (.*)", shown)
    assert command == f"repair --backups {ids[0]}"
    assert "the payload is missing" in run(*command.split(), store=store).stdout
    run("doctor", "--deep", store=store)


@on_posix
@pytest.mark.parametrize("command", [("doctor", "--deep"), ("quarantine",), ("scrub",), ("validate", "--all")])
def test_what_is_damaged_fits_a_narrow_terminal(
    store: Path, ids: list[str], lost: str, command: tuple[str, ...]
) -> None:
    """Each id can be copied whole, and no line is wider than 80 columns."""
    if command == ("quarantine",):
        run("quarantine", lost, store=store)
    _, output = run_on_terminal(*command, "--store", store, columns=80)
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in output.split("\n")]
    assert lost in lines
    assert [
        line
        for line in lines
        if len(line) > 80 and "`" not in line and "  fix: ckpt " not in line and "\u2501" not in line
    ] == []


def test_doctor_advises_no_restore_from_a_damaged_backup(store: Path, ids: list[str]) -> None:
    """A damaged backup that is all that is left is one finding, and nothing can be restored from it."""
    for name in (f"{ids[0]}.pt", f"{ids[0]}.json"):
        (store / "digits" / name).unlink()
    shown = " ".join(run("doctor", store=store).stdout.split())
    assert f"`ckpt restore {ids[0]}` brings it back" in shown
    flip_bit(store / "digits/backups" / f"{ids[0]}.pt", 300)
    shown = run("doctor", "--deep", store=store, code=1).stdout
    assert "ckpt restore" not in shown
    assert f"  fix: ckpt quarantine --backups {ids[0]}\n" in shown
    found = run_json("doctor", "--deep", store=store, code=1)["findings"]
    assert [item["kind"] for item in found if item["name"] == ids[0]] == ["damaged"]


def test_quarantine_lists_sets_aside_and_deletes(store: Path, ids: list[str], lost: str) -> None:
    """By id; the reason is shown, and the exit codes are those of the other commands."""
    assert "0 checkpoints in quarantine" in run("quarantine", store=store).stderr
    assert run_json("quarantine", ids[2], store=store, code=4)["error"]["type"] == "ProtectedCheckpointError"
    assert "set aside" in run("quarantine", lost, store=store).stdout
    listed = run("quarantine", store=store)
    assert lost in listed.stdout
    assert "altered between bytes" in listed.stdout
    document = run_json("quarantine", store=store)
    assert [item["checkpoint_id"] for item in document["quarantined"]] == [lost]
    assert lost not in run("list", store=store).stdout
    assert "quarantine" in run("show", lost, store=store, code=2).stderr
    assert run_json("repair", lost, store=store, code=1)["error"]["type"] == "CorruptCheckpointError"
    document = run_json("delete", "--yes", lost, store=store)
    assert document["deleted_ids"] == [lost]
    assert document["freed_bytes"] > 0
    assert run_json("quarantine", store=store)["quarantined"] == []


def test_quarantine_repairs_what_can_be(store: Path, ids: list[str]) -> None:
    """And says so."""
    flip_bit(store / "digits" / f"{ids[0]}.pt", 300)
    assert "repaired instead" in run("quarantine", ids[0], store=store).stdout
    run("validate", "--all", store=store)


def test_deleting_from_quarantine_is_asked_about(store: Path, ids: list[str], lost: str) -> None:
    """Nothing is deleted without an answer, nor when one of the ids is pinned or unknown."""
    run("quarantine", lost, store=store)
    run("pin", ids[1], store=store)
    assert run_json("delete", lost, store=store, code=4)["error"]["type"] == "ConfirmationError"
    run("delete", "--yes", lost, ids[1], store=store, code=4)
    run("delete", "--yes", lost, ids[0] + "_9", store=store, code=2)
    assert [item["checkpoint_id"] for item in run_json("quarantine", store=store)["quarantined"]] == [lost]


def test_one_call_deletes_from_the_list_and_from_quarantine(store: Path, ids: list[str], lost: str) -> None:
    """The one goes to the trash, the other for good."""
    run("quarantine", lost, store=store)
    document = run_json("delete", "--yes", lost, ids[1], store=store)
    assert sorted(document["deleted_ids"]) == sorted([lost, ids[1]])
    assert document["freed_bytes"] > 0
    assert [item["checkpoint_id"] for item in run_json("trash", store=store)["deleted"]] == [ids[1]]
    assert run_json("quarantine", store=store)["quarantined"] == []


@on_posix
def test_deleting_from_quarantine_on_a_terminal(store: Path, lost: str) -> None:
    """A no is a no, a yes a yes."""
    run("quarantine", lost, store=store)
    arguments = ("delete", lost, "--store", store)
    code, output = run_on_terminal(*arguments, columns=200, answer="n")
    assert code == 4
    assert "1 checkpoint in quarantine for good?" in output
    code, _ = run_on_terminal(*arguments, columns=200, answer="y")
    assert code == 0
    assert not (store / "digits" / f"{lost}.pt").exists()
