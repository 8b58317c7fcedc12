"""Digests of a payload: SHA-256 says *whether* a file is intact, the chunk table says *where* it is damaged.

SHA-256 is FIPS 180-4. The chunk digests are XXH3-128 (https://xxhash.com), which detects accidents, but no attacker:
only SHA-256 does that.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import xxhash

CHUNK_SIZE_BYTES = 8 * 2**20

BLOCK_SIZE_BYTES = 2**20
"""How much is read, hashed and written at a time: small enough for a processor's cache."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class FileDigests:
    """Size and digests of one file. The last chunk may be short. An empty file has no chunks."""

    size_bytes: int
    sha256: str
    chunk_size_bytes: int
    chunk_xxh3_128: tuple[str, ...]


class StreamDigest:
    """Computes the :class:`FileDigests` of bytes that arrive in pieces of any size."""

    def __init__(self, chunk_size_bytes: int = CHUNK_SIZE_BYTES) -> None:
        self._sha256 = hashlib.sha256()
        self._chunk = xxhash.xxh3_128()
        self._chunk_size_bytes = chunk_size_bytes
        self._chunk_digests: list[str] = []
        self.size_bytes = 0

    def update(self, data: Buffer) -> None:
        """Add the next bytes."""
        view = memoryview(data).cast("B")
        while view:
            piece = view[: self._chunk_size_bytes - self.size_bytes % self._chunk_size_bytes]
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
        """Return the digests of all bytes. Call it once, at the end."""
        if self.size_bytes % self._chunk_size_bytes:
            self._end_chunk()
        return FileDigests(
            self.size_bytes, self._sha256.hexdigest(), self._chunk_size_bytes, tuple(self._chunk_digests)
        )
