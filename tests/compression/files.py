"""Compressed files in memory, for tests."""

from __future__ import annotations

import io
from collections.abc import Iterable

from ckpt_lib.compression import CODECS, CompressingWriter, PlainFile
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream import HashingWriter, VerifiedFile


class Taken(bytearray):
    """A sink that keeps everything."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        self.extend(data)
        return len(data)


def stored(
    pieces: Iterable[bytes], codec: str, *, frame_size_bytes: int = 64, workers: int = 2, chunk_size_bytes: int = 128
) -> tuple[bytes, FileEntry]:
    """Return a compressed file, and what a manifest says of it."""
    sink = Taken()
    with HashingWriter(sink, chunk_size_bytes=chunk_size_bytes) as target:
        with CompressingWriter(target, CODECS[codec], frame_size_bytes=frame_size_bytes, workers=workers) as stream:
            for piece in pieces:
                stream.write(piece)
            stream.end()
        digests = target.finish()
        entry = FileEntry(name="checkpoint.pt", **vars(digests), compression=target.compression)
    return bytes(sink), entry


def opened(data: bytes, codec: str, entry: FileEntry | None = None, *, verify: bool = True) -> PlainFile:
    """Return a compressed file as the plain one."""
    return PlainFile(VerifiedFile(io.BytesIO(data), entry, verify=verify), CODECS[codec])
