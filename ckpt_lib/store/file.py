"""A stored object as a Python file that can be read from any position."""

from __future__ import annotations

import io
from typing import BinaryIO

from ckpt_lib.store.base import RangeReader


class StoredFile(io.RawIOBase, BinaryIO):
    """A stored object as a file. It takes over ``reader`` and closes it."""

    def __init__(self, reader: RangeReader) -> None:
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.size_bytes}[whence]
        if start + offset < 0:
            raise ValueError(f"negative position {start + offset}")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read the next bytes into ``buffer``; 0 at the end. Raises the errors of the store."""
        with memoryview(buffer).cast("B") as target:
            data = self._reader.read_at(self._position, self._position + len(target))
            target[: len(data)] = data
        self._position += len(data)
        return len(data)

    def fileno(self) -> int:
        """Return the descriptor of a store that has one; raise ``OSError`` for any other, as files in memory do."""
        descriptor = self._reader.fileno()
        if descriptor is None:
            raise io.UnsupportedOperation("fileno")
        return descriptor

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()
