"""A second taker of a stream's buffers, which neither fails the stream nor holds it up for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from ckpt_lib.stream.threads import Helper

PATIENCE_SECONDS = 2.0
"""How long a stream waits for its mirror in all, before it goes on without it."""


class DroppedError(Exception):
    """The mirror was dropped. Nothing may come of what it has taken."""


class Mirror:
    """Calls ``work`` with itself on a thread of its own, to iterate over the :meth:`buffers` of a stream.

    A mirror that raises, or holds the stream up too long, is dropped: the stream goes on without it. The buffer that
    it is reading then may be filled again meanwhile, so nothing may come of what it read.
    """

    def __init__(self, work: Callable[[Mirror], object], name: str) -> None:
        self._work = work
        self.is_dropped = False
        self.failure: BaseException | None = None
        self._filled: SimpleQueue[memoryview | None] = SimpleQueue()
        self._done = threading.Semaphore(0)
        self._unfinished = 0
        self._waited_seconds = 0.0
        self._thread = Helper(self._run, name)

    def start(self) -> None:
        """Begin the work. The caller knows the mirror by now: an interrupt here must not leave it to itself."""
        self._thread.start()

    # --- for the stream ---

    def put(self, buffer: memoryview) -> None:
        """Give a buffer, which may change once :meth:`wait` has returned."""
        self._unfinished += 1
        self._filled.put(buffer)

    def wait(self, *, unfinished: int = 0) -> None:
        """Return when at most so many buffers are unfinished, or the mirror is dropped, also for taking too long."""
        while self._unfinished > unfinished and not self.is_dropped:
            begun = time.monotonic()
            if not self._done.acquire(timeout=max(0.0, PATIENCE_SECONDS - self._waited_seconds)):
                self.drop()
            self._waited_seconds += time.monotonic() - begun
            self._unfinished -= 1

    def end(self) -> None:
        """Say that no buffer follows."""
        self._filled.put(None)

    def drop(self) -> None:
        """Stop waiting for the mirror; its work raises :class:`DroppedError`."""
        self.is_dropped = True
        self.end()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Return when the work has ended; ``False`` after the timeout."""
        return self._thread.wait(timeout_seconds)

    # --- for its work ---

    def buffers(self) -> Iterator[memoryview]:
        """Yield each buffer, until the end of the stream. Raises :class:`DroppedError`."""
        while (buffer := self._filled.get()) is not None:
            self.check()
            yield buffer
            self._done.release()
        self.check()

    def check(self) -> None:
        """Raise :class:`DroppedError` when the mirror was dropped."""
        if self.is_dropped:
            raise DroppedError

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:
            self.failure = error
        finally:
            self.is_dropped = True  # nobody need wait for a buffer any more
            self._done.release()
