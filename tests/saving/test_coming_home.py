"""Coming home: what is stranded comes home as it was saved, in order, and no damage costs a good copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core import facts
from ckpt_lib.errors import ConfigError, NotDurableError, StorageFullError
from ckpt_lib.events import Event
from tests.helpers import MakeManager, backup_ids, flip_bit, ids, save
from tests.saving.failing_stores import (
    AWAY,
    committing,
    failing,
    home_payload,
    interrupted,
    kinds,
    store_of,
    strand,
    stranded_manifest,
)

pytestmark = pytest.mark.usefixtures("_no_waiting")


def test_what_comes_home_is_what_was_saved(make_safe: MakeManager, seen: list[Event]) -> None:
    """Id, uid, metrics, tags, time, parent, key and bytes; its place is the last."""
    manager = make_safe()
    first = save(manager, 1)
    (stranded,) = strand(manager, 2, loss=0.25, tags=["a"], description="text", idempotency_key="key")
    before = stranded_manifest(manager, stranded)
    report = manager.reconcile()
    assert (bool(report), report.moved, report.failed) == (True, {stranded: stranded}, {})
    assert report.moved_bytes == before.size_bytes
    brought = manager._locations.home.get(stranded)
    assert brought.describe() == before.describe().model_copy(update={"sequence": 2})
    assert (brought.uid, brought.parent_id, brought.idempotency_key) == (before.uid, first, "key")
    assert brought.payload.sha256 == before.payload.sha256
    assert manager.list_stranded() == []
    assert kinds(seen)[-1] == "checkpoint.reconciled"
    assert manager.reconcile().moved == {}


def test_the_next_healthy_save_brings_them_home_in_order(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of one second, epoch and step: the order is that of saving, and who finds its id taken gets another."""
    monkeypatch.setattr(facts, "datetime", StoppedClock)
    manager = make_safe(backup_checkpoints=True)
    save(manager, 1, 0.1)
    strand(manager, 1, loss=0.2)
    strand(manager, 1, loss=0.3)
    save(manager, 1, 0.4)
    strand(manager, 1, loss=0.5)
    save(manager, 1, 0.6)
    assert [item.metrics["val_loss"] for item in manager.list_checkpoints()] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [item.sequence for item in manager.list_checkpoints()] == [1, 2, 3, 4, 5, 6]
    assert manager.list_stranded() == []
    assert sorted(backup_ids(manager)) == sorted(ids(manager))


class StoppedClock:
    """A clock on which no second passes."""

    @staticmethod
    def now(zone: Any) -> Any:
        from datetime import datetime

        return datetime(2024, 1, 1, tzinfo=zone)


def test_a_place_that_another_process_took_is_not_taken_twice(
    make_safe: MakeManager, make_manager: MakeManager
) -> None:
    """One without a fallback folder knows nothing of the stranded ones, which then come as the newest, in order."""
    manager = make_safe()
    first = save(manager, 1)
    stranded = strand(manager, 2, 3)
    others = save(make_manager(max_checkpoints=1000), 4)
    manager.reconcile()
    found = {item.checkpoint_id: item.sequence for item in manager.list_checkpoints()}
    assert set(found) == {first, others, *stranded}
    assert found[first] < found[others] < found[stranded[0]] < found[stranded[1]]


def test_what_lost_its_place_is_followed_by_what_went_on_from_it(
    make_safe: MakeManager, make_manager: MakeManager
) -> None:
    """A gap that retirement left is no place for a child of something newer."""
    manager = make_safe()
    save(manager, 1)
    stranded = strand(manager, 2, 3)
    other = make_manager(max_checkpoints=1000, trash_seconds=0, backup_checkpoints=False)
    others = [save(other, epoch) for epoch in (4, 5, 6)]
    other.delete_checkpoint(others[1])  # which had the place of the second stranded one
    manager.reconcile()
    assert ids(manager)[-2:] == stranded


def test_a_run_that_began_blind_is_newer_than_what_was_there(make_safe: MakeManager) -> None:
    """It never saw the order of its store: its checkpoints come home first, behind the old and before the new."""
    old = [save(make_safe(), epoch) for epoch in (1, 2, 3)]
    make_safe().delete_checkpoint(old[0])
    blind = make_safe()
    with failing(blind, AWAY):
        stranded = [save(blind, epoch) for epoch in (4, 5)]
    new = save(blind, 6)
    assert ids(blind) == [*old[1:], *stranded, new]
    assert [item.sequence for item in blind.list_checkpoints()] == [2, 3, 4, 5, 6]


def test_a_damaged_one_stays_and_keeps_no_other_from_coming_home(
    make_safe: MakeManager, fallback_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with the reason; saves do not read it again and again."""
    manager = make_safe()
    stranded = strand(manager, 1, 2)
    flip_bit(fallback_dir / "run" / f"{stranded[0]}.pt", 300)
    saved = save(manager, 3)
    assert ids(manager) == [stranded[1], saved]
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded[0]]
    assert manager._fallback is not None
    assert not manager._fallback.has_work
    report = manager.reconcile()
    assert not report
    assert list(report.failed) == stranded[:1]
    assert "damaged" in report.failed[stranded[0]]
    assert (fallback_dir / "run" / f"{stranded[0]}.pt").exists()


def test_a_copy_that_is_damaged_at_home_does_not_cost_the_good_one(make_safe: MakeManager, fallback_dir: Path) -> None:
    """Only what verifies at home is removed here."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    flip_bit(home_payload(manager, stranded), 300)
    report = make_safe().reconcile()
    assert list(report.failed) == [stranded]
    assert "in the store is damaged" in report.failed[stranded]
    assert CheckpointManager(CheckpointConfig(checkpoint_dir=str(fallback_dir)), "run").validate_checkpoint(stranded)


def test_a_copy_in_quarantine_that_reads_well_again_is_seen_again(make_safe: MakeManager) -> None:
    """A bad cable can be mended: the copy leaves its quarantine before the stranded one, which is sound, goes."""
    manager = make_safe()
    save(manager, 1)
    (stranded,) = strand(manager, 2)
    interrupted(manager, stranded)
    sound = home_payload(manager, stranded).read_bytes()
    flip_bit(home_payload(manager, stranded), 500)
    manager.quarantine_checkpoint(stranded)
    home_payload(manager, stranded).write_bytes(sound)
    assert manager.reconcile().already_home == {stranded: stranded}
    assert (manager.list_stranded(), manager.list_quarantined()) == ([], [])
    assert ids(manager)[-1] == stranded


def test_deleting_the_damaged_copy_at_home_does_not_cost_the_good_one(
    make_safe: MakeManager, fallback_dir: Path
) -> None:
    """Which is what the error advises: then the good one comes home."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    flip_bit(home_payload(manager, stranded), 300)
    manager.delete_checkpoint(stranded)
    (home_id,) = make_safe().reconcile().moved.values()
    assert manager.validate_checkpoint(home_id)
    assert manager.list_stranded() == []


def test_what_was_committed_but_may_not_be_durable_is_followed_home(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in both places: the report tells which is left, and the next save goes on from that."""
    manager = make_safe(save_metadata=False)
    with monkeypatch.context() as patch:
        patch.setattr(store_of(manager), "put", committing(store_of(manager), NotDurableError("not durable")))
        stranded = save(manager, 1)
    (home_id,) = ids(manager)
    assert manager.reconcile().already_home == {stranded: home_id}
    assert manager._locations.home.get(save(manager, 2)).parent_id == home_id


def test_what_is_home_already_is_only_removed(make_safe: MakeManager, fallback_dir: Path) -> None:
    """One checkpoint, told by its uid, though someone has changed its tags at home meanwhile."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    manager.edit_checkpoint(stranded, add_tags=["changed"])
    report = make_safe().reconcile()
    assert (report.moved, report.already_home) == ({}, {stranded: stranded})
    assert ids(manager) == [stranded]
    assert manager.get_checkpoint(stranded).tags == ("changed",)
    assert manager.list_stranded() == []


def test_what_was_deleted_at_home_does_not_come_back(make_safe: MakeManager, fallback_dir: Path) -> None:
    """Someone has deleted it there after it came home; what is left here goes, too."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    manager.delete_checkpoint(stranded)
    assert make_safe().reconcile().already_home == {stranded: stranded}
    assert (ids(manager), manager.list_stranded()) == ([], [])
    assert manager.undelete_checkpoint(stranded).checkpoint_id == stranded


def test_without_room_at_home_nothing_is_begun(make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it is, and a save that fits is made nevertheless."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_of(manager), "free_bytes", lambda: 1)
        with pytest.raises(StorageFullError, match=f"move {stranded}"):
            manager.reconcile()
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded]
    assert manager.reconcile().moved == {stranded: stranded}


def test_reconciling_without_a_fallback_folder_is_refused(make_manager: MakeManager) -> None:
    """Rather than doing nothing."""
    with pytest.raises(ConfigError, match="fallback"):
        make_manager().reconcile()
    assert make_manager().list_stranded() == []
