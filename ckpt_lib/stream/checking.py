"""Whether a file is the one that was saved: the thorough check and the quick one."""

from __future__ import annotations

from typing import BinaryIO

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.chunks import (
    Progress,
    ReadAt,
    altered,
    altered_chunks,
    comparable_chunks,
    differing_chunks,
    has_chunk_table,
    local_size_bytes,
    size_damage,
    streamed_chunks,
)
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, Damage, FileDigests, StreamDigest, altered_ranges


def find_damages(source: BinaryIO, entry: FileEntry, progress: Progress | None = None) -> list[Damage]:
    """Read ``source`` to its end and report every way in which it is not the file that ``entry`` describes.

    An empty list means: size, SHA-256 and every chunk digest agree. Memory use does not depend on the file's size.
    Raises what the source raises.
    """
    digest = StreamDigest(entry.chunk_size_bytes)
    buffer = bytearray(BLOCK_SIZE_BYTES)
    while read := source.readinto(buffer):  # type: ignore[attr-defined]  # every binary file has it
        digest.update(memoryview(buffer)[:read])
        if progress:
            progress(read)
    return _compare(digest.finish(), entry)


def _compare(found: FileDigests, entry: FileEntry) -> list[Damage]:
    damages = size_damage(entry, found.size_bytes)
    whole = min(found.size_bytes, entry.size_bytes)
    if damages:  # the chunk in which a file ends early or late differs for that reason alone
        whole -= whole % entry.chunk_size_bytes
    ranges = altered_ranges(entry.chunk_xxh3_128, found.chunk_xxh3_128, entry.chunk_size_bytes, whole)
    damages += [altered(entry, start, stop) for start, stop in ranges]
    if not damages and found.sha256 != entry.sha256:
        message = f"{entry.name} has SHA-256 {found.sha256}, not {entry.sha256}"
        damages.append(Damage(file=entry.name, kind="altered", start=0, stop=found.size_bytes, message=message))
    return damages


def find_damaged_chunks(source: BinaryIO, entry: FileEntry, progress: Progress | None = None) -> list[Damage]:
    """The quick check: compare size and the XXH3-128 of every chunk, of a local file on several processors.

    It finds what :func:`find_damages` finds of accidents, and says it in the same words; only SHA-256 also withstands
    someone who makes another file with the same chunk digests. ``source`` is read from its start. Where ``entry`` has
    no chunk table, its SHA-256 is computed instead. Raises what the source raises.
    """
    if not has_chunk_table(entry):
        return find_damages(source, entry, progress)
    size_bytes = local_size_bytes(source)
    if size_bytes is None:
        return _check_stream(source, entry, progress)
    numbers = differing_chunks(entry, comparable_chunks(entry, size_bytes), ReadAt(source).digest, progress)
    return [*size_damage(entry, size_bytes), *altered_chunks(entry, numbers)]


def _check_stream(source: BinaryIO, entry: FileEntry, progress: Progress | None) -> list[Damage]:
    found: list[str] = []
    total_bytes = 0
    for size_bytes, digest in streamed_chunks(source, entry):
        found.append(digest)
        total_bytes += size_bytes
        if progress:
            progress(size_bytes)
    wanted = entry.chunk_xxh3_128
    differing = [number for number in comparable_chunks(entry, total_bytes) if found[number] != wanted[number]]
    return [*size_damage(entry, total_bytes), *altered_chunks(entry, differing)]
