"""Any state by every path: into a file at once or in the background, out of it in each way there is, bit for bit."""

from __future__ import annotations

import io
import os
import struct
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.experiment import commit
from ckpt_lib.formats.torch.archive import TorchArchive
from ckpt_lib.formats.torch.reading import TorchReader
from ckpt_lib.formats.torch.writing import _STORAGE_TYPES, ArchiveLayout
from ckpt_lib.formats.torch.zip_writing import ZipWriter, _central_header, _local_header
from ckpt_lib.state import overlap
from ckpt_lib.stream import FileDigests, HashingWriter, VerifiedFile
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.testing.format_contract import DTYPES
from tests.helpers import flip_bit
from tests.torture.runner import memory_folder

TORTURE = bool(os.environ.get("CKPT_TORTURE"))
CHUNK_BYTES = 1024
ALIGNMENT_BYTES = 64
PROPERTY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

# --- arbitrary states ---

ALL_DTYPES = [*DTYPES, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.complex32]
Place = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset, in elements."""


def places(count: int) -> dict[str, Place]:
    """Views of ``count`` elements, as far as there are enough of them."""
    found: dict[str, Place] = {
        "whole": ((count,), (1,), 0),
        "empty": ((0,), (1,), 0),
        "empty at the end": ((2, 0, 3), (3, 3, 1), count),
    }
    if count >= 1:
        found["0-dim"] = ((), (), count - 1)
        found["expanded"] = ((3, 2), (0, 0), count // 2)
    if count >= 8:
        found["sliced"] = ((count - 5,), (1,), 3)
        found["stepped"] = ((count // 3,), (3,), 1)
        found["transposed"] = ((2, count // 2), (1, 2), 0)
        found["column"] = ((count // 4,), (4,), 3)
        found["windows"] = ((count - 3, 3), (1, 1), 1)
        found["rows expanded"] = ((2, 4), (0, 1), 2)
    if count >= 12:
        found["channels last"] = ((1, 2, 3, 2), (12, 1, 4, 2), count - 12)
    return found


KINDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda tensor: tensor,
    "parameter": nn.Parameter,
    "frozen parameter": lambda tensor: nn.Parameter(tensor, requires_grad=False),
    "leaf": lambda tensor: tensor.clone().requires_grad_(),  # torch has no way to rebuild one among other types
    "conjugate": lambda tensor: tensor.conj(),
    "negated": lambda tensor: tensor.conj().imag,
    "as real": torch.view_as_real,
}


@st.composite
def storages(draw: st.DrawFn) -> tuple[torch.Tensor, bool]:
    """The bytes of one storage, and whether all of them are 0 or 1, as those of a ``bool`` have to be."""
    size, seed, is_bool = draw(st.sampled_from([0, 16, 16, 64, 208])), draw(st.integers(0, 999)), draw(st.booleans())
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 2 if is_bool else 256, size, dtype=np.uint8))
    return data.clone(), is_bool


@st.composite
def tensors(draw: st.DrawFn, pool: list[tuple[torch.Tensor, bool]]) -> torch.Tensor:
    """A view of one of the storages as any type, or what else a tensor may be."""
    data, is_bool = draw(st.sampled_from(pool))
    dtype = draw(st.sampled_from([dtype for dtype in ALL_DTYPES if is_bool or dtype is not torch.bool]))
    found = places(len(data) // dtype.itemsize)
    shape, strides, offset = found[draw(st.sampled_from(sorted(found)))]
    storage = data.untyped_storage()
    tensor = torch.empty(0, dtype=dtype).set_(storage, offset, shape, strides)
    kinds = ["plain", "plain", "frozen parameter"]
    if dtype.is_floating_point or dtype.is_complex:
        kinds += ["parameter"] + ["leaf"] * (dtype in _STORAGE_TYPES)
    if dtype in {torch.complex64, torch.complex128}:
        kinds += ["conjugate", "negated", "as real", "as real"]
    return KINDS[draw(st.sampled_from(kinds))](tensor)


texts = st.text(st.characters(), max_size=6)  # halves of surrogate pairs as well
plain_keys = st.one_of(texts, st.integers(-9, 9), st.booleans(), st.none(), st.tuples(st.integers(), texts))
members = st.one_of(texts, st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False))
plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**1999), 2**1999),
    st.floats(),
    texts,
    st.sets(members, max_size=4),
    st.binary(min_size=1, max_size=5),  # torch does not read back an empty one, so that it is refused
    st.complex_numbers(allow_nan=False),
    st.sampled_from([torch.bfloat16, torch.Size([2, 0]), torch.device("cpu"), bytearray(b"\0\xff")]),
)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    """Nested containers of plain values and of tensors that may share storages, or be met twice."""
    pool = draw(st.lists(storages(), min_size=1, max_size=4))
    some = draw(st.lists(tensors(pool), min_size=1, max_size=6))
    leaves = st.one_of(plain_values, st.sampled_from(some), st.sampled_from(some))

    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        lists, dicts = st.lists(inner, max_size=4), st.dictionaries(plain_keys, inner, max_size=3)
        return st.one_of(lists, lists.map(tuple), dicts, dicts.map(OrderedDict))

    return {"tensors": some, "drawn": draw(st.recursive(leaves, around, max_leaves=10))}


# --- comparing ---


def frozen(value: Any) -> Any:
    """What ``value`` is, bit for bit and type by type, as plain values that no later change reaches."""
    if isinstance(value, torch.Tensor):
        return type(value), value.dtype, tuple(value.shape), value.requires_grad, bytes_of(value)
    if isinstance(value, dict):
        attributes = frozen(vars(value)) if isinstance(value, OrderedDict) else None
        return type(value), attributes, [(frozen(key), frozen(item)) for key, item in value.items()]
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return type(value), [frozen(item) for item in value]
    if isinstance(value, set):
        return type(value), {frozen(item) for item in value}
    return type(value), struct.pack("<d", value) if isinstance(value, float) else repr(value)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Its elements in their order, by no arithmetic that could touch their bits."""
    if not tensor.numel():
        return b""
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg()
    size, data = tensor.itemsize, storage_bytes(tensor)
    strides = [stride * size for stride in tensor.stride()]
    rows = np.ndarray((*tensor.shape, size), np.uint8, data, tensor.storage_offset() * size, (*strides, 1))
    return rows.tobytes()


def storage_bytes(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """All of its storage, to be read and written."""
    storage = tensor.untyped_storage()
    found: np.ndarray[Any, np.dtype[np.uint8]] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return found


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether it leaves out none of the elements that it reaches over; then its strides are kept."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == last + 1


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def sharing(value: Any) -> list[tuple[int, int, int] | int]:
    """For each tensor which earlier one it is, which shares its memory first, and how many bytes before it."""
    met: dict[int, int] = {}
    first: dict[int, tuple[int, int]] = {}
    found: list[tuple[int, int, int] | int] = []
    for number, tensor in enumerate(tensors_of(value)):
        same = met.setdefault(id(tensor), number)
        if not tensor.numel():
            found.append(same)
            continue
        if tensor.is_conj() or tensor.is_neg():  # these get memory of their own, and in the background become plain
            found.append((same, same, 0))
            continue
        group, start = first.setdefault(tensor.untyped_storage().data_ptr(), (number, tensor.data_ptr()))
        found.append((same, group, tensor.data_ptr() - start))
    return found


def overwrite(value: Any) -> None:
    """Change every byte behind every tensor, once each, to one that even a ``bool`` may have."""
    done: set[int] = set()
    for tensor in tensors_of(value):
        data = storage_bytes(tensor)
        if len(data) and data.ctypes.data not in done:
            done.add(data.ctypes.data)
            data ^= 1


class Known(NamedTuple):
    """What a payload was when it was saved."""

    content: Any
    sharing: Any
    strides: list[tuple[int, ...] | None]
    """Of those tensors that have to keep them."""

    def is_in(self, payload: dict[str, Any]) -> bool:
        found = known(payload)
        kept = zip(self.strides, (tensor.stride() for tensor in tensors_of(parts_of(payload))), strict=True)
        same_layout = all(wanted in {None, strides} for wanted, strides in kept)
        return (found.content, found.sharing) == (self.content, self.sharing) and same_layout


def parts_of(payload: dict[str, Any]) -> dict[str, Any]:
    return {key: payload[key] for key in ("model_state_dict", "optimizer_state_dict", "extra_state")}


def known(payload: dict[str, Any]) -> Known:
    parts = parts_of(payload)
    strides = [tensor.stride() if is_dense(tensor) else None for tensor in tensors_of(parts)]
    return Known(frozen(parts), sharing(parts), strides)


# --- the paths ---


class Run:
    """A small training run with some state besides, in a store of its own."""

    def __init__(self, root: Path, extra: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.root = root
        first, last = nn.Linear(3, 4), nn.Linear(4, 1)
        self.model = nn.Sequential(first, nn.BatchNorm1d(4), last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.extra = {**extra, "of the model": first.weight, "row of it": last.weight.detach()[0]}
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        torch.autograd.backward(self.model(torch.ones(5, 3) * torch.arange(5.0).unsqueeze(1)).square().mean())
        self.optimizer.step()

    def payload(self) -> dict[str, Any]:
        state, optimizer_state = self.model.state_dict(), self.optimizer.state_dict()
        return {"model_state_dict": state, "optimizer_state_dict": optimizer_state, "extra_state": self.extra}

    def manager(self, **options: Any) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(checkpoint_dir=str(self.root), **options), "run")

    def arguments(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "extra_state": self.extra, "epoch": 1}


def save_at_once(run: Run) -> str | None:
    return run.manager().save_checkpoint(**run.arguments())


def save_behind(run: Run, *, overlap: bool) -> str | None:
    """Change all that the promise allows to be changed as soon as the call has returned, and the rest after it.

    No other thread copies or commits anything before that.
    """
    with run.manager(overlap_copy=overlap) as manager:
        held, background = threading.Event(), manager._saver.background
        background._copying.put(held.wait)
        background._committing.put(held.wait)
        handle = manager.save_checkpoint_async(**run.arguments())
        if overlap:
            overwrite({key: run.extra[key] for key in ("tensors", "drawn")})
            overwrite([*run.model.buffers()])
            run.optimizer.step()
        overwrite(run.payload())
        held.set()
        return handle.result()


SAVES: dict[str, Callable[[Run], str | None]] = {
    "at once": save_at_once,
    "behind, overlapping": partial(save_behind, overlap=True),
    "behind": partial(save_behind, overlap=False),
}


def plainly(path: Path, **options: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True, **options)
    return loaded


def payloads(run: Run, checkpoint_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A checkpoint by every way out, also after its payload was damaged or lost."""
    manager, path = run.manager(), run.root / "run" / f"{checkpoint_id}.pt"
    yield "load_checkpoint", manager.load_checkpoint(checkpoint_id)
    yield "torch.load", plainly(path)
    yield "torch.load, mapped", plainly(path, mmap=True)
    names = ["optimizer_state_dict", "model_state_dict", *(f"extra_state.{name}" for name in run.extra)]
    yield "load_checkpoint(keys)", manager.load_checkpoint(checkpoint_id, keys=names)
    cached = run.manager(cache_size_bytes=2**20)
    for turn in ("first", "second"):
        loaded = cached.load_checkpoint(checkpoint_id)
        yield f"from the cache, {turn}", loaded
        overwrite(loaded)
    flip_bit(path, path.stat().st_size // 2)
    assert manager.repair_checkpoint(checkpoint_id).method == "chunks"
    yield "repaired", manager.load_checkpoint(checkpoint_id)
    path.unlink()
    manager.restore_checkpoint(checkpoint_id)
    yield "restored", manager.load_checkpoint(checkpoint_id)
    exported = manager.export_checkpoint(checkpoint_id, run.root / f"export {checkpoint_id}")
    elsewhere = CheckpointManager(CheckpointConfig(checkpoint_dir=str(run.root / "elsewhere")), "other")
    yield "imported", elsewhere.load_checkpoint(elsewhere.import_checkpoint(exported))


def assert_aligned(path: Path) -> None:
    """A sound zip archive, whose tensors begin where a mapping can use them."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert data_start(file, info.header_offset) % ALIGNMENT_BYTES == 0, info.filename


def data_start(file: Any, header_offset: int) -> int:
    file.seek(header_offset + 26)
    name_bytes, extra_bytes = struct.unpack("<2H", file.read(4))
    return int(header_offset + 30 + name_bytes + extra_bytes)


@pytest.fixture
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair has less than everything to do, and a background save leaves also small tensors for later."""
    monkeypatch.setattr(overlap, "SMALL_BYTES", 1)
    monkeypatch.setattr(commit, "HashingWriter", partial(HashingWriter, chunk_size_bytes=CHUNK_BYTES))


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@PROPERTY
@given(way_in=st.sampled_from(list(SAVES)), extra=states())
def test_every_path_gives_back_what_was_saved(way_in: str, extra: dict[str, Any]) -> None:
    """Bits, types, order and sharing by each way in and each way out; what is loaded can be written to, alone."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:  # nothing here is about the disk
        run = Run(Path(folder), extra)
        expected = known(run.payload())
        checkpoint_id = SAVES[way_in](run)
        assert checkpoint_id is not None
        path = run.root / "run" / f"{checkpoint_id}.pt"
        data = path.read_bytes()
        assert_aligned(path)
        for way_out, found in payloads(run, checkpoint_id):
            assert expected.is_in(found), (way_in, way_out)
            overwrite(found)
            assert not expected.is_in(found), (way_in, way_out)
            if path.exists():
                assert path.read_bytes() == data, (way_in, way_out)


# --- archives beyond the limits of 16 and 32 bits ---


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
    """66,000 tensors: the readers of Python, of PyTorch and of ours find the last; tortured, torch.load reads all."""
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
    if TORTURE:
        loaded = torch.load(io.BytesIO(sink.getbuffer()), weights_only=True)
        assert torch.equal(torch.cat(loaded["tensors"]), torch.arange(66_000))


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
