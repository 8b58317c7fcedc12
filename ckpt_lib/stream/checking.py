"""Checks whether a file is the one that was saved: thoroughly by SHA-256, or quickly by its chunk table."""

from __future__ import annotations

from typing import BinaryIO

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.chunks import (
    Progress,
    ReadAt,
    altered_chunks,
    comparable_chunks,
    differing_chunks,
    local_size_bytes,
    size_damage,
)
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, FileDigests, StreamDigest


def find_damages(source: BinaryIO, entry: FileEntry, progress: Progress | None = None) -> list[Damage]:
    """Read ``source`` to its end, and return all differences from the file that ``entry`` describes.

    An empty list means that size, SHA-256 and every chunk digest agree. Memory use does not depend on the file's size.
    Raises the errors of the source.
    """
    digest = StreamDigest(entry.chunk_size_bytes)
    buffer = bytearray(BLOCK_SIZE_BYTES)
    while read := source.readinto(buffer):  # type: ignore[attr-defined]  # every binary file has it
        digest.update(memoryview(buffer)[:read])
        if progress:
            progress(read)
    return _compare(digest.finish(), entry)


def _compare(found: FileDigests, entry: FileEntry) -> list[Damage]:
    comparable = comparable_chunks(entry, found.size_bytes)
    differing = [number for number in comparable if found.chunk_xxh3_128[number] != entry.chunk_xxh3_128[number]]
    damages = [*size_damage(entry, found.size_bytes), *altered_chunks(entry, differing)]
    if not damages and found.sha256 != entry.sha256:
        message = f"{entry.name} has SHA-256 {found.sha256}, not {entry.sha256}"
        damages.append(Damage(file=entry.name, kind="altered", start=0, stop=found.size_bytes, message=message))
    return damages


def find_damaged_chunks(source: BinaryIO, entry: FileEntry, progress: Progress | None = None) -> list[Damage]:
    """Compare the size and the XXH3-128 of every chunk of a local file, on several processors.

    This quick check finds the same accidents as :func:`find_damages` and returns the same findings. Only SHA-256 also
    detects a file that was forged to have the same chunk digests. ``source`` is read from its start. Any other source
    is checked by :func:`find_damages`. Raises the errors of the source.
    """
    size_bytes = local_size_bytes(source)
    if size_bytes is None:
        return find_damages(source, entry, progress)
    numbers = differing_chunks(entry, comparable_chunks(entry, size_bytes), ReadAt(source).digest, progress)
    return [*size_damage(entry, size_bytes), *altered_chunks(entry, numbers)]
