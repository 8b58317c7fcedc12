"""The chunk table at work: which chunks of a file differ, established on as many threads as pay.

Chunks are independent of each other, so one file keeps all processors busy, as its one SHA-256 cannot.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import BinaryIO

import xxhash

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, Damage

Progress = Callable[[int], object]
"""Called with the number of bytes done since the last call, by the thread that asked for the work."""

MAX_WORKERS = 8
"""More threads than this read no disk faster, and memory sooner."""


def has_chunk_table(entry: FileEntry) -> bool:
    """Whether there is a digest for every chunk; a manifest of a third party may have none."""
    return len(entry.chunk_xxh3_128) == -(-entry.size_bytes // entry.chunk_size_bytes)


def chunk_range(entry: FileEntry, number: int) -> tuple[int, int]:
    """The bytes of one chunk; the last one may be short."""
    start = number * entry.chunk_size_bytes
    return start, min(start + entry.chunk_size_bytes, entry.size_bytes)


def differing_chunks(
    entry: FileEntry,
    numbers: Iterable[int],
    digest_of: Callable[[int, int], str],
    progress: Progress | None = None,
) -> list[int]:
    """Those of the chunks ``numbers`` for which ``digest_of(start, stop)`` is not what the table says.

    ``digest_of`` is called from several threads; what it raises is raised here, and nothing more is begun then.
    """
    numbers = list(numbers)
    differing = []
    ranges = [chunk_range(entry, number) for number in numbers]
    with _digests(ranges, digest_of) as digests:
        for number, (start, stop), digest in zip(numbers, ranges, digests, strict=True):
            if digest != entry.chunk_xxh3_128[number]:
                differing.append(number)
            if progress:
                progress(stop - start)
    return differing


@contextmanager
def _digests(ranges: list[tuple[int, int]], digest_of: Callable[[int, int], str]) -> Iterator[Iterator[str]]:
    """The digests of ranges, in their order, from as many threads as pay."""
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
    """How many this process may use, which in a container are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ReadAt:
    """Reads a local file at offsets from several threads, each through one buffer that stays in its cache."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._descriptor = source.fileno()
        self._buffers = threading.local()
        self._lock = threading.Lock()

    def digest(self, start: int, stop: int) -> str:
        """The XXH3-128 of a range. Raises what the source raises, and ends early where the file does."""
        digest = xxhash.xxh3_128()
        for block in self.blocks(start, stop):
            digest.update(block)
        return digest.hexdigest()

    def blocks(self, start: int, stop: int) -> Iterator[memoryview]:
        """The bytes of a range in pieces; each is gone when the next is asked for."""
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
            # The store knows what its failures mean: let it read the same bytes, and say so.
            with self._lock:
                self._source.seek(start)
                return self._source.readinto(view) or 0  # type: ignore[attr-defined]  # every binary file has it


def local_size_bytes(source: BinaryIO) -> int | None:
    """The size of a file that can be read at any offset by its descriptor; ``None`` where that is not so.

    Files that the kernel makes up, as in ``/proc``, say that they are empty; only reading them tells.
    """
    if not hasattr(os, "preadv"):
        return None
    try:
        found = os.fstat(source.fileno())
    except (OSError, ValueError, AttributeError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) and found.st_size else None


def size_damage(entry: FileEntry, size_bytes: int) -> list[Damage]:
    """The damage of a file of ``size_bytes`` that is shorter or longer than the one saved."""
    name = entry.name
    if size_bytes < entry.size_bytes:
        message = f"{name} ends after {size_bytes} of {entry.size_bytes} bytes"
        return [Damage(file=name, kind="truncated", start=size_bytes, stop=entry.size_bytes, message=message)]
    if size_bytes > entry.size_bytes:
        message = f"{name} has {size_bytes - entry.size_bytes} bytes more than the {entry.size_bytes} saved"
        return [Damage(file=name, kind="extended", start=entry.size_bytes, stop=size_bytes, message=message)]
    return []


def comparable_chunks(entry: FileEntry, size_bytes: int) -> range:
    """The chunks that a file of ``size_bytes`` can be asked for: the one in which it ends early or late differs for
    that reason alone."""
    if size_bytes == entry.size_bytes:
        return range(len(entry.chunk_xxh3_128))
    return range(min(size_bytes, entry.size_bytes) // entry.chunk_size_bytes)


def altered_chunks(entry: FileEntry, numbers: Iterable[int]) -> list[Damage]:
    """The damage of these chunks, neighbours joined into one."""
    numbers = sorted(numbers)
    if not numbers:
        return []
    first_of_runs = [numbers[0], *(after for before, after in pairwise(numbers) if after > before + 1)]
    last_of_runs = [*(before for before, after in pairwise(numbers) if after > before + 1), numbers[-1]]
    ranges = [
        (chunk_range(entry, first)[0], chunk_range(entry, last)[1])
        for first, last in zip(first_of_runs, last_of_runs, strict=True)
    ]
    return [altered(entry, start, stop) for start, stop in ranges]


def altered(entry: FileEntry, start: int, stop: int) -> Damage:
    """The damage of one range of bytes."""
    message = f"{entry.name} was altered between bytes {start} and {stop}"
    return Damage(file=entry.name, kind="altered", start=start, stop=stop, message=message)


def digest_of_view(view: memoryview, start: int, stop: int) -> str:
    """The XXH3-128 of a range of bytes in memory."""
    with view[start:stop] as piece:
        return xxhash.xxh3_128_hexdigest(piece)


def streamed_chunks(source: BinaryIO, entry: FileEntry) -> Iterator[tuple[int, str]]:
    """Size and digest of one chunk after the other, to the end of any source, whatever its length."""
    buffer = memoryview(bytearray(BLOCK_SIZE_BYTES))
    digest, size_bytes = xxhash.xxh3_128(), 0
    while count := source.readinto(buffer[: entry.chunk_size_bytes - size_bytes]):  # type: ignore[attr-defined]  # has it
        digest.update(buffer[:count])
        size_bytes += count
        if size_bytes == entry.chunk_size_bytes:
            yield size_bytes, digest.hexdigest()
            digest, size_bytes = xxhash.xxh3_128(), 0
    if size_bytes:
        yield size_bytes, digest.hexdigest()
