"""One-pass I/O: digests are right however bytes come, damage is located, and nothing is handed out unverified."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_lib.errors import CorruptCheckpointError, StorageFullError, UnsupportedFormatError
from ckpt_lib.metadata import FileEntry
from ckpt_lib.stream import (
    BLOCK_SIZE_BYTES,
    Damage,
    FileDigests,
    HashingWriter,
    StreamDigest,
    VerifiedFile,
    find_damages,
    missing_file,
)
from ckpt_lib.stream.digests import CHUNK_SIZE_BYTES, altered_ranges

BOUNDED = settings(derandomize=True, database=None, deadline=None, max_examples=300)


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


@BOUNDED
@given(pieces(), st.integers(1, 40))
def test_digests_do_not_depend_on_how_the_bytes_come(parts: list[bytes], chunk: int) -> None:
    """SHA-256 and every chunk digest equal those of the standard libraries, for any split of any bytes."""
    digest = StreamDigest(chunk)
    for kind, part in zip((bytes, bytearray, memoryview) * len(parts), parts, strict=False):
        digest.update(kind(part))
    assert digest.finish() == expected_digests(b"".join(parts), chunk)


@BOUNDED
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


@BOUNDED
@given(st.binary(max_size=100), st.integers(1, 40))
def test_an_intact_file_has_no_damage(data: bytes, chunk: int) -> None:
    """No false alarm, for any size and chunk size."""
    assert find_damages(io.BytesIO(data), entry_of(data, chunk)) == []


@BOUNDED
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


@BOUNDED
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


@BOUNDED
@given(st.binary(max_size=100), st.binary(min_size=1, max_size=50), st.integers(1, 40))
def test_an_extended_file_is_told_from_an_altered_one(data: bytes, more: bytes, chunk: int) -> None:
    """Bytes that were added are reported as added, and as nothing else."""
    damages = find_damages(io.BytesIO(data + more), entry_of(data, chunk))
    assert [(damage.kind, damage.start, damage.stop) for damage in damages] == [
        ("extended", len(data), len(data) + len(more))
    ]


@BOUNDED
@given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 20))
def test_any_other_file_is_damaged(data: bytes, other: bytes, chunk: int) -> None:
    """Two files are either equal or the second has a damage, and all ranges lie within the longer of them."""
    damages = find_damages(io.BytesIO(other), entry_of(data, chunk))
    assert bool(damages) == (data != other)
    assert all(0 <= damage.start < damage.stop <= max(len(data), len(other)) for damage in damages)


def test_sha256_has_the_last_word() -> None:
    """Chunk digests that agree do not make a file intact whose SHA-256 differs."""
    entry = entry_of(b"0123456789").model_copy(update={"sha256": "0" * 64})
    (damage,) = find_damages(io.BytesIO(b"0123456789"), entry)
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


def test_altered_ranges_ignores_what_lies_beyond_the_size() -> None:
    """Tables longer than the file point at nothing."""
    assert altered_ranges(["a", "b", "c"], ["x", "y", "z"], 4, 6) == [(0, 6)]
    assert altered_ranges(["a", "b", "c"], ["x", "b", "z"], 4, 12) == [(0, 4), (8, 12)]


def test_a_missing_file_names_itself() -> None:
    """A person reads which file it is."""
    assert missing_file("x.pt").message == "x.pt is missing"


# --- reading ---


@pytest.fixture(params=["file", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A function that opens bytes as a mapped file, and as one that cannot be mapped."""

    def open_bytes(data: bytes) -> BinaryIO:
        if request.param == "memory":
            return io.BytesIO(data)
        (tmp_path / "file.pt").write_bytes(data)
        return open(tmp_path / "file.pt", "rb", buffering=0)

    return open_bytes


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 10])
def test_a_verified_file_reads_like_the_file(opened: Any, data: bytes) -> None:
    """Empty, small and chunked files, mapped or not; the source is closed with it."""
    source = opened(data)
    with VerifiedFile(source, entry_of(data)) as file:
        assert file.stream.read() == data
    assert source.closed
    assert file.stream.closed


@pytest.mark.parametrize("damaged", [b"0123456x89", b"012345678", b"01234567890", b""])
def test_a_damaged_file_is_refused_before_anything_is_handed_out(opened: Any, damaged: bytes) -> None:
    """The constructor itself refuses, says where, and keeps no file open."""
    source = opened(damaged)
    with pytest.raises(CorruptCheckpointError) as refused:
        VerifiedFile(source, entry_of(b"0123456789"))
    assert refused.value.damages == tuple(find_damages(io.BytesIO(damaged), entry_of(b"0123456789")))
    assert refused.value.damages
    assert source.closed


def test_a_source_that_fails_is_closed() -> None:
    """An I/O error while reading leaves no descriptor behind either."""

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("unreadable")

    source = Failing(b"0123456789")
    with pytest.raises(OSError, match="unreadable"):
        VerifiedFile(source, entry_of(b"0123456789"))
    assert source.closed


def test_verification_can_be_left_out(opened: Any) -> None:
    """Only where the caller said so."""
    with VerifiedFile(opened(b"other"), entry_of(b"0123456789"), verify=False) as file:
        assert file.stream.read() == b"other"


def test_what_is_read_is_what_was_verified(tmp_path: Path) -> None:
    """A file replaced under its name between verification and use is not what is read."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"0123456789")
    with VerifiedFile(open(path, "rb"), entry_of(b"0123456789")) as file:
        (tmp_path / "other").write_bytes(b"xxxxxxxxxx")
        (tmp_path / "other").replace(path)
        assert file.stream.read() == b"0123456789"


moves = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 60)),
        st.tuples(st.just("seek"), st.integers(0, 60)),
        st.tuples(st.just("skip"), st.integers(0, 60)),
        st.tuples(st.just("end"), st.integers(-40, 20)),
    )
)


@BOUNDED
@given(st.binary(max_size=40), moves)
def test_the_stream_behaves_like_a_file(data: bytes, steps: list[tuple[str, int]]) -> None:
    """Any sequence of reads and seeks gives what ``io.BytesIO`` gives, past the end as well."""
    whence = {"seek": io.SEEK_SET, "skip": io.SEEK_CUR, "end": io.SEEK_END}
    reference = io.BytesIO(data)
    with VerifiedFile(io.BytesIO(data), entry_of(data)) as file:
        for what, number in steps:
            if what == "read":
                assert file.stream.read(number) == reference.read(number)
            elif not (what == "end" and len(data) + number < 0):
                assert file.stream.seek(number, whence[what]) == reference.seek(number, whence[what])
            assert file.stream.tell() == reference.tell()


def test_the_stream_has_no_place_before_its_start() -> None:
    """A negative position is refused and moves nothing."""
    with VerifiedFile(io.BytesIO(b"abc"), entry_of(b"abc")) as file:
        file.stream.seek(2)
        with pytest.raises(ValueError, match="-1"):
            file.stream.seek(-1)
        assert file.stream.read() == b"c"


# --- writing ---


class Sink:
    """Keeps what is written, and fails from byte ``limit`` on."""

    def __init__(self, limit: float = math.inf) -> None:
        self.data = bytearray()
        self.error = StorageFullError("the store is full")
        self._limit = limit

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        if len(self.data) + len(data) > self._limit:
            raise self.error
        self.data += data
        return len(data)


@BOUNDED
@given(pieces())
def test_what_is_hashed_is_what_is_written(parts: list[bytes]) -> None:
    """The sink has every byte in order, and the digests are of exactly those."""
    sink = Sink()
    stream = HashingWriter(sink)
    for part in parts:
        assert stream.write(memoryview(part)) == len(part)
    assert bytes(sink.data) == b"".join(parts)
    assert stream.tell() == len(sink.data)
    assert stream.finish() == expected_digests(bytes(sink.data), CHUNK_SIZE_BYTES)


def test_a_large_write_goes_on_in_blocks() -> None:
    """Memory is read once for hashing and writing, whatever the size of the buffer."""
    sizes: list[int] = []

    class Counting(Sink):
        def write(self, data: bytes | bytearray | memoryview, /) -> int:
            sizes.append(len(data))
            return super().write(data)

    sink = Counting()
    data = bytes(range(256)) * (BLOCK_SIZE_BYTES // 128) + b"end"
    assert HashingWriter(sink).write(data) == len(data)
    assert max(sizes) <= BLOCK_SIZE_BYTES
    assert bytes(sink.data) == data


@pytest.mark.parametrize("arguments", [(0,), (0, 2), (5, 1), ()])
def test_a_writer_never_seeks(arguments: tuple[int, ...]) -> None:
    """Digests of a stream that was rewritten would be of bytes that never existed; the refusal is kept."""
    stream = HashingWriter(Sink())
    stream.write(b"abc")
    with pytest.raises(UnsupportedFormatError):
        stream.seek(*arguments)
    assert isinstance(stream.error, UnsupportedFormatError)
    assert (stream.seekable(), stream.readable(), stream.writable()) == (False, False, True)
    assert stream.tell() == 3


def test_the_first_error_is_kept() -> None:
    """A second failure, or a serializer's clean-up, does not hide what went wrong first."""
    sink = Sink(limit=3)
    stream = HashingWriter(sink)
    stream.write(b"abc")
    first = sink.error
    with pytest.raises(StorageFullError):
        stream.write(b"d")
    sink.error = StorageFullError("another")
    with pytest.raises(StorageFullError, match="another"):
        stream.write(b"e")
    with pytest.raises(StorageFullError) as refused:
        stream.seek(0)
    assert stream.error is first
    assert refused.value is first


def _size_of_a_save() -> int:
    stream = HashingWriter(Sink())
    torch.save({"weight": torch.zeros(1000)}, stream)  # type: ignore[arg-type]
    return stream.tell()


@pytest.mark.parametrize("part", [0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_failing_sink_is_seen_through_the_serializer(part: float) -> None:
    """Wherever ``torch.save`` is when the store fails, the store's own error is there to be raised."""
    sink = Sink(limit=int(_size_of_a_save() * part))
    stream = HashingWriter(sink)
    with pytest.raises(Exception):  # noqa: B017, PT011  # the serializer's choice; which one is not the point
        torch.save({"weight": torch.zeros(1000)}, stream)  # type: ignore[arg-type]
    assert stream.error is sink.error


def test_an_interrupt_is_kept_as_well() -> None:
    """Ctrl-C inside a write is not an ``Exception`` and must not get lost in C code."""

    class Interrupted(Sink):
        def write(self, data: bytes | bytearray | memoryview, /) -> NoReturn:
            raise KeyboardInterrupt

    stream = HashingWriter(Interrupted())
    with pytest.raises(KeyboardInterrupt):
        stream.write(b"abc")
    assert isinstance(stream.error, KeyboardInterrupt)


def test_what_is_mapped_is_what_is_verified(tmp_path: Path) -> None:
    """A file that reads right while its mapping holds other bytes is refused: the mapping is what is handed out."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"0123x56789")

    class RightWhenRead(io.FileIO):
        def readinto(self, buffer: Any, /) -> int:
            count = super().readinto(buffer)
            memoryview(buffer)[:count] = b"0123456789"[:count]
            return count or 0

    with pytest.raises(CorruptCheckpointError):
        VerifiedFile(RightWhenRead(path), entry_of(b"0123456789"))
