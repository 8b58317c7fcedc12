"""Background saves: their order, how many there may be, and the memory and time that they take."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pytest

from ckpt_lib.maintenance.both_copies import Copies
from tests.helpers import MakeManager, build, ids, save, train
from tests.saving.under_way import Gate, start


def test_latest_moves_when_the_save_is_durable(make_manager: MakeManager, gate: Gate) -> None:
    """Until then whoever asks is told of the one before."""
    manager = make_manager()
    first = save(manager, 0)
    gate.open.clear()
    handle = start(manager, 1)
    assert not handle.done()
    assert ids(manager) == [first]
    gate.open.set()
    second = handle.result()
    assert ids(manager) == [first, second]


def test_saves_keep_their_order(make_manager: MakeManager) -> None:
    """Background and blocking ones alike are committed as they were called, each the child of the one before."""
    manager = make_manager(max_pending_saves=3, max_checkpoints=100)
    handles = [start(manager, epoch) for epoch in range(5)]
    last = save(manager, 5)
    assert ids(manager) == [*(handle.result() for handle in handles), last]
    manager.flush()
    parents = [manager._locations.home.get(checkpoint_id).parent_id for checkpoint_id in ids(manager)]
    assert parents == [None, *ids(manager)[:-1]]


@pytest.mark.parametrize("limit", [1, 3])
def test_one_more_than_the_limit_waits(make_manager: MakeManager, gate: Gate, limit: int) -> None:
    """A store that is slower than training holds training up instead of filling the memory."""
    manager = make_manager(max_pending_saves=limit)
    gate.open.clear()
    for epoch in range(limit):
        start(manager, epoch)
    late = threading.Thread(target=start, args=(manager, limit))
    late.start()
    late.join(timeout=0.3)
    assert late.is_alive()
    gate.open.set()
    late.join(timeout=30)
    manager.flush()
    assert len(ids(manager)) == limit + 1


def test_staging_memory_is_reported_and_used_again(make_manager: MakeManager, gate: Gate) -> None:
    """As much as the state for each save under way, no more after many, none after closing."""
    manager, parts = make_manager(max_pending_saves=2), build(width=1000)
    train(parts, [0])
    size_bytes = sum(parameter.nbytes for parameter in parts.model.parameters()) * 3
    assert manager.staging_bytes == 0
    manager.prepare(**parts.kwargs())
    prepared = manager.staging_bytes
    assert 2 * size_bytes <= prepared < 2 * size_bytes + 60_000  # generators are in it as well
    for epoch in range(6):
        manager.save_checkpoint_async(**parts.kwargs(), epoch=epoch)
    assert manager.staging_bytes == prepared
    manager.close()
    assert manager.staging_bytes == 0
    assert manager.save_checkpoint_async(**parts.kwargs(), epoch=6).result() in ids(manager)


def test_backups_are_not_in_the_way_of_the_next_save(make_manager: MakeManager, monkeypatch: Any) -> None:
    """A backup location that hangs holds up neither the handle nor a further save; ``flush`` waits for it."""
    manager, gate = make_manager(), threading.Event()
    original = Copies.back_up

    def slow(*arguments: Any, **options: Any) -> bool:
        assert gate.wait(30)
        return original(*arguments, **options)

    monkeypatch.setattr(Copies, "back_up", slow)
    handles = [start(manager, epoch) for epoch in range(3)]
    assert [handle.result(timeout=30) for handle in handles] == ids(manager)
    gate.set()
    manager.flush()
    assert manager.backup_ids() == ids(manager)


def test_the_policy_counts_saves_under_way(make_manager: MakeManager, gate: Gate) -> None:
    """Only improvements are saved, also over one that is not on disk yet."""
    manager = make_manager(save_best_only=True, max_pending_saves=3)
    gate.open.clear()
    handles = [start(manager, epoch, metrics={"val_loss": loss}) for epoch, loss in enumerate((0.5, 0.6, 0.4))]
    gate.open.set()
    assert [handle.result() for handle in handles] == [ids(manager)[0], None, ids(manager)[1]]


def test_a_key_is_saved_once(make_manager: MakeManager, gate: Gate) -> None:
    """Repeating a save that is under way returns its handle; afterwards, its id."""
    manager = make_manager()
    gate.open.clear()
    first = start(manager, 0, idempotency_key="a")
    assert start(manager, 0, idempotency_key="a") is first
    gate.open.set()
    assert start(manager, 0, idempotency_key="a").result() == first.result()
    assert ids(manager) == [first.result()]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has priorities of threads")
def test_saving_steps_back_behind_training(saves_step_back: None, make_manager: MakeManager, gate: Gate) -> None:
    """The thread that hashes and writes takes little of the processor time that training wants."""
    manager = make_manager()
    gate.open.clear()
    handle = start(manager, 0)
    thread = next(thread for thread in threading.enumerate() if thread.name == "ckpt-save")
    assert thread.native_id is not None
    while os.getpriority(os.PRIO_PROCESS, thread.native_id) == 0:  # it is just starting
        time.sleep(0.001)
    assert os.getpriority(os.PRIO_PROCESS, thread.native_id) == 10
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0
    gate.open.set()
    handle.result()
