"""Checking a file against its entry: all damage is found and located, by the thorough check and by the quick one."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import StoreError
from ckpt_lib.stream import BLOCK_SIZE_BYTES, find_damaged_chunks, find_damages
from tests.helpers import flip_bit
from tests.stream.samples import covered, entry_of

# --- finding damage ---


@given(st.binary(min_size=1, max_size=100), st.integers(1, 40), st.data())
def test_altered_bytes_are_located_to_their_chunks(data: bytes, chunk: int, draw: st.DataObject) -> None:
    """The reported ranges are exactly the chunks that hold an altered byte, with neighbours joined."""
    places = draw.draw(st.sets(st.integers(0, len(data) - 1), min_size=1, max_size=5))
    altered = bytes(byte ^ (draw.draw(st.integers(1, 255)) if at in places else 0) for at, byte in enumerate(data))
    damages = find_damages(io.BytesIO(altered), entry_of(data, chunk))
    assert {damage.kind for damage in damages} == {"altered"}
    chunks = {at // chunk for at in places}
    assert covered(damages, "altered") == {at for at in range(len(data)) if at // chunk in chunks}
    assert all(first.stop < second.start for first, second in itertools.pairwise(damages))
    assert all("file.pt" in damage.message and str(damage.start) in damage.message for damage in damages)


@given(st.binary(min_size=1, max_size=100), st.integers(1, 40), st.data())
def test_a_truncated_file_is_told_from_an_altered_one(data: bytes, chunk: int, draw: st.DataObject) -> None:
    """What is missing is reported as missing; whole chunks before it are still compared."""
    length = draw.draw(st.integers(0, len(data) - 1))
    short = bytearray(data[:length])
    at = draw.draw(st.none() | st.integers(0, length - 1)) if length else None
    if at is not None:
        short[at] ^= 1
    damages = find_damages(io.BytesIO(short), entry_of(data, chunk))
    assert covered(damages, "truncated") == set(range(length, len(data)))
    whole = length - length % chunk
    expected = set() if at is None or at >= whole else set(range(at - at % chunk, at - at % chunk + chunk))
    assert covered(damages, "altered") == expected


@given(st.binary(max_size=100), st.binary(min_size=1, max_size=50), st.integers(1, 40))
def test_an_extended_file_is_told_from_an_altered_one(data: bytes, more: bytes, chunk: int) -> None:
    """Bytes that were added are reported as added, and as nothing else."""
    damages = find_damages(io.BytesIO(data + more), entry_of(data, chunk))
    assert [(damage.kind, damage.start, damage.stop) for damage in damages] == [
        ("extended", len(data), len(data) + len(more))
    ]


@given(st.binary(max_size=60), st.binary(max_size=60) | st.none(), st.integers(1, 20))
def test_any_other_file_is_damaged(data: bytes, other: bytes | None, chunk: int) -> None:
    """Two files are either equal or the second has a damage, and all ranges lie within the longer of them."""
    found = data if other is None else other
    damages = find_damages(io.BytesIO(found), entry_of(data, chunk))
    assert bool(damages) == (data != found)
    assert all(0 <= damage.start < damage.stop <= max(len(data), len(found)) for damage in damages)


@pytest.mark.parametrize("local", [True, False])
def test_sha256_has_the_last_word(local: bool) -> None:
    """Chunk digests that agree do not make a file intact whose SHA-256 differs."""
    entry = entry_of(b"0123456789").model_copy(update={"sha256": "0" * 64})
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(b"0123456789")
        file.seek(0)
        (damage,) = find_damages(cast(BinaryIO, file) if local else io.BytesIO(b"0123456789"), entry)
    assert (damage.kind, damage.start, damage.stop) == ("altered", 0, 10)
    assert "0" * 64 in damage.message


def test_a_chunk_that_differs_is_damage_though_sha256_agrees() -> None:
    """A chunk table that lies is reported: repair would go by it."""
    entry = entry_of(b"0123456789", 4)
    entry = entry.model_copy(update={"chunk_xxh3_128": (entry.chunk_xxh3_128[0], "0" * 32, entry.chunk_xxh3_128[2])})
    (damage,) = find_damages(io.BytesIO(b"0123456789"), entry)
    assert (damage.start, damage.stop) == (4, 8)


def test_progress_counts_every_byte_once() -> None:
    """A progress bar ends at exactly the size of the file."""
    data = bytes(3 * BLOCK_SIZE_BYTES + 17)
    steps: list[int] = []
    find_damages(io.BytesIO(data), entry_of(data, 2**20), steps.append)
    assert sum(steps) == len(data)
    assert len(steps) > 1


def test_a_short_read_is_not_the_end() -> None:
    """Pipes, sockets and some file systems give less than asked; the rest is read as well."""

    class Dripping(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            return super().readinto(memoryview(buffer)[:3])

    assert find_damages(Dripping(b"0123456789"), entry_of(b"0123456789")) == []


# --- the quick check ---


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 20))
def test_both_checks_of_both_kinds_of_file_find_the_same(data: bytes, other: bytes, chunk: int) -> None:
    """The same damages in the same words, by SHA-256 or not, of a file of this machine and of any other stream."""
    entry = entry_of(data, chunk)
    wanted = find_damages(io.BytesIO(other), entry)
    assert find_damaged_chunks(io.BytesIO(other), entry) == wanted
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(other)
        file.seek(0)
        assert find_damaged_chunks(cast(BinaryIO, file), entry) == wanted
        file.seek(0)
        steps: list[int] = []
        assert find_damages(cast(BinaryIO, file), entry, steps.append) == wanted
        assert len(other) != len(data) or sum(steps) == len(data)


def test_the_quick_check_reads_large_chunks_in_blocks(tmp_path: Path) -> None:
    """Chunks larger than the buffer, read by several threads, each through its own: all of it counts, once."""
    data = bytes(range(256)) * (5 * BLOCK_SIZE_BYTES // 512) + b"end"
    path = tmp_path / "file.pt"
    path.write_bytes(data)
    steps: list[int] = []
    entry = entry_of(data, BLOCK_SIZE_BYTES + 100)
    with open(path, "rb", buffering=0) as file:
        assert find_damaged_chunks(file, entry, steps.append) == []
    assert sum(steps) == len(data)
    flip_bit(path, -1)
    with open(path, "rb", buffering=0) as file:
        (damage,) = find_damaged_chunks(file, entry)
    assert (damage.kind, damage.stop) == ("altered", len(data))


@pytest.mark.parametrize("table", [(), ("0" * 32,)], ids=["none", "too short"])
def test_without_a_chunk_table_the_quick_check_is_the_thorough_one(table: tuple[str, ...]) -> None:
    """A manifest of another program may lack it; nothing is taken for intact that was not looked at."""
    entry = entry_of(b"0123456789", 4).model_copy(update={"chunk_xxh3_128": table})
    assert find_damaged_chunks(io.BytesIO(b"012345678x"), entry)
    if not table:
        assert find_damaged_chunks(io.BytesIO(b"0123456789"), entry) == []


def test_what_cannot_be_read_is_the_error_of_the_store(tmp_path: Path) -> None:
    """Where reading at an offset fails, the source reads the same bytes and says in its own words why not."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"0123456789")

    class Reader(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            raise StoreError("the store failed: a bad sector")

    write_only = os.open(path, os.O_WRONLY)
    with Reader(path) as file:
        os.dup2(write_only, file.fileno())  # the system refuses to read from it
        os.close(write_only)
        with pytest.raises(StoreError, match="bad sector"):
            find_damaged_chunks(file, entry_of(b"0123456789"))
