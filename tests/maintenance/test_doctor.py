"""The doctor: what is not as it should be is found, with the command that fixes it; foreign files are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import NotACheckpointError, NotAStoreError
from ckpt_lib.reports import DoctorReport
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    ids,
    leave_unfinished,
    manifest_path,
    payload_path,
    save,
    snapshot,
    truncate,
)
from tests.maintenance.doctoring import cured, files, kinds, looked_at
from tests.maintenance.records import manifest_in


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
        damaged: f"ckpt repair {damaged}",
        unreadable: f"ckpt repair {unreadable}",
        lonely: f"ckpt backup {lonely}",
    }
    assert cured(manager, deep=True).is_healthy
    assert ids(manager) == [damaged, unreadable, lonely]


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
