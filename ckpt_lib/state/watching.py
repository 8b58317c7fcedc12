"""Notices whether tensors were written to.

PyTorch counts the operations that write to a tensor in ``Tensor._version``. It counts each operation when it ends, so a
tensor that another thread is writing to looks unchanged until then.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ckpt_lib.state.ranges import StorageRange
from ckpt_lib.stream import threads

_STANDARD_LIBRARY = os.path.dirname(threading.__file__) + os.sep
_BACKGROUND = os.path.join(os.path.dirname(os.path.dirname(__file__)), "saving", "background.py")
_WAITING = (_BACKGROUND, threads.__file__)
"""The modules of this library in which a caller waits for saves."""
_LONGEST_OPERATION_SECONDS = 30.0
_POLL_SECONDS = 0.002


class RangeWatch:
    """The version counters of all tensors in a range, and the address of their memory, when the watch was created."""

    def __init__(self, stored: StorageRange) -> None:
        self.stored = stored
        self._noted = self._now()

    @property
    def has_changed(self) -> bool:
        """True when a tensor was written to since then, or its memory moved or resized."""
        return self._now() != self._noted

    def _now(self) -> tuple[int, int, list[int]]:
        storage = self.stored.storage
        return storage.data_ptr(), storage.nbytes(), [tensor._version for tensor in self.stored.tensors]


class CallingThread:
    """Observes the thread that created this object from other threads."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        self._contacts = 0

    def note_contact(self) -> None:
        """Record that the observed thread, if it is the caller, is not in an operation on a tensor."""
        self._contacts += threading.get_ident() == self._ident

    def wait_until_moved_on(self) -> None:
        """Return once the operation that the thread may be in has ended and was counted.

        A thread that stays at one instruction for 30 seconds is taken to be asleep.
        """
        first, deadline = self._position(), time.monotonic() + _LONGEST_OPERATION_SECONDS
        while first is not None and self._position() == first and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _position(self) -> tuple[int, int, int] | None:
        """Return the instruction that the thread executes; ``None`` for code that writes to no tensor."""
        frame = sys._current_frames().get(self._ident)
        if frame is None or self._ident == threading.get_ident() or _only_waits(frame.f_code.co_filename):
            return None
        return self._contacts, id(frame), frame.f_lasti


def _only_waits(path: str) -> bool:
    """Tell whether the code in a file waits for threads and writes to no tensor: the standard library's, and ours."""
    return path in _WAITING or (path.startswith(_STANDARD_LIBRARY) and "-packages" not in path)


def names_of(value: Any, wanted: Collection[int], path: str = "") -> Iterator[str]:
    """Yield the dotted names of the tensors of ``value`` whose ids are ``wanted``."""
    if id(value) in wanted:
        yield path
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from names_of(item, wanted, f"{path}.{key}" if path else str(key))
