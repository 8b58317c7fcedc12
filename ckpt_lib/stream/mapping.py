"""Maps a file as private memory: writing to the memory changes neither the file nor another process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import sys
from collections.abc import Callable
from typing import BinaryIO, Protocol

from ckpt_lib.stream.chunks import ReadAt, digest_of_view, local_size_bytes
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES

_FEW_BYTES = 2**16
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23  # Linux 5.14; Python has no names for them
_MAP_NORESERVE = 0x4000 if platform.machine() in {"x86_64", "aarch64"} else 0  # Python 3.13 has a name for it


class Memory(Protocol):
    """The bytes of one file."""

    view: memoryview
    """All bytes, writable. Objects made from this view keep the memory alive."""

    def fetch(self, start: int, stop: int) -> bool:
        """Make the range safe to access. Returns false when the file has become too short for it.

        Raises the errors of the source for bytes that cannot be read.
        """
        ...

    def digest(self, start: int, stop: int) -> str:
        """Return the XXH3-128 of a range of the memory; empty when the file has become too short for it."""
        ...

    def forget(self, start: int, stop: int) -> None:
        """Let go of the memory of a range where that is possible. It is fetched before it is accessed again."""
        ...


def memory_of(source: BinaryIO, expected_size_bytes: int) -> Memory:
    """Map a local file. Read any other source into memory, which is allocated for the expected size at first."""
    size_bytes = local_size_bytes(source)
    # On Windows, a file that is mapped cannot be deleted: retention would fail for as long as a tensor lives.
    if size_bytes is not None and os.name != "nt":
        try:
            return MappedFile(source, size_bytes)
        except (OSError, ValueError):  # the file system or the address space does not allow it
            source.seek(0)
    return HeldFile(source, expected_size_bytes)


class MappedFile:
    """A private mapping. Its pages are shared with the page cache until they are written to.

    A mapping cannot report errors: accessing a page that the disk cannot read, or that the file no longer has, kills
    the process. So every range is first fetched by a call that can fail.
    """

    def __init__(self, source: BinaryIO, size_bytes: int) -> None:
        self._mapping = mapping = _map(source.fileno(), size_bytes)
        self.view = memoryview(mapping)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._reader = ReadAt(source)

    def fetch(self, start: int, stop: int) -> bool:
        # Of a page that is not cached, the kernel reads megabytes around: too much where only headers are looked at.
        if stop - start > _FEW_BYTES and _populate(self._address, start, stop, _MADV_POPULATE_READ):
            return True
        # Few bytes, an older kernel or an unreadable page. Reading tells, and brings the page into the cache.
        return sum(len(block) for block in self._reader.blocks(start, stop)) == stop - start

    def digest(self, start: int, stop: int) -> str:
        return digest_of_view(self.view, start, stop) if self.fetch(start, stop) else ""

    def forget(self, start: int, stop: int) -> None:
        _forget(self._mapping, start, stop)


class HeldFile:
    """A copy in memory, for sources without a descriptor or that cannot be mapped."""

    def __init__(self, source: BinaryIO, expected_size_bytes: int) -> None:
        expected_size_bytes = min(expected_size_bytes, _extent(source))  # a manifest may claim any size
        held = bytearray(expected_size_bytes)
        size_bytes = _fill(source, memoryview(held))
        if size_bytes < expected_size_bytes:
            del held[size_bytes:]
        else:
            while piece := source.read(BLOCK_SIZE_BYTES):
                held += piece
        self.view = memoryview(held)

    def fetch(self, start: int, stop: int) -> bool:
        return start <= stop <= len(self.view)

    def digest(self, start: int, stop: int) -> str:
        return digest_of_view(self.view, start, stop)

    def forget(self, start: int, stop: int) -> None:
        """Keep it: nothing could fetch it again."""


class EmptyMemory:
    """Private memory without a file, all zeros. Its pages take memory once they are written to."""

    def __init__(self, size_bytes: int) -> None:
        self.view = _anonymous(size_bytes)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.view)) if size_bytes else 0

    def fetch(self, start: int, stop: int) -> bool:
        if not start <= stop <= len(self.view):
            return False
        if stop - start > _FEW_BYTES:  # one call, where writing would ask the system for each page on its own
            _populate(self._address, start, stop, _MADV_POPULATE_WRITE)
        return True

    def digest(self, start: int, stop: int) -> str:
        return digest_of_view(self.view, start, stop)

    def forget(self, start: int, stop: int) -> None:
        if isinstance(self.view.obj, mmap.mmap):
            _forget(self.view.obj, start, stop)


class FetchedFile(EmptyMemory):
    """The bytes of a source without a descriptor, which are read when they are asked for, and not all at once."""

    def __init__(self, source: BinaryIO) -> None:
        super().__init__(source.seek(0, os.SEEK_END))
        self._source = source

    def fetch(self, start: int, stop: int) -> bool:
        self._source.seek(start)
        with self.view[start:stop] as target:
            return _fill(self._source, target) == stop - start


def _forget(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Drop the pages of a mapping that lie within a range."""
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop - stop % mmap.PAGESIZE
    if first < last:
        with contextlib.suppress(OSError, AttributeError):  # Windows has no such call
            mapping.madvise(mmap.MADV_DONTNEED, first, last - first)


def _anonymous(size_bytes: int) -> memoryview:
    if not size_bytes:
        return memoryview(bytearray())
    if os.name == "nt":
        return memoryview(mmap.mmap(-1, size_bytes))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_MAP_NORESERVE if sys.platform == "linux" else 0)
    return memoryview(mmap.mmap(-1, size_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def _extent(source: BinaryIO) -> int:
    """Return how many bytes a source says that it has; 0 where it cannot be told without reading."""
    try:
        return source.seek(0, os.SEEK_END) if source.seekable() else 0
    finally:
        if source.seekable():
            source.seek(0)


def _fill(source: BinaryIO, view: memoryview) -> int:
    """Read until ``view`` is full or the source ends, and return how many bytes were read."""
    size_bytes = 0
    while count := source.readinto(view[size_bytes : size_bytes + BLOCK_SIZE_BYTES]):  # type: ignore[attr-defined]
        size_bytes += count
    return size_bytes


def _map(descriptor: int, size_bytes: int) -> mmap.mmap:
    # Without a reservation, a file larger than the memory can be mapped. Few of its pages are ever written to.
    flags = mmap.MAP_PRIVATE | (_MAP_NORESERVE if sys.platform == "linux" else 0)
    return mmap.mmap(descriptor, size_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """Return the system's ``madvise``. Python's own holds the interpreter lock while the disk reads."""
    if sys.platform != "linux":
        return None
    madvise: Callable[[int, int, int], int] = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]  # type: ignore[attr-defined]  # of ctypes
    return madvise


def _populate(address: int, start: int, stop: int, advice: int) -> bool:
    """Make the pages of a range of the mapping at ``address`` ready to be accessed. Returns false if that failed."""
    madvise = _madvise()
    if madvise is None:
        return False
    start -= start % mmap.PAGESIZE
    return madvise(address + start, stop - start, advice) == 0
