"""Folders of torch.distributed.checkpoint: written by it, and with shards and lies that one process would not write."""

from __future__ import annotations

import io
import os
import pickle
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from ckpt_lib.errors import CheckpointError, CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.foreign import open_checkpoint
from ckpt_lib.foreign.dcp_metadata import Chunk, ChunkedTensor, Place, check_covered
from tests.foreign.described import assert_same, kind_at, read, trained

Part = tuple[tuple[int, ...], torch.Tensor]
WHOLE = torch.arange(35.0).view(7, 5)


class Shards:
    """Writes a folder as several processes do, each a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = Metadata(state_dict_metadata={}, planner_data={}, storage_data={}, version="1.0.0")

    def add(self, name: str, shape: Sequence[int], parts: Sequence[Part], dtype: torch.dtype = torch.float32) -> None:
        """Write a tensor whose parts lie in one file each."""
        chunks = [ChunkStorageMetadata(torch.Size(offsets), part.shape) for offsets, part in parts]
        properties = TensorProperties(dtype=dtype)
        self.metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, torch.Size(shape), chunks)
        for rank, (offsets, part) in enumerate(parts):
            self._store(MetadataIndex(name, offsets), f"__{rank}_0.distcp", part)

    def add_value(self, name: str, value: Any) -> None:
        """Write a value that is no tensor."""
        self.metadata.state_dict_metadata[name] = BytesStorageMetadata()
        self._store(MetadataIndex(name), "__0_0.distcp", value)

    def _store(self, index: MetadataIndex, file_name: str, value: Any) -> None:
        data = io.BytesIO()
        torch.save(value, data)
        with open(self.folder / file_name, "ab") as file:
            self.metadata.storage_data[index] = _StorageInfo(file_name, file.tell(), len(data.getvalue()))
            file.write(data.getvalue())

    def finish(self) -> Path:
        """Write the metadata, as the process that coordinates does in the end."""
        (self.folder / ".metadata").write_bytes(pickle.dumps(self.metadata))
        return self.folder


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return Shards(tmp_path)


def rows(*cuts: int) -> list[Part]:
    """Cut the tensor along its first dimension."""
    stops = [*cuts, len(WHOLE)]
    return [((start, 0), WHOLE[start:stop].clone()) for start, stop in zip([0, *cuts], stops, strict=True)]


def save(state: dict[str, Any], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        save_sharded(state, checkpoint_id=folder)
    return folder


def test_what_pytorch_saves_comes_back(tmp_path: Path) -> None:
    """A real save of model, optimizer, numbers, text, lists and tensors within lists comes back nested as it was."""
    model, optimizer, _ = trained()
    state = {
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "note": "x",
        "nested": {"list": [1, torch.ones(2, dtype=torch.bfloat16), {"deep": torch.tensor(2.0)}], "none": None},
    }
    found = read(save(state, tmp_path / "saved"))
    assert found.checkpoint.kind == "dcp"
    assert_same(found.payload["model_state_dict"], state["model"])
    assert_same(found.contents["nested"], state["nested"])
    assert found.checkpoint.facts.epoch == 3
    fresh, fresh_optimizer, _ = trained()
    with torch.no_grad():
        fresh.weight.zero_()
    fresh.load_state_dict(found.payload["model_state_dict"])
    assert_same(dict(fresh.state_dict()), dict(model.state_dict()))
    assert found.payload["optimizer_state_dict"]["param_groups"] == fresh_optimizer.state_dict()["param_groups"]


def test_shards_become_one_tensor(shards: Shards) -> None:
    """A tensor that was cut by rows, by columns or in a grid, unevenly or with an empty part, comes back whole."""
    shards.add("model.rows", (7, 5), [*rows(3, 6), ((7, 0), WHOLE[7:])])
    shards.add("model.columns", (7, 5), [((0, 0), WHOLE[:, :2].clone()), ((0, 2), WHOLE[:, 2:].clone())])
    grid = [((row, column), WHOLE[row : row + 4, column : column + 3].clone()) for row in (0, 4) for column in (0, 3)]
    shards.add("model.grid", (7, 5), grid)
    shards.add("model.empty", (0, 5), [])
    shards.add("model.scalar", (), [((), torch.tensor(2.0))])
    found = read(shards.finish()).contents
    assert_same(
        found,
        {
            **{f"model.{name}": WHOLE for name in ("rows", "columns", "grid")},
            "model.empty": torch.empty(0, 5),
            "model.scalar": torch.tensor(2.0),
        },
    )


def test_nothing_but_structure_is_read_first(shards: Shards) -> None:
    """The tensors of a checkpoint are described without their bytes, which are read when they are asked for."""
    shards.add("w", (7, 5), rows(3))
    folder = shards.finish()
    with open_checkpoint(folder) as found:
        tensor = found.contents["w"]
        assert (tensor.dtype, tensor.shape) == (torch.float32, (7, 5))
        damaged = bytearray((folder / "__1_0.distcp").read_bytes())
        damaged[:4] = b"xxxx"
        (folder / "__1_0.distcp").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            tensor.read()


def _lie_about_shape(shards: Shards, shape: tuple[int, ...]) -> None:
    shards.add("w", (7, 5), rows())
    chunk = ChunkStorageMetadata(torch.Size([0] * len(shape)), torch.Size(shape))
    shards.metadata.state_dict_metadata["w"] = TensorStorageMetadata(TensorProperties(), torch.Size(shape), [chunk])
    places = shards.metadata.storage_data
    shards.metadata.storage_data = {MetadataIndex("w", [0] * len(shape)): next(iter(places.values()))}


def _forget(shards: Shards) -> None:
    shards.add("w", (7, 5), rows())
    shards.metadata.storage_data = {}


def _share_place(shards: Shards) -> None:
    shards.add_value("a", 1)
    shards.metadata.state_dict_metadata["b"] = BytesStorageMetadata()
    shards.metadata.storage_data[MetadataIndex("b")] = next(iter(shards.metadata.storage_data.values()))


def _lie_about_paths(shards: Shards, path: tuple[Any, ...] = ("a", "b")) -> None:
    shards.add_value("a", 1)
    shards.add_value("b", 2)
    shards.metadata.planner_data = {"a": ("a",), "b": path}


LIES: dict[str, tuple[str, Callable[[Shards], object]]] = {
    "gap": ("no chunk holds", lambda shards: shards.add("w", (7, 5), rows(3)[1:])),
    "overlap": ("overlap", lambda shards: shards.add("w", (7, 5), [*rows(3), ((2, 0), WHOLE[2:4].clone())])),
    "twice": ("larger than its bytes|overlap", lambda shards: shards.add("w", (7, 5), rows() * 2)),
    "outside": ("beyond the tensor", lambda shards: shards.add("w", (7, 5), [((1, 0), WHOLE.clone())])),
    "huge": ("larger than its bytes", lambda shards: _lie_about_shape(shards, (2**40,))),
    "impossible": ("impossible shape", lambda shards: _lie_about_shape(shards, (2**62, 2**62))),
    "flat": ("number of dimensions", lambda shards: shards.add("w", (35,), rows())),
    "no place": ("does not say where", _forget),
    "two places": ("two places in .* overlap", _share_place),
    "path": ("through a value", _lie_about_paths),
    "no path": ("path in it is none", lambda shards: _lie_about_paths(shards, (1.5,))),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lie_are_refused(shards: Shards, lie: str) -> None:
    """Gaps, overlaps, shapes, places and paths that cannot be are refused when the checkpoint is opened."""
    message, tell = LIES[lie]
    tell(shards)
    with pytest.raises(CorruptCheckpointError, match=message):
        kind_at(shards.finish())


def test_a_chunk_of_another_type_is_refused(shards: Shards) -> None:
    """What is stored has to be what the metadata say, or the tensor is not returned."""
    shards.add("w", (7, 5), rows(3), dtype=torch.int32)
    with open_checkpoint(shards.finish()) as found, pytest.raises(CorruptCheckpointError, match="something else"):
        found.contents["w"].read()


@pytest.mark.parametrize("name", ["__1_0.distcp", "__0_0.distcp"])
@pytest.mark.parametrize("size_bytes", [None, 0, 100])
def test_a_file_that_is_cut_off_or_missing_is_named(shards: Shards, name: str, size_bytes: int | None) -> None:
    """A copy that broke off is found when the checkpoint is opened."""
    shards.add("w", (7, 5), rows(3))
    path = shards.finish() / name
    if size_bytes is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:size_bytes])
    with pytest.raises(CorruptCheckpointError, match=f"{name}' is cut off or missing"):
        kind_at(path.parent)


def test_a_save_that_did_not_end_is_refused(shards: Shards) -> None:
    """The metadata are written last; data files without them are half a checkpoint."""
    shards.add("w", (7, 5), rows(3))
    with pytest.raises(CorruptCheckpointError, match=r"lacks \.metadata, which is written last"):
        kind_at(shards.folder)


class _Bomb:
    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_metadata_that_are_cut_off_are_refused(shards: Shards, keep: float) -> None:
    """Whatever is left of a pickle raises a typed error."""
    shards.add("w", (7, 5), rows(3))
    path = shards.finish() / ".metadata"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(CheckpointError):
        kind_at(shards.folder)


@pytest.mark.parametrize(
    "value", [_Bomb(), {"a": 1}, [], None, torch.Size([1])], ids=lambda value: type(value).__name__
)
def test_another_pickle_is_refused(shards: Shards, value: Any) -> None:
    """No name in the metadata is imported or called, and anything but a Metadata object is refused."""
    (shards.folder / ".metadata").write_bytes(pickle.dumps(value))
    with pytest.raises(CorruptCheckpointError, match=r"\.metadata is malformed"):
        kind_at(shards.folder)


NAME = b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81"
BOMBS = {
    "a number that reserves memory": NAME + b"r\xff\xff\xff\xff.",
    "bytes that are not there": b"\x96" + b"\xff" * 7 + b"\x0f.",
    "a tuple of itself, doubled": b")" + b"q\x00h\x00\x86" * 60 + b".",
    "open lists": b"(" * 200_000 + b".",
    "many numbers": b"(" + b"K\x01" * 4_000_000 + b"t.",
    "many dicts": b"(" + b"}" * 8_000_000 + b"t.",
    "many names": b"(" + NAME * 100_000 + b"t.",
    "more than there can be": b"." * 30_000_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_costs_is_refused(shards: Shards, bomb: str) -> None:
    """Time and memory stay in proportion to the files, of which there are none here."""
    (shards.folder / ".metadata").write_bytes(b"\x80\x05" + BOMBS[bomb])
    start = time.process_time()
    with pytest.raises((UnsafePayloadError, CorruptCheckpointError)):
        kind_at(shards.folder)
    assert time.process_time() - start < 8  # 2 where no other program slows the processor down


def test_a_value_that_would_run_code_is_described(shards: Shards) -> None:
    """An object of a class is described, and left out of the payload by name; it is never built."""
    shards.add("model", (7, 5), rows())
    shards.add_value("bomb", _Bomb())
    shards.metadata.planner_data = {"model": ("model", "w"), "bomb": ("bomb",)}
    found = read(shards.finish())
    assert_same(found.payload, {"model_state_dict": {"w": WHOLE}})
    assert "bomb" in " ".join(found.checkpoint.left_out)


def test_transformed_bytes_are_an_obstacle(shards: Shards) -> None:
    """Bytes that an extension of PyTorch has compressed cannot be read; that is said."""
    shards.add("w", (7, 5), rows())
    for info in shards.metadata.storage_data.values():
        info.transform_descriptors = ["stream.zstd"]
    with open_checkpoint(shards.finish()) as found:
        assert found.payload is None
        assert "stream.zstd" in str(found.obstacle)


def test_a_checkpoint_of_lightning(shards: Shards) -> None:
    """Lightning keeps what is not sharded in ``meta.pt``; both are one checkpoint."""
    shards.add("state_dict.w", (7, 5), rows(3))
    shards.add_value("optimizer_0.param_groups", [{"lr": 0.1, "params": ["w"]}])
    shards.add_value("optimizer_0.state", {"w": {"step": 1}})
    names = list(shards.metadata.state_dict_metadata)
    shards.metadata.planner_data = {name: tuple(name.split(".", 1)) for name in names}
    torch.save({"epoch": 2, "global_step": 9, "pytorch-lightning_version": "2.6.6"}, shards.folder / "meta.pt")
    found = read(shards.finish())
    facts = found.checkpoint.facts
    assert (facts.epoch, facts.step, facts.writer) == (2, 9, "lightning 2.6.6")
    assert_same(found.payload["model_state_dict"], {"w": WHOLE})
    assert found.payload["optimizer_state_dict"]["state"] == {"w": {"step": 1}}


def _boxes(length: int, width: int, rows: set[int], columns: set[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Cut a rectangle at these rows and columns."""
    edges = [
        [0, *sorted(cut for cut in cuts if 0 < cut < end), end] for cuts, end in ((rows, length), (columns, width))
    ]
    pairs = [list(pairwise(found)) for found in edges]
    return [((top, left), (bottom - top, right - left)) for top, bottom in pairs[0] for left, right in pairs[1]]


@given(st.integers(1, 9), st.integers(1, 9), st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)), st.data())
def test_exactly_covered_or_refused(
    length: int, width: int, rows: set[int], columns: set[int], data: st.DataObject
) -> None:
    """Every way to cut a tensor is accepted; with a chunk less, a chunk twice or one moved, it is refused."""
    boxes = _boxes(length, width, rows, columns)
    check_covered("w", _chunked((length, width), boxes))
    number = data.draw(st.integers(0, len(boxes) - 1))
    offsets, sizes = boxes[number]
    moved = ((offsets[0] + 1, offsets[1]), sizes)
    for wrong in (
        boxes[:number] + boxes[number + 1 :],
        [*boxes, boxes[number]],
        [*boxes[:number], moved, *boxes[number + 1 :]],
    ):
        with pytest.raises(CorruptCheckpointError):
            check_covered("w", _chunked((length, width), wrong))


def _chunked(shape: tuple[int, ...], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> ChunkedTensor:
    return ChunkedTensor(torch.float32, shape, tuple(Chunk(*box, Place("x", 0, 0)) for box in boxes))


def test_chunks_cut_in_too_many_ways_are_refused() -> None:
    """Comparing them takes bounded time and memory."""
    boxes = [((number, number), (1, 1)) for number in range(3000)]
    with pytest.raises(UnsafePayloadError, match="too many ways"):
        check_covered("w", _chunked((10**6, 10**6), boxes))
