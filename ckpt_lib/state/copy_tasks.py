"""Copies memory in parts, each of them once, on several threads."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from ckpt_lib.stream.chunks import processor_count
from ckpt_lib.stream.threads import Helper

_MAX_THREADS = 8
"""More threads do not copy faster: memory bandwidth is the limit."""


class CopyTask:
    """Copies one part of the memory once, on the first thread that asks. After an error, another thread may retry."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action: Callable[[], object] | None = action
        self._lock = threading.Lock()

    @property
    def is_done(self) -> bool:
        """True when the part was copied or skipped."""
        return self._action is None

    def copy(self) -> None:
        """Copy the part, unless that is done or another thread is doing it; then wait for that thread."""
        if self.is_done:
            return
        with self._lock:
            if self._action is not None:
                self._action()
                self._action = None  # which also releases the memory to copy

    def skip(self) -> None:
        """Never copy the part. Waits for a thread that is copying it."""
        with self._lock:
            self._action = None


def copy_together(tasks: list[CopyTask]) -> None:
    """Run all tasks, on several threads. PyTorch's own threads copy as fast, but take longer to start each copy."""
    waiting = deque(tasks)

    def work() -> None:
        with contextlib.suppress(IndexError):  # no task is left
            while True:
                waiting.popleft().copy()

    helpers = [Helper(work) for _ in range(min(_MAX_THREADS, processor_count(), len(tasks)) - 1)]
    try:
        for helper in helpers:
            helper.start()
        work()
    finally:
        waiting.clear()
        _wait_for_all(helpers)
    for task in tasks:  # a task that failed on another thread fails here again
        task.copy()


def _wait_for_all(helpers: list[Helper]) -> None:
    """Wait for all threads in spite of interrupts, since they write to the buffer until they end."""
    interruption: BaseException | None = None
    waiting = deque(helpers)
    while waiting:
        try:
            waiting[0].wait()
            waiting.popleft()
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption
