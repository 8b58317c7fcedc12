"""Threads that an interrupt does not part from whoever waits for them."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Helper(threading.Thread):
    """A daemon thread whose end can be waited for again when a wait was interrupted.

    Python's own ``join`` may take a thread for ended once an interrupt came in between, though it goes on working.
    """

    def __init__(self, work: Callable[[], object], name: str | None = None) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self._working = threading.Lock()  # taken and released in C: an interrupt never leaves it held
        self._working.acquire()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._working.release()

    def wait(self) -> None:
        """Return once it has done its work; at once where an interrupt came before it began."""
        if self.ident is not None:
            with self._working:
                pass
