"""Backups as things of their own: listed, found damaged, set aside, deleted and cleaned up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager, list_experiments, open_store
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    ExperimentNotFoundError,
    NotAStoreError,
    ProtectedCheckpointError,
)
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.policies.retention import KeepNewest
from tests.helpers import MakeManager, backup_ids, experiment_folder, flip_bit, ids, manifest_path, payload_path, save

UNKNOWN = "checkpoint_epoch_0009_step_000000_20250101_120000"


def backup_path(manager: CheckpointManager, checkpoint_id: str) -> Path:
    return experiment_folder(manager) / "backups" / f"{checkpoint_id}.pt"


@pytest.fixture
def orphaned(make_manager: MakeManager) -> tuple[CheckpointManager, str]:
    """A damaged backup whose checkpoint was lost, beside a sound pair."""
    manager = make_manager(trash_seconds=0)
    gone, _ = save(manager, 1, 0.5), save(manager, 2, 0.4)
    flip_bit(backup_path(manager, gone), 500)
    lose(manager, gone)
    return manager, gone


def lose(manager: CheckpointManager, checkpoint_id: str) -> None:
    """Take a checkpoint away, as a disk does that is lost: without a trace."""
    payload_path(manager, checkpoint_id).unlink()
    manifest_path(manager, checkpoint_id).unlink()


def test_a_backup_outlives_its_checkpoint(manager: CheckpointManager) -> None:
    """Deleted, retired or gone for good: the backup stays, and brings it back when it is asked to."""
    saved, other = save(manager, 1), save(manager, 2)
    manager.delete_checkpoint(saved)
    assert backup_ids(manager) == [saved, other]
    assert manager.empty_trash() == [saved]
    assert ids(manager) == [other]
    assert backup_ids(manager) == [saved, other]
    manager.restore_checkpoint(saved)
    assert ids(manager) == backup_ids(manager) == [saved, other]
    assert manager.validate_checkpoint(saved)


def test_a_damaged_backup_of_nothing_is_set_aside_and_deleted(orphaned: tuple[CheckpointManager, str]) -> None:
    """What can be copied from nowhere does not stay among the backups."""
    manager, gone = orphaned
    assert not manager.validate_backup(gone)
    found = manager.quarantine_backup(gone)
    assert found.is_quarantined
    assert gone not in backup_ids(manager)
    assert manager.list_quarantined() == []
    [aside] = manager.list_quarantined_backups()
    assert aside.is_backup
    assert aside.checkpoint_id == gone
    assert manager.scrub().is_intact
    with pytest.raises(CorruptCheckpointError, match="Of the other copy: there is none"):
        manager.repair_backup(gone)
    assert manager.delete_backup(gone) == aside.size_bytes > 0
    assert manager.list_quarantined_backups() == []
    assert not backup_path(manager, gone).exists()


def test_the_doctor_sets_it_aside(orphaned: tuple[CheckpointManager, str]) -> None:
    """A damaged backup whose checkpoint is gone is found, and handled."""
    manager, gone = orphaned
    [finding] = manager.doctor(deep=True).problems
    assert (finding.kind, finding.place, finding.name) == ("damaged", "backups", gone)
    left = manager.doctor(fix=True, deep=True)
    assert [(item.kind, item.place) for item in left.problems] == [("quarantined", "backups")]
    assert left.problems[0].fix is None
    manager.delete_backup(gone)
    assert manager.doctor(deep=True).is_healthy


def test_a_backup_that_its_checkpoint_can_repair_is_repaired_instead(manager: CheckpointManager) -> None:
    """Quarantine is for what has no good copy."""
    saved = save(manager, 1)
    flip_bit(backup_path(manager, saved), 500)
    assert not manager.quarantine_backup(saved).is_quarantined
    assert manager.validate_backup(saved)


def test_an_intact_backup_is_not_set_aside(manager: CheckpointManager) -> None:
    """It is refused, and stays in its place."""
    saved = save(manager, 1)
    with pytest.raises(ProtectedCheckpointError, match="intact"):
        manager.quarantine_backup(saved)
    assert backup_ids(manager) == [saved]


def test_a_backup_in_quarantine_comes_back_with_its_checkpoint(make_manager: MakeManager, tmp_path: Path) -> None:
    """Once the checkpoint is there again, its chunks repair the backup."""
    manager = make_manager(trash_seconds=0)
    saved = save(manager, 1)
    exported = manager.export_checkpoint(saved, tmp_path / "exported")
    flip_bit(backup_path(manager, saved), 500)
    save(manager, 2)
    lose(manager, saved)
    manager.quarantine_backup(saved)
    assert manager.import_checkpoint(exported) == saved
    assert manager.doctor(fix=True).done[0].succeeded
    assert manager.validate_backup(saved)
    assert manager.list_quarantined_backups() == []


def test_a_new_backup_replaces_one_in_quarantine(make_manager: MakeManager, tmp_path: Path) -> None:
    """A checkpoint has one backup, and that is the good one."""
    manager = make_manager(trash_seconds=0)
    saved = save(manager, 1)
    exported = manager.export_checkpoint(saved, tmp_path / "exported")
    flip_bit(backup_path(manager, saved), 500)
    save(manager, 2)
    lose(manager, saved)
    manager.quarantine_backup(saved)
    manager.import_checkpoint(exported)
    assert manager.backup_checkpoint(saved)
    assert manager.validate_backup(saved)
    assert manager.list_quarantined_backups() == []


def test_a_backup_in_quarantine_protects_no_backup(make_manager: MakeManager) -> None:
    """Only what is wrong with checkpoints keeps backups from being retired."""
    manager = make_manager(trash_seconds=0)
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2, 3)]
    flip_bit(backup_path(manager, saved[0]), 500)
    payload_path(manager, saved[0]).unlink()
    manager.quarantine_backup(saved[0])
    assert manager.cleanup_backups(policy=KeepNewest(count=1)).deleted_ids == (saved[1],)


def test_deleting_a_backup_leaves_its_checkpoint(manager: CheckpointManager) -> None:
    """The bytes freed are those of the backup."""
    saved = save(manager, 1)
    size_bytes = payload_path(manager, saved).stat().st_size
    assert manager.delete_backup(saved) == size_bytes
    assert backup_ids(manager) == []
    assert ids(manager) == [saved]
    with pytest.raises(CheckpointNotFoundError, match="no backup"):
        manager.delete_backup(saved)


def test_the_backup_of_a_pinned_checkpoint_can_be_deleted(manager: CheckpointManager) -> None:
    """The pin is the checkpoint's, which stays."""
    saved = save(manager, 1)
    manager.delete_backup(saved)
    manager.pin_checkpoint(saved)
    manager.backup_checkpoint(saved)
    assert manager.delete_backup(saved) > 0
    assert ids(manager) == [saved]


def test_a_backup_with_a_damaged_manifest_is_not_deleted(manager: CheckpointManager) -> None:
    """Nobody can say what such a file is; a repair brings it back, and then it can be deleted."""
    saved = save(manager, 1)
    backup_path(manager, saved).with_suffix(".json").write_text("{")
    assert [report.checkpoint_id for report in manager.list_unreadable_backups()] == [saved]
    with pytest.raises(CorruptManifestError, match="ckpt repair --backups"):
        manager.delete_backup(saved)
    manager.repair_backup(saved)
    assert manager.delete_backup(saved) > 0
    assert manager.doctor(deep=True).is_healthy


def test_backups_are_cleaned_up_by_any_policy(make_manager: MakeManager) -> None:
    """Backups are ranked and kept as checkpoints are."""
    manager = make_manager(max_backups=5)
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2, 3)]
    plan = manager.cleanup_backups(policy=KeepNewest(count=1), dry_run=True)
    assert plan.plan.deleted_ids == tuple(saved[1::-1])
    assert backup_ids(manager) == saved
    report = manager.cleanup_backups(policy=KeepNewest(count=1))
    assert report.deleted_ids == tuple(saved[:2])
    assert report.freed_bytes > 0
    assert backup_ids(manager) == saved[2:]
    assert ids(manager) == saved
    assert manager.cleanup_backups().deleted_ids == ()


def test_a_plan_of_a_cleanup_tells_of_the_backups_that_would_go(make_manager: MakeManager) -> None:
    """A dry run shows all that a run would delete."""
    saved = [save(make_manager(), epoch, 1 / epoch) for epoch in (1, 2, 3)]
    manager = make_manager(max_backups=1)
    planned = manager.cleanup_checkpoints(dry_run=True)
    assert planned.backups is not None
    assert planned.backups.plan.deleted_ids == tuple(saved[1::-1])
    assert backup_ids(manager) == saved
    done = manager.cleanup_checkpoints()
    assert done.backups is not None
    assert set(done.backups.deleted_ids) == set(saved[:2])
    assert backup_ids(manager) == saved[2:]


def test_an_experiment_of_nothing_but_backups_is_found(make_manager: MakeManager, store_path: Path) -> None:
    """It can be listed, though no checkpoint is left."""
    manager = make_manager(save_metadata=False, trash_seconds=0)
    saved = save(manager, 1)
    manager.delete_checkpoint(saved)
    assert list_experiments(open_store(store_path)) == ["run"]
    assert manager.restore_checkpoint(saved).checkpoint_id == saved


def test_a_number_that_nobody_gave_deletes_no_backup(make_manager: MakeManager) -> None:
    """The training keeps more than the default: neither a backup by hand, nor the doctor, nor a cleanup knows that."""
    training = make_manager(max_checkpoints=2, max_backups=14)
    saved = [save(training, epoch, 1 / epoch) for epoch in range(1, 14)]
    other = make_manager()
    other.delete_backup(saved[-1])
    assert other.backup_checkpoint(saved[-1])
    other.delete_backup(saved[-1])
    assert "backed up" in [item.outcome for item in other.doctor(fix=True).done]
    assert other.cleanup_checkpoints().backups is None
    assert backup_ids(training) == saved
    chosen = make_manager(max_backups=5)
    chosen.delete_backup(saved[-1])
    assert chosen.backup_checkpoint(saved[-1])
    assert len(backup_ids(training)) == 5
    assert len(make_manager(max_backups=4).cleanup_checkpoints().backups.deleted_ids) == 1  # type: ignore[union-attr]


def test_a_restored_checkpoint_may_come_back_pinned(make_manager: MakeManager) -> None:
    """Retention deleted it for good, and would again."""
    manager = make_manager(max_checkpoints=1)
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2)]
    assert manager.restore_checkpoint(saved[0], pin=True).pinned
    saved.append(save(manager, 3, 0.1))
    assert ids(manager) == [saved[0], saved[2]]


@pytest.mark.parametrize("what", ["a file", "a dangling link"])
def test_a_cleanup_reports_what_it_deleted_though_the_backups_are_away(
    make_manager: MakeManager, tmp_path: Path, what: str
) -> None:
    """The report tells both: what went, and why the backups stayed."""
    manager = make_manager(backup_checkpoints=False, backup_dir=str(tmp_path / "backups"), max_backups=9)
    saved = [save(manager, epoch, 1 / epoch) for epoch in (1, 2, 3)]
    if what == "a file":
        (tmp_path / "backups").write_text("mine")
    else:
        (tmp_path / "backups").symlink_to(tmp_path / "unmounted")
    planned = manager.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True)
    assert planned.plan.deleted_ids == tuple(saved[1::-1])
    done = manager.cleanup_checkpoints(policy=KeepNewest(count=1))
    assert done.deleted_ids == tuple(saved[:2])
    for report in (planned, done):
        assert report.backups is None
        assert report.backups_error is not None
        assert str(tmp_path / "backups") in report.backups_error


def test_checkpoints_in_quarantine_are_seen_though_the_backups_are_away(
    make_manager: MakeManager, tmp_path: Path
) -> None:
    """What is asked about checkpoints does not look at the backups."""
    manager = make_manager(backup_checkpoints=False, backup_dir=str(tmp_path / "backups"))
    saved = save(manager, 1)
    flip_bit(payload_path(manager, saved), 500)
    assert manager.quarantine_checkpoint(saved).is_quarantined
    (tmp_path / "backups").write_text("mine")
    assert [item.checkpoint_id for item in manager.list_quarantined()] == [saved]
    with pytest.raises(NotAStoreError):
        manager.list_quarantined_backups()
    assert manager.delete_quarantined(saved) > 0


def test_an_experiment_is_known_by_its_backups_alone(make_manager: MakeManager, tmp_path: Path) -> None:
    """No name is called unknown that backups bear."""
    manager = make_manager("gone", backup_dir=str(tmp_path / "backups"))
    save(manager, 1)
    shutil.rmtree(experiment_folder(manager))
    store, backups = open_store(manager.config.checkpoint_dir), open_store(tmp_path / "backups")
    assert check_experiment_exists(store, "gone", backups=backups) == "gone"
    with pytest.raises(ExperimentNotFoundError, match="Did you mean 'gone'"):
        check_experiment_exists(store, "goen", backups=backups)
    with pytest.raises(ExperimentNotFoundError):
        check_experiment_exists(store, "gone")
    nothing = open_store(tmp_path / "nothing")
    with pytest.raises(NotAStoreError):
        check_experiment_exists(nothing, "gone", backups=nothing)


def test_one_treatment_is_enough_for_damage_in_both_copies(make_manager: MakeManager) -> None:
    """The snapshot is written last, when the others have changed what it shows."""
    manager = make_manager()
    saved = save(manager, 1)
    experiment_folder(manager).joinpath(f"{saved}.json").write_text("{")
    assert manager.doctor(fix=True, deep=True).is_healthy
    assert manager.doctor(fix=True, deep=True) == manager.doctor(deep=True)


def test_names_resolve_among_the_backups(make_manager: MakeManager) -> None:
    """latest, best and tags mean the backups, where these are asked for."""
    manager = make_manager(trash_seconds=0)
    saved = [save(manager, epoch, loss, tags=[f"e{epoch}"]) for epoch, loss in ((1, 0.5), (2, 0.1), (3, 0.4))]
    for checkpoint_id in saved[1:]:
        manager.delete_backup(checkpoint_id)
    assert {manager.get_backup(name).checkpoint_id for name in ("latest", "best", "e1")} == {saved[0]}
    [found] = manager.list_backups()
    assert found.is_best
    assert found.is_latest
    assert manager.validate_backup("e1")
    with pytest.raises(CheckpointNotFoundError):
        manager.validate_backup("e2")
    assert manager.delete_backup("best") > 0


def test_whoever_has_no_good_copy_left_is_told_what_may_help(make_manager: MakeManager) -> None:
    """The trash, older checkpoints, and the command that removes what is in quarantine."""
    manager = make_manager(trash_seconds=60)
    saved, other = save(manager, 1), save(manager, 2)
    with pytest.raises(CheckpointNotFoundError, match=r"there is no backup of .*`ckpt list --backups` shows"):
        manager.validate_backup(UNKNOWN)
    for action in (manager.repair_backup, manager.quarantine_backup, manager.delete_backup):
        with pytest.raises(CheckpointNotFoundError, match="there is no backup of"):
            action(UNKNOWN)
    flip_bit(backup_path(manager, saved), 500)
    manager.delete_checkpoint(saved)
    flip_bit(payload_path(manager, saved), 500)
    with pytest.raises(CorruptCheckpointError, match=f"`ckpt undelete {saved}`.*`ckpt list` shows older"):
        manager.restore_checkpoint(saved)
    flip_bit(payload_path(manager, other), 500)
    flip_bit(backup_path(manager, other), 500)
    with pytest.raises(CorruptCheckpointError, match=r"its backup cannot be restored: .*`ckpt list` shows older"):
        manager.restore_checkpoint(other)


def test_the_doctor_advises_nothing_that_a_damaged_backup_cannot_give(make_manager: MakeManager) -> None:
    """A damaged backup that is all that is left is one finding, and reads the file once."""
    manager = make_manager(trash_seconds=0)
    saved = save(manager, 1)
    save(manager, 2)
    lose(manager, saved)
    assert "backup only" in [item.kind for item in manager.doctor(deep=True).findings]
    flip_bit(backup_path(manager, saved), 500)
    assert [item.kind for item in manager.doctor(deep=True).problems] == ["damaged"]
