"""Archives beyond the limits of 16 and 32 bits: every reader finds each record in its place."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.formats.torch.archive import TorchArchive
from ckpt_lib.formats.torch.reading import TorchReader
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.formats.torch.zip_writing import ZipWriter, _central_header, _local_header
from ckpt_lib.stream import FileDigests, HashingWriter, VerifiedFile
from ckpt_lib.stream.digests import Buffer
from tests.formats.archives import ALIGNMENT_BYTES, PROPERTY, data_start


class SparseFile:
    """A sink that writes zeros as holes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)

    def __enter__(self) -> SparseFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def write(self, data: Buffer, /) -> int:
        if len(data) % 4096 or np.frombuffer(data, np.uint64).any():
            return self._file.write(data)
        self._file.truncate(self._file.seek(len(data), os.SEEK_CUR))
        return len(data)

    def skip_to(self, position: int) -> None:
        self._file.truncate(self._file.seek(position))

    def tell(self) -> int:
        return self._file.tell()


def entry_of(digests: FileDigests) -> FileEntry:
    return FileEntry(name="file.pt", **digests.__dict__)


def test_more_records_than_16_bits_can_count() -> None:
    """66,000 tensors: the readers of Python, of PyTorch and of ours find the last."""
    payload = {"tensors": [torch.tensor([number]) for number in range(66_000)]}
    sink = io.BytesIO()
    with HashingWriter(sink) as stream:
        ArchiveLayout(payload).write_to(stream)
        entry = entry_of(stream.finish())
    assert ArchiveLayout(payload).size_bytes == entry.size_bytes
    last = struct.pack("<q", 65_999)
    with zipfile.ZipFile(sink) as archive:
        assert len(archive.namelist()) == 66_003
        assert archive.read("archive/data/65999") == last
    with VerifiedFile(io.BytesIO(sink.getbuffer()), entry) as file:
        assert bytes(TorchArchive(file).view("data/65999")) == last
    reader = torch._C.PyTorchFileReader(io.BytesIO(sink.getbuffer()))  # the one that torch.load uses
    assert len(reader.get_all_records()) == 66_003
    assert reader.get_record("data/65999") == last


def test_a_tensor_larger_than_32_bits_can_tell(tmp_path: Path) -> None:
    """4.1 GiB, and a small one behind it, which is read without the large one being read."""
    path, size_bytes = tmp_path / "file.pt", 4100 * 2**20 + 8
    small = torch.arange(5.0)
    payload = {"large": torch.from_numpy(np.zeros(size_bytes, np.uint8)), "small": small}
    with SparseFile(path) as sink, HashingWriter(sink) as stream:
        ArchiveLayout(payload).write_to(stream)
        entry = entry_of(stream.finish())
    assert path.stat().st_size == entry.size_bytes == ArchiveLayout(payload).size_bytes > size_bytes
    assert path.stat().st_blocks * 512 < 100 * 2**20
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        assert archive.read("archive/data/1") == small.numpy().tobytes()
        infos = [archive.getinfo(f"archive/data/{number}") for number in range(2)]
        assert infos[0].file_size == size_bytes
        assert infos[1].header_offset > 2**32
        assert all(data_start(file, info.header_offset) % ALIGNMENT_BYTES == 0 for info in infos)
    with VerifiedFile(path.open("rb", buffering=0), entry) as verified:
        found = TorchReader(verified).read(["small"], None)
    mapped = torch.load(path, mmap=True, weights_only=True)
    assert torch.equal(found["small"], small)
    assert torch.equal(mapped["small"], small)
    assert (mapped["large"].shape, mapped["large"][-1]) == ((size_bytes,), 0)
    path.unlink()


NEAR_32_BITS = st.integers(2**32 - 200, 2**32 + 200) | st.sampled_from([2**32 - 2, 2**32 - 1, 2**32])


@PROPERTY
@given(start=NEAR_32_BITS, directory=NEAR_32_BITS)
def test_places_around_the_limit_of_32_bits(start: int, directory: int) -> None:
    """Records and directories that begin just before, at and behind it, as Python's zipfile understands them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.zip"
        with SparseFile(path) as sink:
            writer = ZipWriter(sink)  # type: ignore[arg-type]  # it writes and tells, which is all that is asked for
            writer.write("first", 3, [b"abc"])
            sink.skip_to(start)
            writer.write("second", 4, [b"defg"])
            sink.skip_to(max(directory, sink.tell()))
            writer.finish()
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            assert archive.testzip() is None
            assert {name: archive.read(name) for name in archive.namelist()} == {"first": b"abc", "second": b"defg"}
            assert archive.getinfo("second").header_offset == start
            assert data_start(file, start) % ALIGNMENT_BYTES == 0


@PROPERTY
@given(size_bytes=NEAR_32_BITS, start=st.sampled_from([0, 7, 2**32 - 9]) | NEAR_32_BITS)
def test_sizes_around_the_limit_of_32_bits(size_bytes: int, start: int) -> None:
    """The headers of a record of any size: both say the same, and exactly the fields that need it are 64 bits wide."""
    header = _local_header(b"name", start, size_bytes)
    central = _central_header(b"name", start, size_bytes, 5)
    is_large = size_bytes >= 2**32 - 1
    version, flags, *_, sizes_one, sizes_two, name_bytes, extra_bytes = struct.unpack("<5H3L2H", header[4:30])
    assert (len(header), (start + len(header)) % ALIGNMENT_BYTES) == (30 + name_bytes + extra_bytes, 0)
    assert sizes_one == sizes_two == (2**32 - 1 if is_large else 0)
    assert (header[34:38] == struct.pack("<2H", 1, 16)) == is_large
    assert (version, flags) == (45 if is_large else 20, 8)
    wide = [size_bytes, size_bytes] * is_large + [start] * (start >= 2**32 - 1)
    extra = struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    assert central[46:] == b"name" + extra
    assert struct.unpack("<3L", central[16:28]) == (5, *[min(size_bytes, 2**32 - 1)] * 2)
    assert struct.unpack("<L", central[42:46])[0] == min(start, 2**32 - 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), 0, 0)
    found = zipfile.ZipFile(io.BytesIO(central + end)).infolist()
    assert [(info.file_size, info.compress_size, info.header_offset) for info in found] == [
        (size_bytes, size_bytes, start)
    ]


@pytest.mark.parametrize("count", [0xFFFE, 0xFFFF, 0x10000])
def test_counts_around_the_limit_of_16_bits(count: int) -> None:
    """Just before, at and behind it: zipfile counts as many, and the directory has its wide end where it must."""
    sink = io.BytesIO()
    writer = ZipWriter(sink)  # type: ignore[arg-type]  # it writes and tells, which is all that is asked for
    for number in range(count):
        writer.write(str(number), 1, [b"x"])
    writer.finish()
    with zipfile.ZipFile(sink) as archive:
        assert len(archive.namelist()) == count
        assert archive.read(str(count - 1)) == b"x"
    locator, end = sink.getvalue()[-42:-22], sink.getvalue()[-22:]
    assert struct.unpack("<2H", end[8:12]) == (min(count, 0xFFFF),) * 2
    assert (locator[:4] == b"PK\6\7") == (count >= 0xFFFF)
