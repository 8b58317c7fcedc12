"""Reading files without changing what the page cache holds: old checkpoints must not push out what is in use."""

from __future__ import annotations

import contextlib
import ctypes
import io
import mmap
import os
import re
import sys
from collections.abc import Callable
from typing import BinaryIO

_WINDOW_BYTES = 2**30
_ABSENT = re.compile(rb"\x00+")
_RESIDENT_BIT = bytes(value & 1 for value in range(256))


def absent_ranges(source: BinaryIO) -> list[tuple[int, int]]:
    """The byte ranges of a local file that are not in the page cache; none where the system does not tell."""
    if sys.platform != "linux":
        return []
    try:
        descriptor = source.fileno()
        size_bytes = os.fstat(descriptor).st_size
        windows = range(0, size_bytes, _WINDOW_BYTES)
        return [
            found for start in windows for found in _absent(descriptor, start, min(size_bytes, start + _WINDOW_BYTES))
        ]
    except (OSError, ValueError, io.UnsupportedOperation):
        return []


def _absent(descriptor: int, start: int, stop: int) -> list[tuple[int, int]]:
    pages = ctypes.create_string_buffer(-(-(stop - start) // mmap.PAGESIZE))
    # A private mapping, since the address of a read-only one is not to be had; no page of it is ever touched.
    with mmap.mmap(descriptor, stop - start, access=mmap.ACCESS_COPY, offset=start) as mapping:
        first = ctypes.c_char.from_buffer(mapping)
        address = ctypes.c_void_p(ctypes.addressof(first))
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(stop - start), pages)
        del first
    if failed:
        return []
    # Of a file that is someone else's, the kernel says that all pages are resident: then all of them are left alone.
    runs = _ABSENT.finditer(pages.raw.translate(_RESIDENT_BIT))
    return [(start + run.start() * mmap.PAGESIZE, start + run.end() * mmap.PAGESIZE) for run in runs]


class NeutralReader(io.RawIOBase, BinaryIO):
    """Reads a file from start to end, and lets the page cache forget what it did not hold before.

    ``on_read`` is called with the size of each piece read, before the next, and may wait or raise. The file stays open.
    """

    def __init__(self, source: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._source = source
        self._on_read = on_read
        self._position = 0
        self._absent = absent_ranges(source)
        self._to_forget = list(reversed(self._absent))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = self._source.seek(offset, whence)
        self._to_forget = [(start, stop) for start, stop in reversed(self._absent) if stop > self._position]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count: int = self._source.readinto(buffer) or 0  # type: ignore[attr-defined]  # every binary file has it
        self._position += count
        self._forget_read()
        if count:
            self._on_read(count)
        return count

    def _forget_read(self) -> None:
        """Forget what was read since the last call; the page at hand waits for its end."""
        whole = self._position - self._position % mmap.PAGESIZE
        while self._to_forget and self._to_forget[-1][0] < whole:
            start, stop = self._to_forget.pop()
            forget(self._source.fileno(), start, min(stop, whole) - start)
            if stop > whole:
                self._to_forget.append((whole, stop))

    def close(self) -> None:
        """Forget the rest: what was read ahead, and what lay across the borders of pieces."""
        if not self.closed:
            for start, stop in self._absent:
                forget(self._source.fileno(), start, stop - start)
        super().close()


def forget(descriptor: int, start: int, size_bytes: int) -> None:
    """Let the page cache forget a range, or all from ``start`` on if ``size_bytes`` is 0.

    What is on the disk goes at once; what is not, the system begins to write there.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is advice
            os.posix_fadvise(descriptor, start, size_bytes, os.POSIX_FADV_DONTNEED)
