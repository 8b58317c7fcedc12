"""Whether anything wrote to tensors between two moments.

PyTorch counts the operations that write to a tensor: see ``Tensor._version``. It counts each when it ends, so a tensor
that is read while another thread writes to it looks unchanged until then.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_lib.state.spans import Span

_STANDARD_LIBRARY = os.path.dirname(threading.__file__)
_WAITING = (
    os.path.join(os.path.dirname(os.path.dirname(__file__)), "background.py"),
    os.path.join(os.path.dirname(__file__), "threads.py"),
)
"""Where callers of ours wait for saves."""
_LONGEST_OPERATION_SECONDS = 30.0
_POLL_SECONDS = 0.002


class SpanWatch:
    """The version counters of all tensors in a span, and where their memory lay, when this was made."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._noted = self._now()

    @property
    def has_changed(self) -> bool:
        """Whether a tensor was written to since, or its memory moved or resized."""
        return self._now() != self._noted

    def _now(self) -> tuple[int, int, list[int]]:
        storage = self.span.storage
        return storage.data_ptr(), storage.nbytes(), [tensor._version for tensor in self.span.tensors]


class Caller:
    """The thread that made this, seen from others."""

    def __init__(self) -> None:
        self._ident = threading.get_ident()
        self._contacts = 0

    def note_contact(self) -> None:
        """Note that the calling thread, if it is that one, is not in the middle of an operation."""
        self._contacts += threading.get_ident() == self._ident

    def wait_until_moved_on(self) -> None:
        """Return once the operation that the thread may be in the middle of has ended, and was counted.

        After 30 seconds in the same place, the thread is taken for one that sleeps.
        """
        first, deadline = self._position(), time.monotonic() + _LONGEST_OPERATION_SECONDS
        while first is not None and self._position() == first and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _position(self) -> tuple[int, int, int] | None:
        """The instruction that the thread is at; ``None`` where that is no operation on a tensor."""
        frame = sys._current_frames().get(self._ident)
        if frame is None or self._ident == threading.get_ident() or _only_waits(frame.f_code.co_filename):
            return None
        return self._contacts, id(frame), frame.f_lasti


def _only_waits(path: str) -> bool:
    """Whether code waits for others, but writes to no tensor: the standard library's, and ours of saves and threads."""
    return path in _WAITING or (path.startswith(_STANDARD_LIBRARY + os.sep) and "-packages" not in path)


def names_of(value: Any, spans: list[Span], path: str = "") -> Iterator[str]:
    """The dotted names of the tensors of ``value`` that lie in some spans."""
    wanted = {id(tensor) for span in spans for tensor in span.tensors}
    yield from _names_of(value, wanted, path)


def _names_of(value: Any, wanted: set[int], path: str) -> Iterator[str]:
    if id(value) in wanted:
        yield path
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _names_of(item, wanted, f"{path}.{key}" if path else str(key))
