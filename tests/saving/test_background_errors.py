"""Errors of background saves: each comes out once, at the next call at the latest, and nobody hangs."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import CheckpointError, StorageFullError
from ckpt_lib.maintenance.both_copies import Copies
from tests.helpers import MakeManager, build, ids, save, train
from tests.saving.under_way import Gate, raising, start


@pytest.mark.parametrize("call", ["save", "save in the background", "flush"])
def test_an_error_comes_out_at_the_next_call(
    make_manager: MakeManager, gate: Gate, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """Once, before anything else is done; it is in the log at once; what was there stays the latest."""
    manager = make_manager()
    first = save(manager, 0)
    gate.error = StorageFullError("the store is full")
    with caplog.at_level(logging.ERROR):
        handle = start(manager, 1)
        while not handle.done():
            time.sleep(0.001)
    gate.error = None
    assert "the store is full" in caplog.text
    assert ids(manager) == [first]
    calls: dict[str, Any] = {"save": lambda: save(manager, 2), "save in the background": lambda: start(manager, 2)}
    with pytest.raises(StorageFullError):
        calls.get(call, manager.flush)()
    manager.flush()
    assert ids(manager) == [first]
    save(manager, 3)


def test_an_error_that_was_seen_is_not_raised_again(make_manager: MakeManager, gate: Gate) -> None:
    """Whoever asked the handle knows."""
    manager = make_manager()
    gate.error = StorageFullError("the store is full")
    handles = [start(manager, 0)]
    with pytest.raises(StorageFullError):
        handles[0].result()
    gate.error = None
    manager.flush()
    assert start(manager, 1).exception() is None


def test_each_of_several_errors_is_raised(make_manager: MakeManager, gate: Gate) -> None:
    """One at a time, oldest first."""
    manager = make_manager(max_pending_saves=3)
    gate.open.clear()
    gate.error = StorageFullError("the store is full")
    for epoch in range(3):
        start(manager, epoch)
    gate.open.set()
    for _ in range(3):
        with pytest.raises(StorageFullError):
            manager.flush()
    manager.flush()


def test_an_error_that_comes_while_others_are_raised_is_kept(make_manager: MakeManager, gate: Gate) -> None:
    """A save may end between two looks at it."""
    manager = make_manager()
    gate.open.clear()
    gate.error = StorageFullError("the store is full")
    handle = start(manager, 0)
    is_done = handle.done

    def ends_after_the_look() -> bool:
        found = is_done()
        gate.open.set()
        handle._condition.acquire()
        handle._condition.wait_for(is_done, timeout=30)
        handle._condition.release()
        return bool(found)

    handle.done = ends_after_the_look
    manager._saver.background.raise_failure()
    del handle.done
    with pytest.raises(StorageFullError):
        manager.flush()


def test_the_context_ends_with_everything_saved(make_manager: MakeManager, gate: Gate) -> None:
    """Leaving it waits, and raises what went wrong."""
    with make_manager() as manager:
        handle = start(manager, 0)
    assert handle.done()
    assert manager.backup_ids() == ids(manager)
    gate.error = StorageFullError("the store is full")
    with pytest.raises(StorageFullError), make_manager("other") as manager:
        start(manager, 0)


def test_a_refused_save_leaves_nothing_behind(make_manager: MakeManager) -> None:
    """Bad input is refused before a buffer is taken: the next save finds one free."""
    manager = make_manager()
    for options in ({"epoch": -1}, {"epoch": 0, "tags": "x y" * 100}, {"epoch": 0, "extra_state": {"a": object()}}):
        with pytest.raises(CheckpointError):
            manager.save_checkpoint_async(model=nn.Linear(2, 1), **options)
    assert start(manager, 0).result(timeout=30) in ids(manager)


def test_a_lack_of_memory_for_the_copy_is_an_error(make_manager: MakeManager, monkeypatch: Any) -> None:
    """The call says so, with a way out, and the next save works."""
    manager, empty = make_manager(), torch.empty

    def refuse(*arguments: Any, **options: Any) -> Any:
        if "pin_memory" in options:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return empty(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", refuse)
        with pytest.raises(MemoryError, match="blocking"):
            start(manager, 0)
    assert start(manager, 0).result(timeout=30) in ids(manager)


def test_a_wait_that_timed_out_has_not_seen_the_error(make_manager: MakeManager, gate: Gate) -> None:
    """What fails after it is still raised."""
    manager = make_manager()
    gate.open.clear()
    gate.error = StorageFullError("the store is full")
    handle = start(manager, 0)
    for ask in (handle.result, handle.exception):
        with pytest.raises(TimeoutError):
            ask(timeout=0.001)
    gate.open.set()
    with pytest.raises(StorageFullError):
        manager.flush()


def test_the_context_keeps_the_error_of_its_body(make_manager: MakeManager, gate: Gate) -> None:
    """A failed save is noted on it, and does not take its place."""
    gate.error = StorageFullError("the store is full")

    def body() -> None:
        with make_manager() as manager:
            start(manager, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        body()
    assert "the store is full" in raised.value.__notes__[0]


def test_closing_lets_those_go_on_who_wait(make_manager: MakeManager, gate: Gate) -> None:
    """A save that waits for its turn in another thread gets it, and no more saves are under way than may be."""
    manager = make_manager()
    gate.open.clear()
    start(manager, 0)
    waiting = [threading.Thread(target=start, args=(manager, epoch)) for epoch in (1, 2, 3)]
    for thread in waiting:
        thread.start()
    closing = threading.Thread(target=manager.close)
    closing.start()
    time.sleep(0.05)
    gate.open.set()
    for thread in (*waiting, closing):
        thread.join(timeout=30)
        assert not thread.is_alive()
    manager.flush()
    assert len(ids(manager)) == 4
    assert len(manager._saver.background._buffers) <= 1


def test_a_callback_may_save(make_manager: MakeManager) -> None:
    """Handles are futures: what is done with their outcome may be another save, but must not wait for itself."""
    manager, seen = make_manager(), []

    def again(_handle: Any) -> None:
        seen.append(start(manager, 1))
        with pytest.raises(RuntimeError, match="waits for the thread"):
            manager.flush()
        seen.append("refused")

    start(manager, 0).add_done_callback(again)
    while len(seen) < 2:
        time.sleep(0.001)
    assert seen[0].result(timeout=30) in ids(manager)


def test_a_callback_does_not_wait_for_a_later_save(make_manager: MakeManager) -> None:
    """Which has the only buffer, and is to be committed by the thread that calls back: an error, and no deadlock."""
    manager, begun, taken, errors = make_manager(), threading.Event(), threading.Event(), []

    def again(_handle: Any) -> None:
        begun.set()
        assert taken.wait(30)
        with pytest.raises(RuntimeError, match="would wait for a later save") as raised:
            start(manager, 2)
        errors.append(raised.value)

    first = start(manager, 0)
    first.add_done_callback(again)
    assert begun.wait(30)
    later = start(manager, 1)
    taken.set()
    assert later.result(timeout=30) in ids(manager)
    assert len(errors) == 1


@pytest.mark.parametrize("error", [SystemExit(1), ValueError("odd")], ids=["exit", "error"])
def test_what_follows_a_save_may_fail_in_any_way(make_manager: MakeManager, monkeypatch: Any, error: Any) -> None:
    """Nobody hangs, and the save stands."""
    manager = make_manager()
    monkeypatch.setattr(Copies, "back_up", lambda *_arguments, **_options: raising(error)())
    handle = start(manager, 0)
    manager.flush()
    assert ids(manager) == [handle.result()]


def test_threads_that_cannot_be_started_are_an_error(make_manager: MakeManager, monkeypatch: Any) -> None:
    """The call says so, and the next one works."""
    manager = make_manager()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _self: raising(RuntimeError("can't start new thread"))())
        with pytest.raises(RuntimeError, match="can't start"):
            start(manager, 0)
    assert start(manager, 1).result(timeout=30) in ids(manager)


def test_a_save_that_cannot_begin_stops_its_copy(make_manager: MakeManager, monkeypatch: Any) -> None:
    """Nothing writes to the buffer any more once it may be used for the next save."""
    manager, parts, held = make_manager(overlap_copy=True), build(width=20_000), threading.Event()
    train(parts, [0])
    background, begin = manager._saver.background, threading.Thread.start
    background._copying.put(held.wait)

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ckpt-save":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        manager.save_checkpoint_async(**parts.kwargs(), epoch=0)
    (buffer,) = background._buffers
    before = buffer.part(0, buffer.size_bytes).clone()
    held.set()
    background._copying.wait()
    assert torch.equal(buffer.part(0, buffer.size_bytes), before)
