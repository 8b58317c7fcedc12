"""Threads whose end can be awaited reliably in spite of interrupts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_POLL_SECONDS = 0.01


class Helper(threading.Thread):
    """A daemon thread. A wait for its end that was interrupted can be repeated.

    After an interrupted ``join``, Python may consider a thread as ended that is still working.
    """

    def __init__(self, work: Callable[[], object], name: str | None = None) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._working = threading.Lock()  # ``with`` takes and releases it in C, so no interrupt leaves it held
        self._working.acquire()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._working.release()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Return when the work is done, or at once if an interrupt prevented the start; ``False`` after the timeout."""
        if self.ident is None:
            return True
        if timeout_seconds is None:
            with self._working:
                return True
        # The lock is only looked at: one that is taken with a timeout may be left held by an interrupt.
        deadline = time.monotonic() + timeout_seconds
        while is_working := self._working.locked():
            if time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        return not is_working
