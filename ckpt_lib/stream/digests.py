"""Digests of a payload: SHA-256 says *whether* a file is intact, the chunk table says *where* it is not.

SHA-256 is FIPS 180-4; the chunk digests are XXH3-128 (https://xxhash.com), which is no defence against an attacker and
need not be: it only locates damage that SHA-256 has established, or that no one made on purpose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field

CHUNK_SIZE_BYTES = 8 * 2**20

BLOCK_SIZE_BYTES = 2**20
"""How much is read, hashed and written at a time: small enough for a processor's cache."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class FileDigests:
    """Size and digests of one file. The last chunk may be short; an empty file has no chunks."""

    size_bytes: int
    sha256: str
    chunk_size_bytes: int
    chunk_xxh3_128: tuple[str, ...]


class Damage(BaseModel):
    """One finding about a stored file: what is wrong with which bytes, ``start`` inclusive to ``stop`` exclusive.

    ``tensors`` names those that lie there in part, where that was asked for and could be told.
    """

    model_config = ConfigDict(frozen=True)

    file: str
    kind: Literal["missing", "truncated", "extended", "altered", "manifest", "unreadable", "unloadable"]
    start: int = Field(default=0, ge=0)
    stop: int = Field(default=0, ge=0)
    message: str
    tensors: tuple[str, ...] = ()


def missing_file(name: str) -> Damage:
    """The damage of a file that is not there."""
    return Damage(file=name, kind="missing", message=f"{name} is missing")


class StreamDigest:
    """Computes :class:`FileDigests` of bytes that come in pieces of any size."""

    def __init__(self, chunk_size_bytes: int = CHUNK_SIZE_BYTES) -> None:
        self._sha256 = hashlib.sha256()
        self._chunk = xxhash.xxh3_128()
        self._chunk_size_bytes = chunk_size_bytes
        self._chunk_digests: list[str] = []
        self.size_bytes = 0

    @property
    def bytes_to_chunk_end(self) -> int:
        """How many bytes may come before the next chunk begins (at least 1)."""
        return self._chunk_size_bytes - self.size_bytes % self._chunk_size_bytes

    def update(self, data: Buffer) -> None:
        """Take in the next bytes."""
        view = memoryview(data).cast("B")
        while view:
            piece = view[: self.bytes_to_chunk_end]
            self._sha256.update(piece)
            self._chunk.update(piece)
            self.size_bytes += len(piece)
            if self.size_bytes % self._chunk_size_bytes == 0:
                self._end_chunk()
            view = view[len(piece) :]

    def _end_chunk(self) -> None:
        self._chunk_digests.append(self._chunk.hexdigest())
        self._chunk.reset()

    def finish(self) -> FileDigests:
        """The digests of everything taken in; call it once, at the end."""
        if self.size_bytes % self._chunk_size_bytes:
            self._end_chunk()
        return FileDigests(
            self.size_bytes, self._sha256.hexdigest(), self._chunk_size_bytes, tuple(self._chunk_digests)
        )


def altered_ranges(
    expected: Sequence[str], found: Sequence[str], chunk_size_bytes: int, size_bytes: int
) -> list[tuple[int, int]]:
    """Byte ranges of the chunks whose digests differ, neighbours joined, within the first ``size_bytes``."""
    ranges: list[tuple[int, int]] = []
    for number, (want, got) in enumerate(zip(expected, found, strict=False)):
        start = number * chunk_size_bytes
        if want == got or start >= size_bytes:
            continue
        stop = min(start + chunk_size_bytes, size_bytes)
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], stop)
        else:
            ranges.append((start, stop))
    return ranges
