"""Retirement beside damage: what is damaged takes no place of what is whole, and reading is enough to know it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import ProtectedCheckpointError
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.saving.free_space import reclaim
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    truncate,
)
from tests.maintenance.cleaning import NOTHING, cleaner


@pytest.mark.parametrize(
    "damage",
    [
        lambda manager, saved: flip_bit(payload_path(manager, saved), 100),
        lambda manager, saved: truncate(payload_path(manager, saved), 100),
        lambda manager, saved: payload_path(manager, saved).unlink(),
        lambda manager, saved: flip_bit(manifest_path(manager, saved), 100),
    ],
    ids=["flipped", "truncated", "missing", "manifest"],
)
def test_a_damaged_checkpoint_never_counts_as_kept(
    unlimited: CheckpointManager, damage: Callable[[CheckpointManager, str], None]
) -> None:
    """With the best and the newest damaged, the best and the newest of the valid ones stay; the damaged wait."""
    saved = [save(unlimited, epoch, loss) for epoch, loss in enumerate((0.1, 0.2, 0.9, 0.8, 0.7), start=1)]
    damage(unlimited, saved[0])
    damage(unlimited, saved[4])
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert set(report.deleted_ids) == {saved[2]}
    names = set(os.listdir(experiment_folder(unlimited)))
    for checkpoint_id in (saved[0], saved[1], saved[3], saved[4]):
        assert f"{checkpoint_id}.json" in names
    assert unlimited.validate_checkpoint(saved[1])
    assert unlimited.validate_checkpoint(saved[3])


def test_damaged_checkpoints_use_up_no_place(unlimited: CheckpointManager) -> None:
    """Of six, the two newest half gone: a policy that keeps two keeps the two newest whole ones besides those."""
    saved = [save(unlimited, epoch, float("nan")) for epoch in range(6)]
    for checkpoint_id in saved[4:]:
        truncate(payload_path(unlimited, checkpoint_id), 100)
    report = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=2))
    assert set(report.deleted_ids) == set(saved[:2])
    assert {item.checkpoint_id for item in report.plan.decisions if item.status == "damaged"} == set(saved[4:])


def test_the_last_valid_checkpoint_stays_under_any_policy(unlimited: CheckpointManager) -> None:
    """When everything newer is damaged, the one that can be resumed from survives a policy that keeps nothing."""
    saved = [save(unlimited, epoch, float("nan")) for epoch in range(4)]
    for checkpoint_id in saved[1:]:
        flip_bit(payload_path(unlimited, checkpoint_id), -1)
    report = cleaner(unlimited).cleanup_checkpoints(policy=NOTHING)
    assert report.deleted_ids == ()
    payload = unlimited.resume()
    assert payload is not None
    assert payload["checkpoint_id"] == saved[0]


def test_the_cleanup_after_a_save_finds_damage_too(make_manager: MakeManager) -> None:
    """A best checkpoint damaged behind the manager's back is not what the next saves rely on."""
    manager = make_manager(max_checkpoints=1, backup_checkpoints=False)
    best = save(manager, 1, 0.1)
    second = save(manager, 2, 0.2)
    flip_bit(payload_path(manager, best), 100)
    save(manager, 3, 0.3)
    last = save(manager, 4, 0.4)
    assert ids(manager) == [best, second, last]
    assert manager.validate_checkpoint(second)


def test_backups_of_damaged_checkpoints_stay(make_manager: MakeManager) -> None:
    """A backup that is needed for a repair is not retired, whatever max_backups says."""
    manager = make_manager(max_backups=1, max_checkpoints=100)
    first = save(manager, 1, 0.9)
    flip_bit(manifest_path(manager, first), 30)
    second = save(manager, 2, 0.8)
    truncate(payload_path(manager, second), 10)
    for epoch in (3, 4, 5):
        save(manager, epoch, 1 / epoch)
    assert {first, second} <= set(backup_ids(manager))
    manager.restore_checkpoint(first)
    manager.restore_checkpoint(second)
    assert all(manager.validate_all())


def test_saving_does_not_read_the_best_again_each_time(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run reads the stored best once to be sure of it, and not with every save."""
    save(make_manager(backup_checkpoints=False), 1, 0.1)
    resumed = make_manager(backup_checkpoints=False, max_checkpoints=2)
    read: list[str] = []

    def counted(folder: Any, manifest: Any, *rest: Any) -> Any:
        read.append(manifest.checkpoint_id)
        return validate(folder, manifest, *rest)

    monkeypatch.setattr("ckpt_lib.maintenance.validate.validate", counted)
    for epoch in range(2, 6):
        save(resumed, epoch, 0.5)
    assert len(read) == 1


def test_silent_rot_takes_no_place(unlimited: CheckpointManager) -> None:
    """A cleanup by hand reads what is to stay while others go: a rotten one keeps no good one out."""
    oldest, second, third, newest = (save(unlimited, epoch, loss) for epoch, loss in enumerate((4, 3, 2, 1), start=1))
    flip_bit(payload_path(unlimited, third), 100)
    report = cleaner(unlimited).cleanup_checkpoints(policy=KeepNewest(count=2))
    assert report.deleted_ids == (oldest,)
    assert ids(unlimited) == [second, third, newest]
    statuses = {decision.checkpoint_id: decision.status for decision in report.plan.decisions if decision.keep}
    assert statuses == {newest: "valid", third: "damaged", second: "valid"}


def test_a_cleanup_that_deletes_nothing_reads_little(
    unlimited: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing is to go, only the newest and the best are read."""
    for epoch in range(1, 5):
        save(unlimited, epoch, 1 / epoch)
    read: list[str] = []

    def counted(folder: Any, manifest: Any, *arguments: Any) -> Any:
        read.append(manifest.checkpoint_id)
        return validate(folder, manifest, *arguments)

    monkeypatch.setattr("ckpt_lib.maintenance.validate.validate", counted)
    assert cleaner(unlimited).cleanup_checkpoints().deleted_ids == ()
    assert read == ids(unlimited)[-1:]


@pytest.mark.parametrize("damage", ["altered", "missing"])
@pytest.mark.parametrize("how", ["clean up", "save nothing more", "a full disk"])
def test_the_trash_keeps_what_is_sound_while_all_that_is_live_is_damaged(
    make_manager: MakeManager, damage: str, how: str
) -> None:
    """The grace period of the last good one is over: it comes back instead of going."""
    options: dict[str, Any] = {"backup_checkpoints": False, "trash_seconds": 0.0}
    manager = make_manager(**options)
    good, rotten = save(manager, 1), save(manager, 2)
    held = make_manager(**{**options, "trash_seconds": 1000.0})
    held.delete_checkpoint(good)
    if damage == "altered":
        flip_bit(payload_path(manager, rotten), 700)
    else:
        payload_path(manager, rotten).unlink()
    later = make_manager(**options)
    if how == "clean up":
        assert later.cleanup_checkpoints().expired_ids == ()
    elif how == "a full disk":
        reclaim(later._cleaner, None)
    else:
        later._cleaner.delete_surplus()
    assert ids(later) == [good, rotten]
    assert later.validate_checkpoint(good)


def test_a_quarantine_brings_back_what_is_sound(make_manager: MakeManager) -> None:
    """The newest that was deleted has lost its payload, so the one before it comes back."""
    manager = make_manager(backup_checkpoints=False)
    good, lost, rotten = (save(manager, epoch) for epoch in range(3))
    manager.delete_checkpoint(good)
    manager.delete_checkpoint(lost)
    payload_path(manager, lost).unlink()
    flip_bit(payload_path(manager, rotten), 700)
    manager.quarantine_checkpoint(rotten)
    assert ids(manager) == [good]
    assert manager.load_checkpoint("latest")["epoch"] == 0


def test_a_deletion_says_that_the_last_sound_one_came_back(make_manager: MakeManager) -> None:
    """All others are damaged and the trash is emptied at once: the caller is told that nothing was deleted."""
    manager = make_manager(trash_seconds=0, backup_checkpoints=False)
    damaged, sound = save(manager, 1), save(manager, 2)
    flip_bit(payload_path(manager, damaged), 700)
    manager = make_manager(trash_seconds=0, backup_checkpoints=False)  # a new process, which has read neither
    with pytest.raises(ProtectedCheckpointError, match="all others are damaged"):
        manager.delete_checkpoint(sound)
    assert manager.validate_checkpoint(sound)
