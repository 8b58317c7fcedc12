"""Work on frames, spread over a few threads that end with it.

The threads are those of :mod:`ckpt_lib.stream.threads`: pools of the standard library take no more work once the
interpreter is ending, and a save in the background may go on then.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Generic, TypeVar

from ckpt_lib.stream.chunks import processor_count
from ckpt_lib.stream.threads import Helper

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 8
"""More would only wait for SHA-256, which one thread computes."""


def worker_count() -> int:
    """Return how many threads work on frames."""
    return min(MAX_WORKERS, processor_count())


class _Task(Generic[Item, Result]):
    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result | None = None
        self.failure: BaseException | None = None
        self.done = threading.Event()


class OrderedPool(Generic[Item, Result]):
    """Works on items on several threads, and gives the results back in the order of the items."""

    def __init__(self, work: Callable[[Item], Result], workers: int, name: str) -> None:
        self._work = work
        self._waiting: SimpleQueue[_Task[Item, Result] | None] = SimpleQueue()
        self._unclaimed: deque[_Task[Item, Result]] = deque()
        self._workers = workers
        self._name = name
        self._threads: list[Helper] = []
        self._is_ending = False

    def __len__(self) -> int:
        """How many results have not been taken."""
        return len(self._unclaimed)

    @property
    def has_begun(self) -> bool:
        """True once an item was put."""
        return bool(self._threads)

    def put(self, item: Item) -> None:
        task: _Task[Item, Result] = _Task(item)
        self._unclaimed.append(task)
        if len(self._threads) < self._workers:
            self._threads.append(Helper(self._run, self._name))
            self._threads[-1].start()
        self._waiting.put(task)

    def take(self) -> Result:
        """Wait for the oldest result and return it, or raise what its work has raised."""
        task = self._unclaimed.popleft()
        task.done.wait()
        if task.failure is not None:
            raise task.failure
        return task.result  # type: ignore[return-value]  # of a task that is done

    def end(self) -> None:
        """Return when no thread works any more. What has not begun is left undone. May be called twice."""
        self._is_ending = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.wait()

    def _run(self) -> None:
        while (task := self._waiting.get()) is not None:
            try:
                if not self._is_ending:
                    task.result = self._work(task.item)
            except BaseException as error:
                task.failure = error
            task.done.set()


def for_each(work: Callable[[Item], object], items: Iterable[Item], name: str, *, count: int) -> None:
    """Call ``work`` with each of ``count`` items, on threads if there are several; raise its first error at the end.

    An item is worked on while those that follow are produced.
    """
    if count < 2:
        for item in items:
            work(item)
        return
    pool = OrderedPool(work, min(worker_count(), count), name)
    try:
        for item in items:
            pool.put(item)
        while len(pool):
            pool.take()
    finally:
        pool.end()
