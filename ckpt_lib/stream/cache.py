"""Keeps verified payloads in memory, so that loading one again neither reads nor verifies it."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
from collections import OrderedDict
from typing import Any, BinaryIO, cast

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.chunks import local_size_bytes
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES
from ckpt_lib.stream.reader import VerifiedFile

CacheKey = tuple[str, str, str]
"""The location of a payload, its version in the store, and its SHA-256."""


class PayloadCache:
    """Copies of whole payloads, of at most ``limit_bytes`` together. The least recently used copy is dropped first.

    The copies are private to this process, verified when they are admitted, and never written to. So neither damage on
    the disk nor a caller who changes loaded tensors affects later loads. Threads may share the cache. An open copy
    stays readable after it is dropped.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[CacheKey, tuple[int, int]] = OrderedDict()  # key to descriptor and size

    def open(self, key: CacheKey) -> BinaryIO | None:
        """Open the copy with this key; ``None`` if the cache has none."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return _opened(self._kept[key][0])

    def admit(self, key: CacheKey, source: BinaryIO, entry: FileEntry) -> BinaryIO | None:
        """Copy ``source`` into the cache, close it, and open the copy.

        Returns ``None``, and leaves ``source`` open, if it has the wrong size or is too large for the cache. Raises
        :class:`~ckpt_lib.errors.CorruptCheckpointError` and the errors of the source. Nothing is kept then.
        """
        if not hasattr(os, "preadv"):  # two readers of one copy would share their position
            return None
        if entry.size_bytes > self.limit_bytes or local_size_bytes(source) not in {None, entry.size_bytes}:
            return None
        with source:
            copy = _private_copy(source)
        try:
            with VerifiedFile(_opened(copy), entry) as file:
                file.require_all()
            opened = _opened(copy)
        except BaseException:
            os.close(copy)
            raise
        self._keep(key, copy, entry.size_bytes)
        return opened

    def _keep(self, key: CacheKey, descriptor: int, size_bytes: int) -> None:
        with self._lock:
            self._drop(key)
            self._kept[key] = descriptor, size_bytes
            self.size_bytes += size_bytes
            while self.size_bytes > self.limit_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: CacheKey) -> None:
        descriptor, size_bytes = self._kept.pop(key, (None, 0))
        if descriptor is not None:
            os.close(descriptor)
            self.size_bytes -= size_bytes

    def clear(self) -> None:
        """Free all memory, except copies that are open or used by tensors."""
        with self._lock:
            for key in list(self._kept):
                self._drop(key)

    def __del__(self) -> None:
        self.clear()


def _private_copy(source: BinaryIO) -> int:
    descriptor = _private_file()
    try:
        buffer = memoryview(bytearray(BLOCK_SIZE_BYTES))
        while count := source.readinto(buffer):  # type: ignore[attr-defined]  # every binary file has it
            written = 0
            while written < count:
                written += os.write(descriptor, buffer[written:count])
        _seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


if sys.platform == "linux":
    import fcntl

    def _private_file() -> int:
        """Create a file in memory, without a name."""
        return os.memfd_create("ckpt-cache", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def _seal(descriptor: int) -> None:
        """Make the file immutable. Private mappings of it stay writable."""
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)

else:

    def _private_file() -> int:
        """Create a temporary file without a name."""
        with tempfile.TemporaryFile() as file:
            return os.dup(file.fileno())

    def _seal(_descriptor: int) -> None:
        """Do nothing: no other process can open the file."""


class _Reader(io.FileIO):
    """Reads a copy with a position of its own, which a duplicated descriptor would share. Outlives the cached copy."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(os.dup(descriptor), "rb")
        self._position = 0

    def readinto(self, buffer: Any, /) -> int:
        count = os.preadv(self.fileno(), [buffer], self._position)
        self._position += count
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        found = os.pread(self.fileno(), BLOCK_SIZE_BYTES if size is None or size < 0 else size, self._position)
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: os.fstat(self.fileno()).st_size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position


def _opened(descriptor: int) -> BinaryIO:
    return cast(BinaryIO, _Reader(descriptor))
