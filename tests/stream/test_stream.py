"""One-pass I/O: digests are right however bytes come, damage is located, and nothing is handed out unverified."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.damage import Damage, missing_file
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import CorruptCheckpointError, StoreError
from ckpt_lib.stream import (
    BLOCK_SIZE_BYTES,
    FileDigests,
    StreamDigest,
    VerifiedFile,
    find_damaged_chunks,
    find_damages,
)
from ckpt_lib.stream.chunks import digest_of_view
from ckpt_lib.stream.digests import CHUNK_SIZE_BYTES
from tests.helpers import flip_bit, run_python


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


# --- digests ---


@given(pieces(), st.integers(1, 40))
def test_digests_do_not_depend_on_how_the_bytes_come(parts: list[bytes], chunk: int) -> None:
    """SHA-256 and every chunk digest equal those of the standard libraries, for any split of any bytes."""
    digest = StreamDigest(chunk)
    for kind, part in zip((bytes, bytearray, memoryview) * len(parts), parts, strict=False):
        digest.update(kind(part))
    assert digest.finish() == expected_digests(b"".join(parts), chunk)


@given(pieces(), st.integers(1, 40))
def test_the_next_chunk_boundary_is_known(parts: list[bytes], chunk: int) -> None:
    """Writers that align themselves to chunks are told a distance of 1 to one chunk."""
    digest = StreamDigest(chunk)
    for part in parts:
        digest.update(part)
        assert 1 <= digest.bytes_to_chunk_end <= chunk
        assert (digest.size_bytes + digest.bytes_to_chunk_end) % chunk == 0


def test_a_buffer_of_numbers_is_hashed_as_its_bytes() -> None:
    """Serializers pass buffers of other item sizes; what is hashed is what lies in memory."""
    numbers = memoryview(bytearray(range(48))).cast("d")
    digest = StreamDigest(7)
    digest.update(numbers)  # type: ignore[arg-type]  # what serializers pass is not always bytes
    assert digest.finish() == expected_digests(bytes(range(48)), 7)


def test_an_empty_stream_has_no_chunks() -> None:
    """And the SHA-256 of nothing."""
    assert StreamDigest().finish() == FileDigests(0, hashlib.sha256(b"").hexdigest(), CHUNK_SIZE_BYTES, ())


# --- finding damage ---


def covered(damages: list[Damage], kind: str) -> set[int]:
    return {at for damage in damages if damage.kind == kind for at in range(damage.start, damage.stop)}


@given(st.binary(max_size=100), st.integers(1, 40))
def test_an_intact_file_has_no_damage(data: bytes, chunk: int) -> None:
    """No false alarm, for any size and chunk size."""
    assert find_damages(io.BytesIO(data), entry_of(data, chunk)) == []


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


@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 20))
def test_any_other_file_is_damaged(data: bytes, other: bytes, chunk: int) -> None:
    """Two files are either equal or the second has a damage, and all ranges lie within the longer of them."""
    damages = find_damages(io.BytesIO(other), entry_of(data, chunk))
    assert bool(damages) == (data != other)
    assert all(0 <= damage.start < damage.stop <= max(len(data), len(other)) for damage in damages)


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


def test_a_missing_file_names_itself() -> None:
    """A person reads which file it is."""
    assert missing_file("x.pt").message == "x.pt is missing"


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


# --- reading ---


@pytest.fixture(params=["mapped", "mapped by an older system", "in memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that opens bytes as a file that is mapped, and as one that cannot be mapped."""
    if request.param == "mapped by an older system":
        monkeypatch.setattr("ckpt_lib.stream.mapping._madvise", lambda: None)

    def open_bytes(data: bytes) -> BinaryIO:
        if request.param == "in memory":
            return io.BytesIO(data)
        (tmp_path / "file.pt").write_bytes(data)
        return open(tmp_path / "file.pt", "rb", buffering=0)

    return open_bytes


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 10])
def test_a_verified_file_reads_like_the_file(opened: Any, data: bytes) -> None:
    """Empty, small and chunked files, mapped or not; the source is closed with it."""
    source = opened(data)
    with VerifiedFile(source, entry_of(data)) as file:
        assert file.read() == data
    assert source.closed
    with pytest.raises(ValueError, match="closed"):
        file.read()


@pytest.mark.parametrize("damaged", [b"0123456x89", b"x12345678x", b"012345678", b"01x3456789x", b"x1", b""])
def test_a_damaged_file_is_refused_before_anything_is_handed_out(opened: Any, damaged: bytes) -> None:
    """Opening it, or verifying it, raises all damage as the thorough check finds it, and keeps no file open."""
    source = opened(damaged)
    entry = entry_of(b"0123456789", 3)
    with pytest.raises(CorruptCheckpointError) as refused, VerifiedFile(source, entry) as file:
        file.require_all()
    assert refused.value.damages == tuple(find_damages(io.BytesIO(damaged), entry))
    assert refused.value.damages
    assert source.closed


@given(st.binary(min_size=1, max_size=60), st.integers(1, 9), st.data())
def test_damage_is_found_exactly_where_it_is_asked_for(data: bytes, chunk: int, draw: st.DataObject) -> None:
    """Ranges in chunks that are whole are given out, in any order; a range that touches a damaged chunk never is."""
    places = draw.draw(st.sets(st.integers(0, len(data) - 1), max_size=3))
    altered = bytes(byte ^ (at in places) for at, byte in enumerate(data))
    bad = {at // chunk for at in places}
    file = VerifiedFile(io.BytesIO(altered), entry_of(data, chunk))
    for _ in range(4):
        start = draw.draw(st.integers(0, len(data)))
        stop = draw.draw(st.integers(start, len(data)))
        touched = {at // chunk for at in range(start, stop)}
        if touched & bad:
            with pytest.raises(CorruptCheckpointError) as refused:
                file.view(start, stop)
            assert covered(list(refused.value.damages), "altered") == {
                at for at in range(len(data)) if at // chunk in touched & bad
            }
        else:
            assert file.view(start, stop) == data[start:stop]


def test_a_chunk_is_verified_once(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is read; and one that nobody reads is never looked at."""
    digested: list[tuple[int, int]] = []

    def count(view: memoryview, start: int, stop: int) -> str:
        digested.append((start, stop))
        return digest_of_view(view, start, stop)

    monkeypatch.setattr("ckpt_lib.stream.mapping.digest_of_view", count)
    with VerifiedFile(opened(b"0123456789"), entry_of(b"0123456789", 3)) as file:
        file.require([(4, 5), (4, 7), (3, 3)])
        assert bytes(file.view(4, 7)) == b"456"
        file.seek(5)
        assert file.read(2) == b"56"
    assert sorted(digested) == [(3, 6), (6, 9)]


@pytest.mark.parametrize("table", [(), ("0" * 32,)], ids=["none", "too short"])
def test_without_a_chunk_table_the_whole_is_verified_first(opened: Any, table: tuple[str, ...]) -> None:
    """Nothing is handed out before the SHA-256 of everything agreed."""
    entry = entry_of(b"0123456789").model_copy(update={"chunk_xxh3_128": table})
    with VerifiedFile(opened(b"012345678x"), entry) as file, pytest.raises(CorruptCheckpointError):
        file.view(0, 1)
    if not table:
        with VerifiedFile(opened(b"0123456789"), entry) as file:
            assert file.read() == b"0123456789"


def test_what_an_empty_file_should_have_been_is_compared_too() -> None:
    """No byte of it is ever asked for, so its digest is compared when it is opened."""
    entry = entry_of(b"").model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CorruptCheckpointError):
        VerifiedFile(io.BytesIO(), entry)


def test_views_outlive_the_file_and_change_only_themselves(tmp_path: Path) -> None:
    """Writing to one reaches neither the file nor another reader; closing and deleting the file leaves it as it is."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"0123456789")
    with VerifiedFile(open(path, "rb"), entry_of(b"0123456789", 3)) as file:
        view = file.view(2, 5)
    view[0] = ord("x")
    assert path.read_bytes() == b"0123456789"
    with VerifiedFile(open(path, "rb"), entry_of(b"0123456789", 3)) as file:
        assert file.read() == b"0123456789"
    path.unlink()
    assert bytes(view) == b"x34"


def test_a_source_that_fails_is_closed() -> None:
    """An I/O error while reading leaves no descriptor behind either."""

    class Failing(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError("unreadable")

    source = Failing(b"0123456789")
    with pytest.raises(OSError, match="unreadable"):
        VerifiedFile(source, entry_of(b"0123456789"))
    assert source.closed


def test_verification_can_be_left_out(opened: Any) -> None:
    """Only where the caller said so: without an entry."""
    with VerifiedFile(opened(b"other"), None) as file:
        assert file.read() == b"other"


@pytest.mark.parametrize("older", [False, True], ids=["populated", "read first"])
@pytest.mark.parametrize("verified", [True, False])
def test_a_file_that_becomes_shorter_kills_no_process(older: bool, verified: bool, tmp_path: Path) -> None:
    """Touching a page of a mapping that has no file any more is death by a signal; here it is our error."""
    assert run_python(_SHORTER, tmp_path / "f", int(older), int(verified)) == "refused\n"


_SHORTER = """
import hashlib, os, sys, xxhash
from pathlib import Path
import ckpt_lib.stream.mapping as mapping
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream import VerifiedFile

path, older, verified = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if older:
    mapping._madvise = lambda: None
path.write_bytes(bytes(3 * 4096))
digests = {"sha256": hashlib.sha256(bytes(3 * 4096)).hexdigest(),
           "chunk_xxh3_128": [xxhash.xxh3_128_hexdigest(bytes(4096))] * 3}
entry = FileEntry(name="f", size_bytes=3 * 4096, chunk_size_bytes=4096, **digests)
with VerifiedFile(open(path, "rb", buffering=0), entry if verified else None) as file:
    os.truncate(path, 4096)
    try:
        file.view(0, 3 * 4096)
    except CorruptCheckpointError as error:
        print("refused")
"""


def test_what_is_read_is_what_was_verified(tmp_path: Path) -> None:
    """A file replaced under its name between verification and use is not what is read."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"0123456789")
    with VerifiedFile(open(path, "rb"), entry_of(b"0123456789")) as file:
        (tmp_path / "other").write_bytes(b"xxxxxxxxxx")
        (tmp_path / "other").replace(path)
        assert file.read() == b"0123456789"


moves = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 60)),
        st.tuples(st.just("seek"), st.integers(0, 60)),
        st.tuples(st.just("skip"), st.integers(0, 60)),
        st.tuples(st.just("end"), st.integers(-40, 20)),
    )
)


@given(st.binary(max_size=40), moves)
def test_the_stream_behaves_like_a_file(data: bytes, steps: list[tuple[str, int]]) -> None:
    """Any sequence of reads and seeks gives what ``io.BytesIO`` gives, past the end as well."""
    whence = {"seek": io.SEEK_SET, "skip": io.SEEK_CUR, "end": io.SEEK_END}
    reference = io.BytesIO(data)
    with VerifiedFile(io.BytesIO(data), entry_of(data)) as file:
        for what, number in steps:
            if what == "read":
                assert file.read(number) == reference.read(number)
            elif not (what == "end" and len(data) + number < 0):
                assert file.seek(number, whence[what]) == reference.seek(number, whence[what])
            assert file.tell() == reference.tell()


def test_the_stream_has_no_place_before_its_start() -> None:
    """A negative position is refused and moves nothing."""
    with VerifiedFile(io.BytesIO(b"abc"), entry_of(b"abc")) as file:
        file.seek(2)
        with pytest.raises(ValueError, match="-1"):
            file.seek(-1)
        assert file.read() == b"c"


def test_what_is_mapped_is_what_is_verified(tmp_path: Path) -> None:
    """A file that reads right while its mapping holds other bytes is refused: the mapping is what is handed out."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"0123x56789")

    class RightWhenRead(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            count = super().readinto(buffer)
            memoryview(buffer)[:count] = b"0123456789"[:count]
            return count or 0

    with VerifiedFile(RightWhenRead(path), entry_of(b"0123456789")) as file, pytest.raises(CorruptCheckpointError):
        file.read()
