"""Compares the chunks of a file with its chunk table, on several threads.

Chunks are independent of each other, so one file keeps all processors busy. Its SHA-256 can keep only one busy.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from typing import BinaryIO

import xxhash

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES

Progress = Callable[[int], object]
"""A callback that receives the number of bytes done since its last call, on the thread that requested the work."""

MAX_WORKERS = 8
"""More threads read a disk no faster."""


def chunk_range(entry: FileEntry, number: int) -> tuple[int, int]:
    """Return first and last byte of a chunk, the last exclusive. The last chunk may be short."""
    start = number * entry.chunk_size_bytes
    return start, min(start + entry.chunk_size_bytes, entry.size_bytes)


def differing_chunks(
    entry: FileEntry,
    numbers: Iterable[int],
    digest_of: Callable[[int, int], str],
    progress: Progress | None = None,
) -> list[int]:
    """Return those of the chunks ``numbers`` for which ``digest_of(start, stop)`` differs from the chunk table.

    ``digest_of`` is called from several threads. Its first error is raised here, and no further chunk is started.
    """
    differing = []
    for number, is_same in compared_chunks(entry, numbers, digest_of):
        if not is_same:
            differing.append(number)
        if progress:
            start, stop = chunk_range(entry, number)
            progress(stop - start)
    return differing


def compared_chunks(
    entry: FileEntry, numbers: Iterable[int], digest_of: Callable[[int, int], str]
) -> Iterator[tuple[int, bool]]:
    """Yield each of the chunks ``numbers`` in their order, and whether its digest is that of the chunk table.

    Meanwhile several threads go on with those that follow. Otherwise as :func:`differing_chunks`.
    """
    numbers = list(numbers)
    with _digests([chunk_range(entry, number) for number in numbers], digest_of) as digests:
        for number, digest in zip(numbers, digests, strict=True):
            yield number, digest == entry.chunk_xxh3_128[number]


@contextmanager
def _digests(ranges: list[tuple[int, int]], digest_of: Callable[[int, int], str]) -> Iterator[Iterator[str]]:
    """Yield an iterator over the digests of ranges, in order, computed on several threads."""
    workers = min(MAX_WORKERS, max(2, processor_count()), len(ranges))
    if workers < 2:
        yield (digest_of(start, stop) for start, stop in ranges)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="ckpt-verify") as pool:
        try:
            yield pool.map(digest_of, *zip(*ranges, strict=True))
        finally:
            pool.shutdown(cancel_futures=True)


def processor_count() -> int:
    """Return how many processors this process may use. In a container these are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ReadAt:
    """Reads a local file at any offset, from several threads. Each thread has one buffer, which stays in the cache."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._descriptor = source.fileno()
        self._buffers = threading.local()
        self._lock = threading.Lock()

    def digest(self, start: int, stop: int) -> str:
        """Return the XXH3-128 of a range, or of the part of it that the file has. Raises the errors of the source."""
        digest = xxhash.xxh3_128()
        for block in self.blocks(start, stop):
            digest.update(block)
        return digest.hexdigest()

    def blocks(self, start: int, stop: int) -> Iterator[memoryview]:
        """Yield the bytes of a range in pieces. Each piece is valid until the next is requested."""
        buffer = self._buffer()
        while start < stop:
            view = buffer[: stop - start]
            count = self._read(view, start)
            if count == 0:
                return
            yield view[:count]
            start += count

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._buffers, "view", None)
        if buffer is None:
            buffer = self._buffers.view = memoryview(bytearray(BLOCK_SIZE_BYTES))
        return buffer

    def _read(self, view: memoryview, start: int) -> int:
        try:
            return os.preadv(self._descriptor, [view], start)
        except OSError:
            # Read the same bytes through the store, which raises its own typed errors.
            with self._lock:
                self._source.seek(start)
                return self._source.readinto(view) or 0  # type: ignore[attr-defined]  # every binary file has it


def local_size_bytes(source: BinaryIO) -> int | None:
    """Return the size of a file that its descriptor can read at any offset; ``None`` for any other file.

    Files of the kernel, as in ``/proc``, report a size of 0 and can only be read from the start.
    """
    if not hasattr(os, "preadv"):
        return None
    try:
        found = os.fstat(source.fileno())
    except (OSError, ValueError, AttributeError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_size else None


def size_damage(entry: FileEntry, size_bytes: int) -> list[Damage]:
    """Return the damage of a file with ``size_bytes`` that is shorter or longer than the saved one."""
    name = entry.name
    if size_bytes < entry.size_bytes:
        message = f"{name} ends after {size_bytes} of {entry.size_bytes} bytes"
        return [Damage(file=name, kind="truncated", start=size_bytes, stop=entry.size_bytes, message=message)]
    if size_bytes > entry.size_bytes:
        message = f"{name} has {size_bytes - entry.size_bytes} bytes more than the {entry.size_bytes} saved"
        return [Damage(file=name, kind="extended", start=entry.size_bytes, stop=size_bytes, message=message)]
    return []


def comparable_chunks(entry: FileEntry, size_bytes: int) -> range:
    """Return the chunks worth comparing in a file of ``size_bytes``, without the chunk in which a wrong size ends."""
    if size_bytes == entry.size_bytes:
        return range(len(entry.chunk_xxh3_128))
    return range(min(size_bytes, entry.size_bytes) // entry.chunk_size_bytes)


def altered_chunks(entry: FileEntry, numbers: Iterable[int]) -> list[Damage]:
    """Return the damage of these chunks, with neighbours joined into one range."""
    damages = []
    for first, last in runs(sorted(numbers)):
        start, stop = chunk_range(entry, first)[0], chunk_range(entry, last)[1]
        message = f"{entry.name} was altered between bytes {start} and {stop}"
        damages.append(Damage(file=entry.name, kind="altered", start=start, stop=stop, message=message))
    return damages


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield first and last of each run of consecutive numbers. ``numbers`` must ascend."""
    for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


def digest_of_view(view: memoryview, start: int, stop: int) -> str:
    """Return the XXH3-128 of a range of bytes in memory."""
    with view[start:stop] as piece:
        return xxhash.xxh3_128_hexdigest(piece)
