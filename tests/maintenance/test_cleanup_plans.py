"""Plans of a cleanup: a dry run writes nothing, and what changes before or while a plan is carried out is heeded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import ProtectedCheckpointError, StoreError
from ckpt_lib.experiment.layout import SNAPSHOT_NAME
from ckpt_lib.maintenance import cleanup
from ckpt_lib.policies.retention import KeepNewest, plan_retention
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import MakeManager, experiment_folder, ids, leave_unfinished, payload_path, save, snapshot
from tests.maintenance.cleaning import NOTHING, PLAN, cleaner


def test_a_dry_run_writes_nothing(unlimited: CheckpointManager) -> None:
    """It gives the plan that the cleanup then carries out, and leaves every byte, leftovers included."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]
    folder = experiment_folder(unlimited)
    leftover = leave_unfinished(folder)
    before = snapshot(folder)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, dry_run=True)
    assert snapshot(folder) == before
    assert report.dry_run
    assert report.deleted_ids == report.swept == ()
    assert set(report.plan.deleted_ids) == set(saved[:3])
    done = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert done.plan == report.plan
    assert set(done.deleted_ids) == set(report.plan.deleted_ids)
    assert done.swept == (leftover,)


def test_a_dry_run_of_nothing_creates_nothing(make_manager: MakeManager, store_path: Path) -> None:
    """Neither a plan nor a cleanup of an experiment that is not there creates its folder."""
    make_manager("mistyped").cleanup_checkpoints(dry_run=True)
    make_manager("mistyped").cleanup_checkpoints()
    assert not store_path.exists()


@pytest.mark.parametrize(
    "edit",
    [
        lambda manager, saved: manager.edit_checkpoint(saved, add_tags=["keep me"]),
        lambda manager, saved: manager.edit_checkpoint(saved, description="the one in the paper"),
        lambda manager, saved: manager.pin_checkpoint(saved),
    ],
    ids=["tag", "description", "pin"],
)
def test_an_edit_between_plan_and_execution_spares(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch, edit: Callable[[CheckpointManager, str], object]
) -> None:
    """A checkpoint that someone edits after the plan was made is not deleted by that plan."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]
    other = cleaner(unlimited)

    def planned_and_then_edited(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = plan_retention(*arguments, **options)
        edit(unlimited, saved[1])
        return made

    monkeypatch.setattr(PLAN, planned_and_then_edited)
    report = other.cleanup_checkpoints(policy=NOTHING)
    assert saved[1] in report.plan.deleted_ids
    assert set(report.deleted_ids) == {saved[0], saved[2]}
    assert list(report.spared) == [saved[1]]
    assert saved[1] in ids(unlimited)


@pytest.mark.parametrize("what", ["manifest", "payload"])
def test_what_a_plan_relies_on_is_still_there_when_it_deletes(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """When what the plan meant to keep is deleted or lost, the plan stops before it takes the last one."""
    saved = [save(unlimited, epoch, float("nan")) for epoch in range(3)]
    other = cleaner(unlimited)

    def planned_and_then_lost(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = plan_retention(*arguments, **options)
        if what == "manifest":
            unlimited.delete_checkpoint(saved[2])
        else:
            payload_path(unlimited, saved[2]).unlink()
        return made

    monkeypatch.setattr(PLAN, planned_and_then_lost)
    other.cleanup_checkpoints(policy=NOTHING)
    assert ids(unlimited) != []
    assert unlimited.resume() is not None


def test_a_store_that_fails_half_way_says_what_is_gone(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches deleted before stay deleted; the error names them, and the snapshot shows what is left."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 8)]
    monkeypatch.setattr(cleanup, "_MIN_BATCH", 2)
    plan = FaultPlan(only=frozenset({"put"}), fail_at=7)
    with faults_injected(plan):
        other = cleaner(unlimited)
    with pytest.raises(StoreError) as caught:
        other.cleanup_checkpoints(policy=NOTHING)
    assert "6 checkpoints to delete, 2 are gone: " in caught.value.message
    assert all(name in str(caught.value) for name in saved[:2])
    assert ids(unlimited) == saved[2:]
    shown = json.loads((experiment_folder(unlimited) / SNAPSHOT_NAME).read_text())
    assert [item["checkpoint_id"] for item in shown["checkpoints"]] == saved[2:]


def test_a_deletion_that_fails_half_way_leaves_a_true_snapshot(unlimited: CheckpointManager) -> None:
    """It is deleted, and so is its entry."""
    saved = [save(unlimited, epoch) for epoch in (1, 2)]
    with faults_injected(FaultPlan(only=frozenset({"put"}), fail_at=5)):
        other = cleaner(unlimited, trash_seconds=0)
    with pytest.raises(StoreError):
        other.delete_checkpoint(saved[0])
    assert ids(unlimited) == saved[1:]
    shown = json.loads((experiment_folder(unlimited) / SNAPSHOT_NAME).read_text())
    assert [item["checkpoint_id"] for item in shown["checkpoints"]] == saved[1:]


def test_another_cleanup_may_be_faster(unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cleanups with one plan delete each checkpoint once, and neither fails."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 5)]

    def planned_and_then_done_by_another(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        made = plan_retention(*arguments, **options)
        assert set(cleaner(unlimited).cleanup_checkpoints(policy=NOTHING).deleted_ids) == set(saved[:3])
        return made

    monkeypatch.setattr(PLAN, planned_and_then_done_by_another)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert report.deleted_ids == ()
    assert report.freed_bytes == 0
    assert ids(unlimited) == saved[-1:]


def test_only_the_plan_that_was_shown_is_carried_out(unlimited: CheckpointManager) -> None:
    """With its fingerprint; after a save that changes the plan nothing is changed, and the new one is carried out."""
    saved = [save(unlimited, epoch, 1 / epoch) for epoch in range(1, 4)]
    shown = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, dry_run=True)
    saved.append(save(unlimited, 4, 1 / 4))
    with pytest.raises(ProtectedCheckpointError, match="no longer the one that was shown"):
        cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, fingerprint=shown.fingerprint)
    assert ids(unlimited) == saved
    shown = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, dry_run=True)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING, fingerprint=shown.fingerprint)
    assert set(report.deleted_ids) == set(shown.plan.deleted_ids) == set(saved[:3])


def test_a_quick_plan_reads_the_newest_and_the_best(unlimited: CheckpointManager) -> None:
    """Without ``verify`` the others that stay count as they are; the plan deletes the same where none is damaged."""
    for epoch in range(1, 6):
        save(unlimited, epoch, 1 / epoch)
    quick = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=3), dry_run=True, verify=False)
    whole = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=3), dry_run=True)
    kept = [item.status for item in quick.plan.decisions if item.keep]
    assert kept == ["valid", "unverified", "unverified"]
    assert {item.status for item in whole.plan.decisions if item.keep} == {"valid"}
    assert quick.fingerprint == whole.fingerprint
