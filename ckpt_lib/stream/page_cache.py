"""Reads files without changing the page cache, so that old checkpoints do not evict data in use."""

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
    """Return the byte ranges of a local file that are not in the page cache; none if the system cannot tell."""
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
    # Private, since Python gives no address of a read-only mapping. No page of it is accessed.
    with mmap.mmap(descriptor, stop - start, access=mmap.ACCESS_COPY, offset=start) as mapping:
        first = ctypes.c_char.from_buffer(mapping)
        address = ctypes.c_void_p(ctypes.addressof(first))
        failed = ctypes.CDLL(None).mincore(address, ctypes.c_size_t(stop - start), pages)
        del first
    if failed:
        return []
    # For files of other users the kernel reports all pages as resident. Then no page is evicted.
    runs = _ABSENT.finditer(pages.raw.translate(_RESIDENT_BIT))
    return [(start + run.start() * mmap.PAGESIZE, start + run.end() * mmap.PAGESIZE) for run in runs]


class NeutralReader(io.RawIOBase, BinaryIO):
    """Reads a file from start to end, and evicts the pages that were not in the page cache before.

    ``on_read`` receives the size of each piece after it is read. It may wait or raise. ``source`` stays open.
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
        """Evict the pages read since the last call, except the one that is not read to its end."""
        whole = self._position - self._position % mmap.PAGESIZE
        while self._to_forget and self._to_forget[-1][0] < whole:
            start, stop = self._to_forget.pop()
            forget(self._source.fileno(), start, min(stop, whole) - start)
            if stop > whole:
                self._to_forget.append((whole, stop))

    def close(self) -> None:
        """Evict the rest: pages that the system read ahead, and pages across the borders of pieces."""
        if not self.closed:
            for start, stop in self._absent:
                forget(self._source.fileno(), start, stop - start)
        super().close()


def forget(descriptor: int, start: int, size_bytes: int) -> None:
    """Evict a range from the page cache, or everything from ``start`` on if ``size_bytes`` is 0.

    Pages that are on the disk go at once. For any other, the system begins to write them.
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is only advice
            os.posix_fadvise(descriptor, start, size_bytes, os.POSIX_FADV_DONTNEED)
