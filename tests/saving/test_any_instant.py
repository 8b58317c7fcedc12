"""An interrupt at every instant of the code that holds locks: whatever comes next finds nothing held.

Python calls signal handlers when a call returns, a function begins or a loop goes round. Before each instruction in
turn, one after the other, an interrupt is made pending here; it comes at the next such place, as a real one does.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.formats import gc_pause
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.saving.background import BackgroundSaves, wait_until_all_copied
from ckpt_lib.saving.worker import Worker
from ckpt_lib.store.local import LocalStore, folder_lock
from tests.helpers import MakeManager

# Where the interrupt comes while a finalizer runs, Python prints it and goes on.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SECONDS = 5.0
"""What comes after an interrupt takes far less; a lock that is held would take minutes, or for ever."""


class _Arm:
    """``-ARM`` makes an interrupt pending by an instruction that is itself no place for one."""

    __neg__ = staticmethod(_thread.interrupt_main)


ARM: Any = _Arm()


def codes_of(module: ModuleType) -> set[CodeType]:
    """The code of every function and method of a module."""
    found: set[CodeType] = set()
    waiting: list[Any] = list(vars(module).values())
    while waiting:
        item = waiting.pop()
        if isinstance(item, type) and item.__module__ == module.__name__:
            waiting += vars(item).values()
        for inner in (
            item,
            getattr(item, "__func__", None),
            getattr(item, "fget", None),
            getattr(item, "__wrapped__", None),
        ):
            if isinstance(inner, FunctionType) and inner.__module__ == module.__name__:
                found.add(inner.__code__)
    return found


class Interrupter:
    """Runs an action, with an interrupt before its ``n``-th instruction in some code."""

    def __init__(self, codes: set[CodeType]) -> None:
        self._codes = codes
        self._left = 0

    def run(self, action: Callable[[], object], number: int) -> bool:
        """Whether there were so many instructions."""
        self._left = number
        earlier, traced = signal.signal(signal.SIGINT, _interrupt), sys.gettrace()
        sys.settrace(self._enter)
        try:
            action()
        finally:
            sys.settrace(traced)
            signal.signal(signal.SIGINT, earlier)
        return self._left <= 0

    def _enter(self, frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_code not in self._codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, _frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                _ = -ARM
        return self._step


_TRACERS = {Interrupter._enter.__code__, Interrupter._step.__code__}


def _interrupt(_number: int, frame: FrameType | None) -> None:
    """Raise, but not in the code that watches: there it stays pending."""
    if frame is not None and frame.f_code in _TRACERS:
        _ = -ARM
        return
    raise KeyboardInterrupt


def at_every_instant(codes: set[CodeType], action: Callable[[], object]) -> Iterator[KeyboardInterrupt | None]:
    """Yield after each interrupt, while it is still being handled, as in the ``except`` of a training script."""
    interrupter, number, more = Interrupter(codes), 0, True
    while more:
        number += 1
        interrupt = None
        try:
            more = interrupter.run(action, number)
        except KeyboardInterrupt as error:
            interrupt = error
        yield interrupt
    assert number > 20, "nothing was traced"


def in_time(action: Callable[[], object]) -> None:
    """Run it on a thread of its own: one that hangs would hang the test."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it hangs"
    assert not failed, failed


@pytest.mark.parametrize("module", [folder_lock, contextlib], ids=["lock", "contextlib"])
def test_locks_of_the_store(tmp_path: Path, module: ModuleType) -> None:
    """A write works after each, on this thread and on another, and does not wait."""
    store = LocalStore(str(tmp_path), patience_seconds=3.0)

    def write() -> None:
        store.put("run/a", b"")

    write()
    for number, _interrupt in enumerate(at_every_instant(codes_of(module), write)):
        began = time.monotonic()
        in_time(write) if number % 2 else write()
        write() if number % 2 else in_time(write)
        assert time.monotonic() - began < SECONDS / 2


def test_the_search_for_garbage_goes_on() -> None:
    """After an interrupt in a pause, or before or after one, once the interrupt has been handled."""

    def pause() -> None:
        for _ in range(2):
            with CollectionPause():
                pass

    assert gc.isenabled()
    for interrupt in at_every_instant(codes_of(gc_pause), pause):
        if interrupt is not None:
            interrupt.__traceback__ = None
        assert gc.isenabled()
        assert not CollectionPause._open


def test_a_thread_whose_start_was_interrupted_takes_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may begin after all, while another works: then a wait for that one still waits."""
    worker, begin, go_on = Worker("test"), threading.Event(), threading.Event()
    done: list[str] = []
    start, late = threading.Thread.start, threading.Thread(target=lambda: begin.wait(30) and run[0]())
    run: list[Callable[[], object]] = []

    def interrupted(thread: threading.Thread) -> None:
        run.append(thread.run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.put(lambda: done.append("refused"))
    start(late)

    def first() -> None:
        go_on.wait(30)
        done.append("first")

    worker.put(first)
    worker.put(lambda: done.append("second"))
    begin.set()
    late.join(SECONDS)
    assert done == []  # the late one took none, and did not say that all is done
    waiting = threading.Thread(target=worker.wait, daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    go_on.set()
    waiting.join(SECONDS)
    assert done == ["first", "second"]


def test_steps_go_on_while_managers_are_made() -> None:
    """The list of those that save is read in one step, while other threads add to it."""
    interval, stop = sys.getswitchinterval(), threading.Event()
    failed: list[RuntimeError] = []

    def make() -> None:
        while not stop.is_set():
            kept = [BackgroundSaves(1) for _ in range(50)]
            del kept

    makers = [threading.Thread(target=make) for _ in range(2)]
    sys.setswitchinterval(1e-5)
    try:
        for maker in makers:
            maker.start()
        until = time.monotonic() + 2
        while time.monotonic() < until and not failed:
            try:
                wait_until_all_copied()
            except RuntimeError as error:
                failed.append(error)
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        for maker in makers:
            maker.join()
    assert not failed


def test_a_save_is_begun_whole_or_not_at_all(make_manager: MakeManager) -> None:
    """After each interrupt in starting one, the next is saved, and what was saved is what was to be."""
    saving = make_manager(backup_checkpoints=False, save_metadata=False, max_checkpoints=2)
    model = nn.Linear(8, 8)
    codes = {vars(kind)[name].__code__ for kind, name in ((BackgroundSaves, "start"), (BackgroundSaves, "_begin"))}
    codes |= {Worker.put.__code__, vars(BackgroundSaves)["_forget"].__code__}

    def use() -> None:
        saving.save_checkpoint_async(model=model, epoch=1)

    for number, _ in enumerate(at_every_instant(codes, use), 2):
        with torch.no_grad():
            model.weight.fill_(number)
        handle = saving.save_checkpoint_async(model=model, epoch=number)
        assert handle.result(timeout=SECONDS) is not None
        saving.flush()
        assert saving.load_checkpoint()["model_state_dict"]["weight"].unique().tolist() == [number]
