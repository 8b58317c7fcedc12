"""Payloads in memory: what a format writes, and what it is given to read."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ckpt_lib.errors import CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.formats.base import Format, Payload
from ckpt_lib.stream import HashingWriter, VerifiedFile
from ckpt_lib.stream.digests import Buffer

Files = dict[str, bytes]
"""The bytes of each file of a payload by its name, which is empty for a single file."""


class MemorySink:
    """Keeps the files that a format writes."""

    def __init__(self) -> None:
        self.files: Files = {}
        self._current = bytearray()

    @contextmanager
    def open(self, name: str = "") -> Iterator[HashingWriter]:
        """Begin a file. A name is taken once."""
        if name in self.files:
            raise UnsupportedFormatError(f"the format wrote the file {name!r} twice")
        self._current = bytearray()
        with HashingWriter(self) as stream:
            yield stream
            stream.finish()
        self.files[name] = bytes(self._current)

    def write(self, data: Buffer, /) -> int:
        """Take bytes of the file that was begun."""
        view = memoryview(data).cast("B")
        self._current += view
        return view.nbytes


class MemorySource:
    """A payload for a format to read, without digests."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files
        self._opened: dict[str, VerifiedFile] = {}

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._files)

    def open(self, name: str = "") -> VerifiedFile:
        if name not in self._files:
            raise CorruptCheckpointError(f"the payload has no file {name!r}")
        if name not in self._opened:
            self._opened[name] = self._file(self._files[name])
        file = self._opened[name]
        file.seek(0)
        return file

    def _file(self, data: bytes) -> VerifiedFile:
        return VerifiedFile(io.BytesIO(data), None)


def encoded(payload_format: Format, prepared: Payload) -> Files:
    """Return the files of a prepared payload, written as a save writes them."""
    sink = MemorySink()
    payload_format.lay_out(prepared).write(sink)
    return sink.files
