"""No search for garbage while something large is built: each would look at all that was built so far."""

from __future__ import annotations

import gc
import os
import threading


class _CollectionPause:
    """A context without a search for garbage, by any thread; any number of threads may be in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._was_enabled = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._was_enabled:
                gc.enable()

    def end_in_child(self) -> None:
        """In a forked process, where the threads that are in it do not go on."""
        self._lock = threading.Lock()
        if self._users and self._was_enabled:
            gc.enable()
        self._users = 0


COLLECTION_PAUSE = _CollectionPause()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=COLLECTION_PAUSE.end_in_child)
