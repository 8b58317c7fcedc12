"""Pauses the garbage collector while a large structure is built: each collection would scan all of it so far."""

from __future__ import annotations

import gc
import os
from typing import ClassVar


class CollectionPause:
    """A context in which no thread collects garbage. Any number of threads may be in one at a time.

    An interrupt may come after ``__enter__`` and before ``with`` takes over. Collection then resumes when the object is
    freed.
    """

    _open: ClassVar[set[int]] = set()
    _was_enabled: ClassVar[bool] = False

    def __enter__(self) -> None:
        try:
            self._open.add(id(self))
            if gc.isenabled():
                CollectionPause._was_enabled = True
                gc.disable()
        except BaseException:  # after an interrupt here, ``with`` calls no __exit__
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._open == {id(self)}:
            self._resume()
        self._open.discard(id(self))  # last: after an interrupt before this line, __del__ calls __exit__ again
        if not self._open:  # another thread left its context at the same moment
            self._resume()

    def __del__(self) -> None:
        if id(self) in self._open:
            self.__exit__()

    @classmethod
    def end_all(cls) -> None:
        """End the pauses of threads that no longer exist, such as the parent's in a forked child."""
        cls._resume()
        cls._open.clear()

    @classmethod
    def _resume(cls) -> None:
        if cls._was_enabled:
            cls._was_enabled = False
            gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CollectionPause.end_all)
