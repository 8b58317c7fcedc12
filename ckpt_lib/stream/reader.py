"""The reading half of the stream: verifies bytes before it returns them."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import BinaryIO, Self

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.core.names import id_or_placeholder
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream.checking import find_damages
from ckpt_lib.stream.chunks import (
    altered_chunks,
    comparable_chunks,
    compared_chunks,
    differing_chunks,
    runs,
    size_damage,
)
from ckpt_lib.stream.mapping import Memory, memory_of

_PIECE_BYTES = 2**16
_AHEAD_BYTES = 2**26
"""What a disk reads while the first bytes are looked at."""


class VerifiedFile(io.RawIOBase, BinaryIO):
    """A payload that is opened once, mapped once, and verified before use.

    The constructor compares the size. Each chunk is compared before any of its bytes is returned; :meth:`require`
    verifies many chunks at once, on several processors. Every method that returns bytes raises
    :class:`CorruptCheckpointError` with all damage found. Without an ``entry``, or with ``verify=False``, nothing is
    compared.

    The bytes returned are the bytes verified, unless the file is overwritten in place after its pages left the memory.
    The file takes over ``source`` and closes it.
    """

    def __init__(self, source: BinaryIO, entry: FileEntry | None, *, verify: bool = True) -> None:
        self._source = source
        self._entry = entry if verify else None
        self.entry_name = entry.name if entry else ""
        self.compression = entry.compression if entry else None
        """What the manifest says of the plain bytes, of a file that is compressed."""
        self._position = 0
        self._memory: Memory | None = None
        try:
            self._memory = self._open_memory(entry)
            self.size_bytes = len(self._memory.view)
            self._chunk_size_bytes = self._unit_bytes()
            self._unverified = set(range(-(-self.size_bytes // self._chunk_size_bytes)))
            self._check_size()
        except BaseException:
            self.close()
            raise

    def _open_memory(self, entry: FileEntry | None) -> Memory:
        return memory_of(self._source, entry.size_bytes if entry else 0)

    def _unit_bytes(self) -> int:
        """Return how many bytes are verified at once."""
        if self._entry is None:  # nothing is hashed, so small reads are enough
            return _PIECE_BYTES
        return self._entry.chunk_size_bytes

    def _check_size(self) -> None:
        entry = self._entry
        if entry is None:
            return
        if damages := size_damage(entry, self.size_bytes):
            _read_in_order(self._source)
            numbers = comparable_chunks(entry, self.size_bytes)
            damages += altered_chunks(entry, differing_chunks(entry, numbers, self._held.digest))
            raise _corrupt(entry, damages)
        if not self.size_bytes and (damages := find_damages(io.BytesIO(), entry)):  # no later access would verify it
            raise _corrupt(entry, damages)

    def require(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Verify every chunk that these byte ranges touch, unless that was done before.

        Raises :class:`CorruptCheckpointError` with all damage among them, or the errors of the source for bytes that
        cannot be read.
        """
        for _ in self.verify(ranges):
            pass

    def verify(self, ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
        """Do the same step by step: yield up to which byte of the file, exclusive, the ranges are verified.

        The following chunks are read and compared meanwhile. After damage nothing is yielded: the rest is compared, and
        the error raised.
        """
        numbers = self._unverified_chunks(ranges)
        if not numbers:
            return
        if self._entry is None:
            self._fetch(numbers)
            self._unverified.difference_update(numbers)
            return
        _read_in_order(self._source)
        differing: list[int] = []
        for number, is_same in compared_chunks(self._entry, numbers, self._held.digest):
            if not is_same:
                differing.append(number)
                continue
            self._unverified.discard(number)
            if not differing:
                yield (number + 1) * self._chunk_size_bytes
        if differing:
            raise _corrupt(self._entry, altered_chunks(self._entry, differing))

    def _unverified_chunks(self, ranges: Iterable[tuple[int, int]]) -> list[int]:
        if not self._unverified:
            return []
        size = self._chunk_size_bytes
        touched: set[int] = set()
        for start, stop in ranges:
            if start < stop:
                touched.update(range(start // size, -(-stop // size)))
        return sorted(self._unverified & touched)

    def require_all(self) -> None:
        """Verify all chunks that were not verified yet."""
        self.require([(0, self.size_bytes)])

    def read_ahead(self) -> None:
        """Let the system begin to read the file, of which all is needed soon."""
        _advise(self._source, _AHEAD_BYTES, "POSIX_FADV_WILLNEED")

    def view(self, start: int, stop: int) -> memoryview:
        """Return verified bytes as private memory. Writing to it changes neither the file nor another reader.

        The memory stays valid when the file is closed or deleted. Raises as :meth:`require` does.
        """
        if self._unverified:
            self.require([(start, stop)])
        return self._held.view[start:stop]

    def forget(self, start: int, stop: int) -> None:
        """Let go of the memory of a range, so that reading a file of any size takes little of it.

        What is asked for again is read and verified again. What was written to a view of the range is lost.
        """
        size = self._chunk_size_bytes
        self._unverified.update(range(start // size, -(-stop // size)))
        self._held.forget(start, stop)

    @property
    def _held(self) -> Memory:
        if self._memory is None:
            raise ValueError("I/O operation on closed file")
        return self._memory

    def _fetch(self, numbers: Iterable[int]) -> None:
        for first, last in runs(numbers):
            start, stop = first * self._chunk_size_bytes, (last + 1) * self._chunk_size_bytes
            self._fetch_range(start, min(stop, self.size_bytes))

    def _fetch_range(self, start: int, stop: int) -> None:
        if not self._held.fetch(start, stop):
            raise CorruptCheckpointError(
                "the file became shorter while it was read",
                hint="Another program writes to the store's files. Restore a backup once it has stopped.",
            )

    # --- as a file ---

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with memoryview(buffer).cast("B") as target:
            start = min(self._position, self.size_bytes)
            stop = min(start + len(target), self.size_bytes)
            with self.view(start, stop) as piece:
                target[: stop - start] = piece
        self._position += stop - start
        return stop - start

    def readall(self) -> bytes:
        start = min(self._position, self.size_bytes)
        self._position = max(self._position, self.size_bytes)
        with self.view(start, self.size_bytes) as piece:
            return bytes(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Its memory is freed with the last view of it."""
        if not self.closed:
            self._memory = None
            self._source.close()
        super().close()


class MemoryFile(io.RawIOBase, BinaryIO):
    """Reads memory as a file from start to end, without copying it first."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with memoryview(buffer).cast("B") as target:
            count = min(len(target), len(self._view))
            target[:count] = self._view[:count]
        self._view = self._view[count:]
        return count


def _read_in_order(source: BinaryIO) -> None:
    """Ask the system to read further ahead than by default."""
    _advise(source, 0, "POSIX_FADV_SEQUENTIAL")


def _advise(source: BinaryIO, size_bytes: int, advice: str) -> None:
    if hasattr(os, "posix_fadvise"):
        try:
            os.posix_fadvise(source.fileno(), 0, size_bytes, getattr(os, advice))
        except (OSError, AttributeError):  # not a local file, or one that takes no advice
            return


def _corrupt(entry: FileEntry, damages: list[Damage]) -> CorruptCheckpointError:
    found = id_or_placeholder(entry.name)
    return CorruptCheckpointError(
        damages[0].message,
        damages=damages,
        expected=f"SHA-256 {entry.sha256}",
        hint=f"Nothing was loaded. `ckpt validate {found}` shows all damage, `ckpt restore {found}` restores a backup.",
    )
