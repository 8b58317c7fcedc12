"""Reading a verified file: nothing is handed out unverified, mapped or not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.stream import VerifiedFile, find_damages
from ckpt_lib.stream.chunks import digest_of_view
from ckpt_lib.stream.mapping import HeldFile
from tests.helpers import run_python
from tests.stream.samples import covered, entry_of


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


def test_what_is_verified_may_be_used_before_the_rest_is(opened: Any) -> None:
    """Each step tells up to where the bytes asked for are sound. None follows damage, and the error has all of it."""
    data = bytes(range(100))
    with VerifiedFile(opened(data), entry_of(data, 10)) as file:
        assert list(file.verify([(0, 15), (42, 43), (90, 100)])) == [10, 20, 50, 100]
        assert list(file.verify([(0, 20)])) == []
    damaged = bytes(byte ^ (at in {35, 77}) for at, byte in enumerate(data))
    with VerifiedFile(opened(damaged), entry_of(data, 10)) as file:
        steps = file.verify([(0, 100)])
        assert [next(steps) for _ in range(3)] == [10, 20, 30]
        with pytest.raises(CorruptCheckpointError) as refused:
            next(steps)
        assert covered(list(refused.value.damages), "altered") == {*range(30, 40), *range(70, 80)}
        with pytest.raises(CorruptCheckpointError):
            file.view(35, 36)


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


def test_memory_is_taken_for_what_a_source_has() -> None:
    """Whatever size is expected of a file without a descriptor: a manifest may claim any."""
    held = HeldFile(io.BytesIO(b"few bytes"), 2**50)
    assert bytes(held.view) == b"few bytes"
