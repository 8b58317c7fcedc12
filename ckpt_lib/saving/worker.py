"""Threads that work while training goes on, and who waits for them: the end of the process, and nobody in a fork."""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import multiprocessing.util
import os
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from functools import cache, partial

from ckpt_lib.core.logs import logger
from ckpt_lib.stream.threads import Helper

NICENESS = 10
"""Training comes first: where it wants every processor, saving gets a tenth of one, and elsewhere what it needs."""


class Worker:
    """Does one thing after the other on a thread, which lives for as long as there is something to do.

    Neither what waits for the thread nor the lock, a plain one, is left held by an interrupt.
    """

    def __init__(self, name: str, *, steps_back: bool = False) -> None:
        """``steps_back`` lets the thread work behind training."""
        self._name = name
        self._steps_back = steps_back
        self._tasks: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()
        self._thread: Helper | None = None

    def put(self, task: Callable[[], object]) -> None:
        """Do ``task`` later, in the context of the caller, to which whoever hears of an event belongs."""
        with self._lock:
            self._tasks.append(partial(contextvars.copy_context().run, task))
            if self._thread is not None:
                return
            # A daemon: the interpreter waits for it in an exit handler, while threads may still be started.
            self._thread = Helper(self._work, self._name)
            try:
                self._thread.start()
            except BaseException:  # it may begin later all the same, and ends when it finds that it is not this one
                self._thread = None
                self._tasks.pop()
                raise

    @property
    def is_current(self) -> bool:
        """True on this thread."""
        return self._thread is threading.current_thread()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Return once there is nothing left to do, or ``False`` when that takes longer."""
        if self.is_current:
            raise RuntimeError("a callback of a save waits for the thread that called it")
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while (thread := self._current_thread()) is not None:
            if not thread.wait(None if deadline is None else deadline - time.monotonic()):
                return False
        return True

    def _current_thread(self) -> Helper | None:
        with self._lock:  # under which it is started: what has not begun cannot be waited for
            return self._thread

    def _work(self) -> None:
        if self._steps_back:
            _step_back(NICENESS)
        while (task := self._next_task()) is not None:
            try:
                task()
            except BaseException:  # whatever it is, others wait for this thread
                logger.exception("%s failed", self._name)

    def _next_task(self) -> Callable[[], object] | None:
        with self._lock:
            if not self.is_current:  # its start was interrupted
                return None
            if self._tasks:
                return self._tasks.popleft()
            self._thread = None
            return None


def _step_back(niceness: int) -> None:
    """Lower the priority of this thread, and of those it starts; Linux alone has priorities of threads."""
    if niceness and sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))


class Background(ABC):
    """Work in the background that the interpreter waits for when it ends, and that a forked child leaves alone."""

    comes_last = False
    """Whether other work may bring more of this: then it is waited for at the end."""

    def __init__(self) -> None:
        self._reset()
        _LIVING.add(weakref.ref(self, _LIVING.discard))

    @abstractmethod
    def _reset(self) -> None:
        """Begin with nothing to do, and no threads."""

    @abstractmethod
    def flush(self) -> None:
        """Return once all is done; raise an error that no one has seen."""


_LIVING: set[weakref.ref[Background]] = set()
"""A plain set, which is listed in one step while other threads add to it."""


def living() -> list[Background]:
    """Return all that may have something to do in this process."""
    return [work for reference in list(_LIVING) if (work := reference()) is not None]


def _flush_all() -> None:
    for work in sorted(living(), key=lambda work: work.comes_last):
        try:
            work.flush()
        except Exception as error:  # it was logged when it happened; nothing is left that could catch it
            logger.error("background work had failed before the end: %s", error)


@cache
def flush_at_end() -> None:
    """Have the end of this process wait for its work; one that multiprocessing started calls no exit handlers."""
    atexit.register(_flush_all)
    multiprocessing.util.Finalize(None, _flush_all, exitpriority=0)


def _forget_all() -> None:
    """A forked child has none of the threads, and the work is its parent's."""
    flush_at_end.cache_clear()
    for work in living():
        work._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
