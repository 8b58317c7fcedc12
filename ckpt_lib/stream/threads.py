"""Threads whose end can be awaited reliably in spite of interrupts."""

from __future__ import annotations

import threading
from collections.abc import Callable


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

    def wait(self) -> None:
        """Return when the work is done, or at once if an interrupt prevented the start."""
        if self.ident is not None:
            with self._working:
                pass
