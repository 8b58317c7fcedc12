"""Bytes cut at random, the digests and entries they should have, and the places that damages cover."""

from __future__ import annotations

import hashlib

import xxhash
from hypothesis import strategies as st

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream import FileDigests


def expected_digests(data: bytes, chunk: int) -> FileDigests:
    """The definition, spelled with the libraries that define it."""
    chunks = tuple(xxhash.xxh3_128(data[at : at + chunk]).hexdigest() for at in range(0, len(data), chunk))
    return FileDigests(len(data), hashlib.sha256(data).hexdigest(), chunk, chunks)


def entry_of(data: bytes, chunk: int = 8) -> FileEntry:
    return FileEntry(name="file.pt", **expected_digests(data, chunk).__dict__)


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """Some bytes, cut at random places."""
    data = draw(st.binary(max_size=100))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=6)))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def covered(damages: list[Damage], kind: str) -> set[int]:
    return {at for damage in damages if damage.kind == kind for at in range(damage.start, damage.stop)}
