"""Large writes go around the page cache where they can, and right everywhere."""

from __future__ import annotations

import io
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.store.local import direct
from ckpt_lib.store.local.direct import Output
from ckpt_lib.store.local.system import System
from ckpt_lib.stream.page_cache import absent_ranges

MIB = 2**20
ALIGNED = memoryview(mmap.mmap(-1, 4 * MIB))
ALIGNED[:] = os.urandom(4 * MIB)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of the disk and, where there is one, of a file system in memory."""
    if request.param == "disk" or sys.platform != "linux":
        yield tmp_path
        return
    target = Path(f"/dev/shm/ckpt-test-{os.getpid()}")
    target.mkdir()
    yield target
    for path in target.iterdir():
        path.unlink()
    target.rmdir()


def write(path: Path, pieces: list[memoryview]) -> None:
    with io.FileIO(path, "w+") as file:
        output = Output(file, System())
        for piece in pieces:
            assert output.write(piece) == len(piece)
        assert output.size_bytes == sum(map(len, pieces))
        output.sync()


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [1],
        [MIB - 1],
        [MIB],
        [MIB + 1],
        [2 * MIB + 4095, 3 * MIB],
        [2 * MIB, 5, 2 * MIB],
        [4 * MIB, 4 * MIB, 4 * MIB, 123],
        [5, 2 * MIB, 2 * MIB],
    ],
    ids=str,
)
def test_what_is_written_is_in_the_file(folder: Path, sizes: list[int]) -> None:
    """Whatever the sizes, aligned or not, in any order."""
    write(folder / "file", [ALIGNED[:size] for size in sizes])
    assert (folder / "file").read_bytes() == b"".join(ALIGNED[:size] for size in sizes)


@given(st.lists(st.tuples(st.integers(0, 8192), st.integers(0, 3 * MIB)), max_size=4))
def test_memory_may_begin_anywhere(tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, int]]) -> None:
    """A buffer that does not begin at a block is one the kernel may refuse; the bytes are right all the same."""
    path = tmp_path_factory.getbasetemp() / "anywhere"
    views = [ALIGNED[start : start + size] for start, size in pieces]
    write(path, views)
    assert path.read_bytes() == b"".join(views)


@pytest.mark.parametrize("system", ["refuses the flag", "refuses the write", "has none"])
def test_a_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    """However it says so, the bytes go through the page cache."""
    if system == "refuses the write":
        data = ALIGNED[1 : 1 + 2 * MIB]  # an odd address
    else:
        data = ALIGNED[: 2 * MIB]
        monkeypatch.setattr(direct, "_set_direct", lambda _descriptor, _wanted: False)
    write(tmp_path / "file", [data, data])
    assert (tmp_path / "file").read_bytes() == bytes(data) * 2


def test_a_large_file_is_not_left_in_the_page_cache(tmp_path: Path) -> None:
    """It would push out what is read often; a small one is left, it is soon read again."""
    for name, size in (("small", 1000), ("large", 4 * MIB)):
        write(tmp_path / name, [ALIGNED[:size]])
    lives_in_memory = _file_system(tmp_path) in {"tmpfs", "ramfs"}
    assert _is_cached(tmp_path / "small")
    assert _is_cached(tmp_path / "large") == lives_in_memory


def test_neither_is_one_that_went_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without direct I/O the kernel is told to let go."""
    monkeypatch.setattr(direct, "_set_direct", lambda _descriptor, _wanted: False)
    write(tmp_path / "large", [ALIGNED, ALIGNED])
    assert _is_cached(tmp_path / "large") == (_file_system(tmp_path) in {"tmpfs", "ramfs"})


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """A write that the system cuts short goes on until it says why."""
    if not Path("/dev/full").exists():
        pytest.fail("this test needs /dev/full")
    with io.FileIO("/dev/full", "w") as file, pytest.raises(OSError, match="No space left"):
        Output(file, System()).write(ALIGNED[: 2 * MIB])


def test_a_file_that_lost_bytes_is_an_error(tmp_path: Path) -> None:
    """A file system that keeps less than it was given does not pass for durable."""
    with io.FileIO(tmp_path / "file", "w+") as file:
        output = Output(file, System())
        output.write(ALIGNED[: 2 * MIB])
        os.ftruncate(file.fileno(), 5)
        with pytest.raises(OSError, match="kept 5 of"):
            output.sync()


def _is_cached(path: Path) -> bool:
    """Whether memory holds any page of a file.

    The look must not change what it sees: a read that may not wait (``RWF_NOWAIT``) begins to read ahead.
    """
    with path.open("rb") as file:
        return absent_ranges(file) != [(0, -(-path.stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE)]


def _file_system(path: Path) -> str:
    """The type of the file system that ``path`` lies on: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    above = [(point, kind) for point, kind in mounts if path.is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]))[1]
