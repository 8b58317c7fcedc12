"""Any state by every path: into a file at once or in the background, out of it in each way there is, bit for bit."""

from __future__ import annotations

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
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import commit
from ckpt_lib.state import overlap
from ckpt_lib.stream import HashingWriter
from tests.folders import memory_folder
from tests.formats.archives import ALIGNMENT_BYTES, PROPERTY, data_start
from tests.helpers import flip_bit
from tests.manager.states import states

CHUNK_BYTES = 1024
ONE_NEGATED = torch.view_as_complex(torch.ones(2, 2))[1:].conj().imag
"""One element, of a tensor that is stored as it is, or else copied with its elements negated."""

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
    """Whether it leaves out none of the elements that it reaches over; then its strides are kept.

    Those of a single element say nothing, and are not.
    """
    if tensor.numel() == 1:
        return False
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
        try:
            handle = manager.save_checkpoint_async(**run.arguments())
            if overlap:
                overwrite({key: run.extra[key] for key in ("tensors", "drawn")})
                overwrite([*run.model.buffers()])
                run.optimizer.step()
            overwrite(run.payload())
        finally:  # also after a refusal: the manager waits for its threads
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


@pytest.fixture
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repair has less than everything to do, and a background save leaves also small tensors for later."""
    monkeypatch.setattr(overlap, "SMALL_BYTES", 1)
    monkeypatch.setattr(commit, "HashingWriter", partial(HashingWriter, chunk_size_bytes=CHUNK_BYTES))


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@PROPERTY
@given(way_in=st.sampled_from(list(SAVES)), extra=states())
@example(way_in="behind", extra={"tensors": [ONE_NEGATED], "drawn": None})
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
