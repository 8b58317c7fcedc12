"""What stays after a save: backups and checkpoints are retired each by their own number, or as asked for."""

from __future__ import annotations

from ckpt_lib import CheckpointManager
from ckpt_lib.policies.retention import KeepAnyOf, KeepBest, KeepNewest, KeepTagged
from tests.helpers import MakeManager, backup_ids, experiment_folder, ids, save


def test_backups_have_their_own_folder_and_their_own_retention(make_manager: MakeManager) -> None:
    """Each save is backed up, and backups are retired by max_backups alone."""
    manager = make_manager(max_checkpoints=2, max_backups=4)
    saved = [save(manager, epoch, 1 / epoch) for epoch in range(1, 7)]
    assert ids(manager) == saved[-2:]
    assert backup_ids(manager) == saved[-4:]
    folder = experiment_folder(manager) / "backups"
    assert {path.name for path in folder.glob("*.pt")} == {f"{item}.pt" for item in saved[-4:]}


def test_only_the_best_are_backed_up_when_asked(make_manager: MakeManager) -> None:
    """backup_only_best copies what is the best so far, and nothing else."""
    manager = make_manager(backup_only_best=True)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate((0.5, 0.7, 0.3, 0.4, float("nan")), start=1)]
    assert backup_ids(manager) == [saved[0], saved[2]]


def test_no_backups_when_switched_off(make_manager: MakeManager) -> None:
    """backup_checkpoints=False makes no copy until one is asked for."""
    manager = make_manager(backup_checkpoints=False)
    saved = save(manager, 1)
    assert backup_ids(manager) == []
    assert not (experiment_folder(manager) / "backups").exists()
    assert manager.backup_checkpoint(saved)
    assert backup_ids(manager) == [saved]


def test_old_checkpoints_are_retired_automatically(make_manager: MakeManager) -> None:
    """After each save at most max_checkpoints are left, the best and the newest among them."""
    manager = make_manager(max_checkpoints=3)
    saved = [save(manager, epoch, loss) for epoch, loss in enumerate((0.9, 0.1, 0.8, 0.7, 0.6, 0.5), start=1)]
    assert ids(manager) == [saved[1], saved[4], saved[5]]
    assert {path.name for path in experiment_folder(manager).glob("*.pt")} == {f"{item}.pt" for item in ids(manager)}


def test_cleanup_on_demand_takes_another_policy(manager: CheckpointManager) -> None:
    """A retention policy given to the call decides, and every decision has its reason."""
    saved = [
        save(manager, epoch, loss, tags=["keep"] if epoch == 2 else [])
        for epoch, loss in enumerate((0.9, 0.8, 0.1, 0.7, 0.6), start=1)
    ]
    policy = KeepAnyOf(policies=(KeepNewest(count=1), KeepBest(count=1), KeepTagged(tags=("keep",))))
    planned = manager.cleanup_checkpoints(policy=policy, dry_run=True)
    assert ids(manager) == saved
    report = manager.cleanup_checkpoints(policy=policy)
    assert report.plan == planned.plan
    assert set(report.deleted_ids) == {saved[0], saved[3]}
    assert ids(manager) == [saved[1], saved[2], saved[4]]
    assert all(decision.reason for decision in report.plan.decisions)
    assert report.trashed_bytes == planned.plan.freed_bytes > 0 == report.freed_bytes
