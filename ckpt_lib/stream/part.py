"""A part of a file, read as a file of its own."""

from __future__ import annotations

import io

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.mapping import Memory
from ckpt_lib.stream.reader import VerifiedFile


class FilePart(VerifiedFile):
    """The bytes from ``start`` to ``stop`` of another file, which stays open as long as this one is read.

    Nothing is copied. Bytes are verified as far as the other file does.
    """

    def __init__(self, whole: VerifiedFile, start: int, stop: int) -> None:
        self._whole = whole
        self._start, self._stop = start, stop
        super().__init__(io.BytesIO(), None)

    def _open_memory(self, _: FileEntry | None) -> Memory:
        return _Window(self._whole, self._start, self._stop)


class _Window:
    """A part of the memory of a file."""

    def __init__(self, whole: VerifiedFile, start: int, stop: int) -> None:
        self._whole = whole
        self._start = start
        self.view = whole._held.view[start:stop]

    def fetch(self, start: int, stop: int) -> bool:
        self._whole.require([(self._start + start, self._start + stop)])
        return True

    def digest(self, start: int, stop: int) -> str:
        raise NotImplementedError("a part of a file has no digests of its own")
