"""Compressed files whose own digests are right, whatever their tables say."""

from __future__ import annotations

import struct
from collections.abc import Callable

import xxhash


def planes_file(table: bytes, *, size: int, count: int, frame: int, version: int = 1, frames: bytes = b"") -> bytes:
    """A file whose own digests are right, whatever its table says."""
    numbers = (size, count, frame, version)
    digest = xxhash.xxh3_64(table)
    digest.update(struct.pack("<QQII", *numbers))
    footer = struct.pack("<QQIIQ8s", *numbers, digest.intdigest(), b"CKPLEND\n")
    return b"\x93CKPLANE" + frames + table + footer


def entry_of_table(stored_bytes: int, method: int = 0, digest: int = 0) -> bytes:
    return struct.pack("<IB3xQ", stored_bytes, method, digest)


def seekable(entries: list[tuple[int, int]], *, frames: bytes = b"", flags: int = 0) -> bytes:
    content = b"".join(struct.pack("<II", *entry) for entry in entries)
    content += struct.pack("<IBI", len(entries), flags, 0x8F92EAB1)
    return frames + struct.pack("<II", 0x184D2A5E, len(content)) + content


HOSTILE: dict[str, Callable[[], tuple[str, bytes]]] = {
    "more frames than it has": lambda: ("planes", planes_file(b"", size=2**60, count=2**40, frame=2**20)),
    "frames of no size": lambda: ("planes", planes_file(entry_of_table(1), size=1, count=1, frame=0, frames=b"x")),
    "frames too large": lambda: (
        "planes",
        planes_file(entry_of_table(1, 1), size=2**31, count=1, frame=2**31, frames=b"x"),
    ),
    "frames past the end": lambda: (
        "planes",
        planes_file(entry_of_table(2**32 - 1), size=1, count=1, frame=64, frames=b"x"),
    ),
    "frames that overlap": lambda: (
        "planes",
        planes_file(entry_of_table(1) * 2, size=128, count=2, frame=64, frames=b"x"),
    ),
    "an unknown method": lambda: ("planes", planes_file(entry_of_table(1, 7), size=1, count=1, frame=64, frames=b"x")),
    "fewer frames than bytes": lambda: (
        "planes",
        planes_file(entry_of_table(1), size=2**40, count=1, frame=64, frames=b"x"),
    ),
    "a plane larger than its frame": lambda: (
        "planes",
        planes_file(
            entry_of_table(12, 2), size=64, count=1, frame=64, frames=struct.pack("<II", 2**32 - 1, 5) + b"abcd"
        ),
    ),
    "a seek table longer than the file": lambda: ("zstd", struct.pack("<IBI", 2**32 - 1, 0, 0x8F92EAB1) * 3),
    "frames of two sizes": lambda: ("zstd", seekable([(1, 64), (1, 32), (1, 64)], frames=b"xyz")),
    "a frame of gigabytes": lambda: ("zstd", seekable([(1, 2**32 - 1)], frames=b"x")),
    "a table that is not ours": lambda: ("zstd", seekable([(1, 64)], frames=b"x", flags=0x80)),
}
