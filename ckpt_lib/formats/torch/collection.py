"""No search for garbage while something large is built: each would look at all that was built so far."""

from __future__ import annotations

import gc
import os
from typing import ClassVar


class CollectionPause:
    """A context without a search for garbage, by any thread; any number of threads may be in one.

    An interrupt may come before ``with`` knows of the context: then the search goes on when the object is gone.
    """

    _open: ClassVar[set[int]] = set()
    _was_enabled: ClassVar[bool] = False

    def __enter__(self) -> None:
        try:
            self._open.add(id(self))
            if gc.isenabled():
                CollectionPause._was_enabled = True
                gc.disable()
        except BaseException:  # an interrupt, after which no __exit__ is called
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._open == {id(self)}:
            self._resume()
        self._open.discard(id(self))  # only now: interrupted before it, this is called again when the object is gone
        if not self._open:  # another thread's came to its end at the same moment
            self._resume()

    def __del__(self) -> None:
        if id(self) in self._open:
            self.__exit__()

    @classmethod
    def end_all(cls) -> None:
        """End the pauses of threads that are gone, as those of the parent are in a forked child."""
        cls._resume()
        cls._open.clear()

    @classmethod
    def _resume(cls) -> None:
        if cls._was_enabled:
            cls._was_enabled = False
            gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=CollectionPause.end_all)
