"""Ids and order: none is given twice, and the newest is the one that was saved last."""

from __future__ import annotations

import pytest

from ckpt_lib import CheckpointManager
from tests.helpers import MakeManager, flip_bit, ids, manifest_path, save


def test_the_newest_is_found_by_sequence_and_not_by_clock(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stamps that go backwards change neither latest nor the order of lists."""
    import datetime as standard

    from ckpt_lib.core import facts

    class Clock(standard.datetime):
        hour_now = 12

        @classmethod
        def now(cls, tz: standard.tzinfo | None = None) -> Clock:
            return cls(2023, 12, 1, cls.hour_now, 30, 22, tzinfo=tz)

    monkeypatch.setattr(facts, "datetime", Clock)
    saved = []
    for hour in (12, 9, 6):
        Clock.hour_now = hour
        saved.append(save(manager, 1))
    assert saved == [f"checkpoint_epoch_0001_step_000000_20231201_{hour}3022" for hour in ("12", "09", "06")]
    assert ids(manager) == saved
    assert manager.get_checkpoint("latest").checkpoint_id == saved[-1]
    assert [item.sequence for item in manager.list_checkpoints()] == [1, 2, 3]


def test_saves_of_one_second_get_ids_of_their_own(manager: CheckpointManager) -> None:
    """Epoch and step repeated within a second never overwrite: ids differ by a suffix, and order is kept."""
    saved = [save(manager, 1) for _ in range(4)]
    assert len(set(saved)) == 4
    assert ids(manager) == saved
    assert all(manager.validate_checkpoint(item) for item in saved)


def test_an_id_and_a_sequence_are_not_given_again_while_a_backup_has_them(manager: CheckpointManager) -> None:
    """What is saved after a deletion cannot be confused with what a backup may bring back, nor come before it."""
    first, second = save(manager, 1), save(manager, 9)
    manager.delete_checkpoint(second)
    third = save(manager, 2)
    fourth = save(manager, 9)
    manager.restore_checkpoint(second)
    assert fourth != second
    assert ids(manager) == [first, second, third, fourth]
    assert len({item.sequence for item in manager.list_checkpoints()}) == 4


@pytest.mark.parametrize("backup", [True, False])
def test_a_damaged_manifest_keeps_its_place_in_the_order(make_manager: MakeManager, backup: bool) -> None:
    """The next save comes after the checkpoint whose manifest cannot be read, also once that is back."""
    manager = make_manager(backup_checkpoints=backup)
    first, second = save(manager, 1), save(manager, 9)
    content = manifest_path(manager, second).read_bytes()
    flip_bit(manifest_path(manager, second), 50)
    third = save(manager, 2)
    manifest_path(manager, second).write_bytes(content)
    assert ids(manager) == [first, second, third]
    assert manager.get_checkpoint("latest").checkpoint_id == third


def test_an_id_that_retention_freed_is_not_given_again(make_manager: MakeManager) -> None:
    """Many saves of one second and few places: each save still gets an id of its own."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=2)
    saved = [save(manager, 1) for _ in range(8)]
    assert len(set(saved)) == len(saved)
