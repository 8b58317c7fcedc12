"""The doctor: what is not as it should be is found, with the command that fixes it; and a fix is for good."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager, DoctorReport
from ckpt_lib.errors import NotACheckpointError, NotAStoreError, StoreError
from ckpt_lib.experiment import edits
from ckpt_lib.maintenance.findings import Treatment
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    leave_unfinished,
    manifest_path,
    payload_path,
    save,
    snapshot,
    start_python,
    truncate,
)
from tests.killer import Killer
from tests.maintenance.records import manifest_in


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """What kills calls of this module's tests."""
    found = Killer()
    yield found
    found.close()


@pytest.fixture
def alone(make_manager: MakeManager) -> CheckpointManager:
    """A manager that makes no backups."""
    return make_manager(backup_checkpoints=False)


def kinds(report: DoctorReport) -> list[str]:
    return sorted(finding.kind for finding in report.findings)


def files(folder: Path) -> dict[str, str]:
    """Everything there but leases and locks, which come and go."""
    return {name: digest for name, digest in snapshot(folder).items() if ".ckpt-" not in name}


def cured(manager: CheckpointManager, *, deep: bool = False) -> DoctorReport:
    """Fix, and check that a second time it finds nothing to do and changes nothing."""
    report = manager.doctor(fix=True, deep=deep)
    before = files(experiment_folder(manager))
    again = manager.doctor(fix=True, deep=deep)
    assert again.done == ()
    assert [finding.fix for finding in again.findings if finding.fix] == []
    assert again.findings == report.findings
    assert files(experiment_folder(manager)) == before
    return report


def looked_at(manager: CheckpointManager, *, deep: bool = False) -> DoctorReport:
    """Diagnose, and check that this changed nothing."""
    before = files(experiment_folder(manager))
    report = manager.doctor(deep=deep)
    assert files(experiment_folder(manager)) == before
    return report


def test_a_sound_experiment_is_healthy(manager: CheckpointManager) -> None:
    """With checkpoints, backups, pins and tags; also when every byte is read."""
    for epoch in range(1, 4):
        save(manager, epoch, tags=["a"])
    manager.pin_checkpoint("latest")
    for deep in (False, True):
        assert looked_at(manager, deep=deep) == DoctorReport(experiment_name="run")
        assert manager.doctor(fix=True, deep=deep).is_healthy


def test_nothing_is_created_where_nothing_is(manager: CheckpointManager, store_path: Path) -> None:
    """A mistyped name stays a mistyped name, and is not healthy."""
    with pytest.raises(NotACheckpointError, match="nothing"):
        manager.doctor(fix=True, deep=True)
    assert not store_path.exists()


def test_backups_that_cannot_be_reached_are_not_missed(make_manager: MakeManager, tmp_path: Path) -> None:
    """Without checkpoints, only the backup location could tell what there was: its error is the answer."""
    elsewhere = tmp_path / "disk"
    elsewhere.symlink_to(tmp_path / "unmounted")
    with pytest.raises(NotAStoreError, match="link"):
        make_manager(backup_dir=str(elsewhere)).doctor()


def test_a_foreign_folder_is_left_as_it_is(make_manager: MakeManager, store_path: Path) -> None:
    """Not even a lock is made there, and it is not called healthy; one file of ours is enough to look."""
    folder = store_path / "thesis"
    (folder / "backups").mkdir(parents=True)
    (folder / "chapter.tex").write_text("mine")
    before = snapshot(store_path)
    with pytest.raises(NotACheckpointError, match="1 other files and folders"):
        make_manager("thesis").doctor(fix=True, deep=True)
    assert snapshot(store_path) == before
    (folder / "checkpoint_epoch_0001_step_000000_20250101_120000.pt").write_bytes(b"x")
    assert [item.kind for item in make_manager("thesis").doctor().problems] == ["no manifest"]


def test_more_checkpoints_than_backups_is_as_configured(make_manager: MakeManager) -> None:
    """What the backup location would retire again is not missing there; neither is what is not to be backed up."""
    manager = make_manager(max_checkpoints=6, max_backups=2)
    for epoch in range(1, 6):
        save(manager, epoch, 1 / epoch)
    assert looked_at(manager).is_healthy
    without_backups = make_manager("other", backup_checkpoints=False)
    save(without_backups, 1)
    assert without_backups.doctor().is_healthy
    best_only = make_manager("best", backup_only_best=True)
    for epoch, loss in enumerate([0.5, 0.4, 0.6], start=1):
        save(best_only, epoch, loss)
    assert best_only.doctor().is_healthy


@pytest.mark.parametrize("trained", [{"backup_checkpoints": False}, {"max_backups": 2}])
def test_a_default_is_no_wish_for_backups(make_manager: MakeManager, trained: dict[str, Any]) -> None:
    """Whoever asks without the training's configuration is not told that backups are missing, and gets none made."""
    manager = make_manager(max_checkpoints=6, **trained)
    saved = [save(manager, epoch, 1 / epoch) for epoch in range(1, 6)]
    manager.pin_checkpoint(saved[1])
    held = backup_ids(manager)
    assert looked_at(make_manager()).is_healthy
    assert cured(make_manager()).is_healthy
    assert backup_ids(manager) == held
    assert "no backup" in kinds(make_manager(backup_checkpoints=True).doctor())


def test_where_there_are_backups_the_newest_should_have_one(make_manager: MakeManager) -> None:
    """Each training that makes backups makes that."""
    manager = make_manager(max_backups=2)
    saved = [save(manager, epoch, epoch) for epoch in range(1, 5)]
    manager.delete_backup(saved[3])
    assert [(item.kind, item.name) for item in looked_at(make_manager()).problems] == [("no backup", saved[3])]
    assert cured(make_manager()).is_healthy


def test_what_is_in_the_trash_is_no_trouble(alone: CheckpointManager) -> None:
    """It is told how long it can be brought back, and stays."""
    checkpoint_id = save(alone, 1)
    alone.delete_checkpoint(checkpoint_id)
    report = cured(alone)
    assert kinds(report) == ["deleted"]
    assert report.is_healthy
    assert "undelete" in report.findings[0].message
    assert alone.undelete_checkpoint(checkpoint_id).checkpoint_id == checkpoint_id


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "missing", "manifest"])
@pytest.mark.parametrize("side", ["checkpoints", "backups"])
def test_damage_is_repaired_from_the_other_copy(manager: CheckpointManager, side: str, damage: str) -> None:
    """On either side; what only all bytes tell is found when they are read."""
    checkpoint_id = save(manager, 1)
    folder = experiment_folder(manager) / ("backups" if side == "backups" else "")
    inflict(damage, folder / f"{checkpoint_id}.pt")
    if damage == "flip":
        assert manager.doctor().is_healthy
    report = looked_at(manager, deep=True)
    assert [(item.kind, item.place) for item in report.findings if item.kind != "stale snapshot"] == [("damaged", side)]
    assert cured(manager, deep=True).is_healthy
    assert manager.validate_checkpoint(checkpoint_id)
    assert manager.validate_backup(checkpoint_id)


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "missing"])
def test_what_cannot_be_repaired_is_set_aside(alone: CheckpointManager, damage: str) -> None:
    """It is a problem until a person decides, and no fix goes round in circles over it."""
    lost, other = save(alone, 1), save(alone, 2)
    inflict(damage, payload_path(alone, lost))
    report = cured(alone, deep=True)
    assert [item.kind for item in report.problems] == ["quarantined"]
    assert report.problems[0].name == lost
    assert not report
    assert [item.checkpoint_id for item in alone.list_quarantined()] == [lost]
    assert ids(alone) == [other]
    alone.delete_quarantined(lost)
    assert cured(alone, deep=True).is_healthy


def inflict(damage: str, payload: Path) -> None:
    match damage:
        case "flip":
            flip_bit(payload, 200)
        case "truncate":
            truncate(payload, 100)
        case "extend":
            payload.write_bytes(payload.read_bytes() + b"x")
        case "missing":
            payload.unlink()
        case "manifest":
            flip_bit(payload.with_suffix(".json"), 40)


def test_a_missing_backup_is_made(make_manager: MakeManager) -> None:
    """Of a checkpoint that is whole."""
    manager = make_manager(backup_checkpoints=True)
    checkpoint_id = save(manager, 1)
    for suffix in (".pt", ".json"):
        (experiment_folder(manager) / "backups" / f"{checkpoint_id}{suffix}").unlink()
    assert kinds(looked_at(manager)) == ["no backup"]
    assert cured(manager).is_healthy
    assert manager.validate_backup(checkpoint_id)


def test_a_checkpoint_that_turns_out_damaged_while_it_is_backed_up(manager: CheckpointManager) -> None:
    """Is set aside: nobody has what it lacks."""
    save(manager, 1)
    checkpoint_id = save(manager, 2)
    for suffix in (".pt", ".json"):
        (experiment_folder(manager) / "backups" / f"{checkpoint_id}{suffix}").unlink()
    flip_bit(payload_path(manager, checkpoint_id), 200)
    assert [item.kind for item in cured(manager).problems] == ["quarantined"]


def test_what_was_set_aside_comes_back_when_a_backup_turns_up(make_manager: MakeManager, tmp_path: Path) -> None:
    """The doctor tries it; not before."""
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    checkpoint_id = save(manager, 1)
    (tmp_path / "backups").rename(tmp_path / "away")
    truncate(payload_path(manager, checkpoint_id), 10)
    assert [item.kind for item in cured(manager).problems] == ["quarantined"]
    (tmp_path / "away").rename(tmp_path / "backups")
    assert cured(manager).is_healthy
    assert manager.validate_checkpoint(checkpoint_id)


def test_foreign_files_are_told_of_and_never_touched(manager: CheckpointManager) -> None:
    """Files, folders, links, and names that are almost ours."""
    checkpoint_id = save(manager, 1)
    folder = experiment_folder(manager)
    (folder / "notes.txt").write_text("mine")
    (folder / "plots").mkdir()
    (folder / "checkpoint_epoch_1.pt").write_bytes(b"x")
    (folder / f"{checkpoint_id}.txt").write_text("mine")
    (folder / "link").symlink_to("notes.txt")
    report = cured(manager, deep=True)
    assert report.is_healthy
    assert {(item.kind, item.name) for item in report.findings} == {
        ("unknown", "notes.txt"),
        ("unknown", "checkpoint_epoch_1.pt"),
        ("unknown", f"{checkpoint_id}.txt"),
        ("link", "link"),
    }
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_link_in_place_of_a_payload_takes_a_person(alone: CheckpointManager, tmp_path: Path) -> None:
    """It is never followed, and the checkpoint is neither replaced nor set aside."""
    checkpoint_id = save(alone, 1)
    payload = payload_path(alone, checkpoint_id)
    payload.rename(tmp_path / "elsewhere.pt")
    payload.symlink_to(tmp_path / "elsewhere.pt")
    report = cured(alone)
    assert [item.kind for item in report.problems] == ["damaged"]
    assert "link" in report.problems[0].message
    assert ids(alone) == [checkpoint_id]
    assert payload.is_symlink()


def test_backups_that_are_a_link_are_told_of(manager: CheckpointManager, tmp_path: Path) -> None:
    """They are never written to; the checkpoints are looked at all the same."""
    save(manager, 1)
    backups = experiment_folder(manager) / "backups"
    backups.rename(tmp_path / "elsewhere")
    backups.symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    report = cured(manager)
    assert "backup location" in [item.kind for item in report.problems]
    assert snapshot(tmp_path / "elsewhere") == before


def test_another_runs_folder_is_no_place_for_backups(make_manager: MakeManager, tmp_path: Path) -> None:
    """Its checkpoints would be retired as backups: nothing is done there."""
    other = make_manager(checkpoint_dir=str(tmp_path / "other"))
    save(other, 1)
    manager = make_manager(backup_dir=str(tmp_path / "other"), backup_checkpoints=False)
    save(manager, 2)
    before = files(tmp_path / "other")
    report = cured(make_manager(backup_dir=str(tmp_path / "other")))
    assert [item.kind for item in report.problems] == ["backup location"]
    assert files(tmp_path / "other") == before


def test_a_different_checkpoint_of_the_same_id_is_told_of(manager: CheckpointManager) -> None:
    """In the backups, where it would be taken for a copy."""
    checkpoint_id = save(manager, 1)
    twin = experiment_folder(manager) / "backups" / f"{checkpoint_id}.json"
    manifest = manifest_in(twin)
    twin.write_bytes(manifest.changed(uid="0" * 32).to_bytes())
    report = cured(manager)
    assert [item.kind for item in report.problems] == ["other checkpoint"]


def test_a_manifest_of_a_newer_version_is_left_alone(alone: CheckpointManager) -> None:
    """Someone else can read it."""
    checkpoint_id = save(alone, 1)
    manifest = manifest_in(manifest_path(alone, checkpoint_id))
    manifest_path(alone, checkpoint_id).write_bytes(manifest.changed(schema_version=99).to_bytes())
    report = cured(alone, deep=True)
    assert [item.kind for item in report.findings] == ["newer version"]
    assert report.is_healthy
    assert payload_path(alone, checkpoint_id).exists()


def test_a_stale_snapshot_is_written_anew(alone: CheckpointManager) -> None:
    """Missing, old or damaged: nothing goes by it, so it is no problem."""
    save(alone, 1)
    path = experiment_folder(alone) / "checkpoint_metadata.json"
    good = path.read_bytes()
    for data in (None, b"", good[:-1] + b" ", good + b"x"):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        report = looked_at(alone)
        assert kinds(report) == ["stale snapshot"]
        assert report.is_healthy
        assert cured(alone).findings == ()
        assert path.read_bytes() == good


SAVES = """
import sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], max_checkpoints=4, trash_seconds=0), "run")
for epoch in range(1, 41):
    print(manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"val_loss": 1 / epoch}), flush=True)
"""


def test_it_runs_beside_a_training(make_manager: MakeManager) -> None:
    """Nothing of the training's is taken for a leftover, and no save fails."""
    manager = make_manager(max_checkpoints=4, trash_seconds=0)
    child = start_python(SAVES, manager.config.checkpoint_dir)
    done: list[Treatment] = []
    while child.poll() is None:
        with contextlib.suppress(NotACheckpointError):  # before the first save
            done += manager.doctor(fix=True, deep=True).done
    output, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    saved = output.split()
    assert len(saved) == 40
    assert ids(manager)[-1] == saved[-1]
    assert {item.finding.kind for item in done} <= {"no backup", "stale snapshot", "half deletion"}
    assert cured(manager, deep=True).is_healthy


def test_each_problem_names_the_command_that_fixes_it(make_manager: MakeManager) -> None:
    """A check changes nothing, and says what to type."""
    manager = make_manager(backup_checkpoints=True, trash_seconds=0)
    damaged, unreadable, lonely = (save(manager, epoch) for epoch in (1, 2, 3))
    unfinished = leave_unfinished(experiment_folder(manager))
    truncate(payload_path(manager, damaged), 10)
    manifest_path(manager, unreadable).write_text("{")
    manager.delete_backup(lonely)
    before = files(experiment_folder(manager))
    found = {finding.name: finding.fix for finding in manager.doctor().problems}
    assert files(experiment_folder(manager)) == before
    assert found == {
        unfinished: "ckpt cleanup",
        damaged: f"ckpt quarantine {damaged}",
        unreadable: f"ckpt repair {unreadable}",
        lonely: f"ckpt backup {lonely}",
    }
    assert cured(manager, deep=True).is_healthy
    assert ids(manager) == [damaged, unreadable, lonely]


def test_killed_at_every_step_the_next_fix_does_the_rest(make_manager: MakeManager, killer: Killer) -> None:
    """Wherever it stopped, nothing is lost; a copy that did not come back is told of, and a restore brings it back."""
    for step in range(1, 80):
        manager = make_manager(f"run{step}", backup_checkpoints=True, trash_seconds=0)
        damaged, unreadable, lonely = (save(manager, epoch) for epoch in (1, 2, 3))
        leave_unfinished(experiment_folder(manager))
        truncate(payload_path(manager, damaged), 10)
        manifest_path(manager, unreadable).write_text("{")
        manager.delete_backup(lonely)
        was_killed = killer.kills(manager, "doctor", step, fix=True, deep=True)
        report = cured(manager, deep=True)
        assert report.is_healthy
        for finding in report.findings:
            assert (finding.kind, finding.name) == ("backup only", unreadable)
            manager.restore_checkpoint(unreadable)
        assert ids(manager) == [damaged, unreadable, lonely]
        if not was_killed:
            break
    else:
        pytest.fail("it never came to its end")


def test_a_payload_without_a_manifest_is_left_to_a_person(alone: CheckpointManager) -> None:
    """The finding says how to take it in, and nothing removes it."""
    saved, _ = save(alone, 1), save(alone, 2)
    manifest_path(alone, saved).unlink()
    [finding] = cured(alone).problems
    assert (finding.kind, finding.fix) == ("no manifest", None)
    assert f"ckpt import {payload_path(alone, saved)}" in finding.message
    assert payload_path(alone, saved).exists()


def test_an_unreadable_manifest_without_another_copy_is_told_of(alone: CheckpointManager) -> None:
    """Nothing can be done about it, so nothing is tried."""
    saved, other = save(alone, 1), save(alone, 2)
    manifest_path(alone, saved).write_text("{")
    [finding] = cured(alone).problems
    assert (finding.kind, finding.fix) == ("damaged", None)
    assert ids(alone) == [other]


def test_a_backup_whose_checkpoint_was_lost_is_worth_knowing(manager: CheckpointManager) -> None:
    """It is what a backup is for."""
    lost, _ = save(manager, 1), save(manager, 2)
    payload_path(manager, lost).unlink()
    manifest_path(manager, lost).unlink()
    report = cured(manager)
    assert kinds(report) == ["backup only"]
    assert report.is_healthy
    assert lost in backup_ids(manager)


def test_a_fix_that_fails_stops_no_other(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told of."""
    manager = make_manager(backup_checkpoints=True)
    lost, lonely = save(manager, 1), save(manager, 2)
    flip_bit(payload_path(manager, lost), 200)
    flip_bit(experiment_folder(manager) / "backups" / f"{lost}.pt", 200)
    manager.delete_backup(lonely)

    def failing(*_: Any) -> None:
        raise StoreError("the disk")

    monkeypatch.setattr(edits, "quarantine", failing)
    report = manager.doctor(fix=True, deep=True)
    outcomes = {(item.finding.kind, item.finding.name): item.succeeded for item in report.done}
    assert outcomes["damaged", lost] is False
    assert outcomes["no backup", lonely] is True
