"""The file ``.metadata`` of torch.distributed.checkpoint: which tensors there are, in which chunks, and where.

It is a pickle of a few classes of PyTorch. Those are described, never built, so that it is read on any version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ckpt_lib.core.wording import shown, size_text
from ckpt_lib.errors import CorruptCheckpointError, UnsafePayloadError
from ckpt_lib.foreign.base import StoredObject
from ckpt_lib.foreign.pickles import describe, no_reference
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.formats.limits import MAX_LEVELS
from ckpt_lib.formats.structure.entries import are_counts, is_shape

METADATA_FILE = ".metadata"
_BYTES_ALLOWED, _BYTES_A_CHUNK = 8 * 2**20, 400
_MAX_BYTES = 32 * 2**20  # what 300,000 chunks take; files that are mostly holes cost nobody anything
_STORED_BYTES_A_CHUNK = 1_000  # the least that torch.save writes for a tensor
_PACKAGES = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
_MAX_CELLS = 2**22

Shape = tuple[int, ...]


class Place(NamedTuple):
    """The bytes of one chunk or value: those of a file of ``torch.save``, within a file of the checkpoint."""

    file_name: str
    start: int
    stop: int


class Chunk(NamedTuple):
    """A part of a tensor: where in the tensor it begins, how large it is, and where it is stored."""

    offsets: Shape
    sizes: Shape
    place: Place


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor, each element of which is in exactly one chunk."""

    dtype: torch.dtype
    shape: Shape
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class DcpMetadata:
    """What a checkpoint of torch.distributed.checkpoint holds, by its flat names."""

    entries: Mapping[str, ChunkedTensor | Place]
    """A place for whatever is no tensor."""
    paths: Mapping[str, tuple[str | int, ...]]
    """Where each was in nested dicts and lists, if that was stored."""
    transforms: tuple[str, ...] = ()
    """What the bytes went through, such as a compression."""


def read_metadata(files: FoundFiles) -> DcpMetadata:
    """Read the metadata, and compare it with the sizes of the files.

    Raises :class:`CorruptCheckpointError` where it contradicts itself or a file is missing or cut off, and
    :class:`~ckpt_lib.errors.UnsafePayloadError` where it is out of proportion.
    """
    file = files.open(METADATA_FILE)
    chunks = (files.size_bytes - file.size_bytes) // _STORED_BYTES_A_CHUNK
    limit_bytes = min(_BYTES_ALLOWED + _BYTES_A_CHUNK * chunks, _MAX_BYTES)
    if file.size_bytes > limit_bytes:
        raise UnsafePayloadError(
            f"{METADATA_FILE} was not read: it is too large for the files beside it",
            path=files.path,
            expected=f"at most {size_text(limit_bytes)}",
            got=size_text(file.size_bytes),
        )
    try:
        value = describe(file.readall(), find_reference=no_reference, stored=no_reference, records=chunks).value
    except UnsafePayloadError as error:
        error.hint = "Nothing was loaded, and no code was run."
        raise
    return _Reading(files, _state(value, "Metadata")).metadata()


class _Reading:
    """Reads the description of one ``Metadata`` object."""

    def __init__(self, files: FoundFiles, state: Mapping[str, Any]) -> None:
        self._files = files
        self._described = _dict(state.get("state_dict_metadata"))
        self._storage = _dict(state.get("storage_data"))
        self._planner = state.get("planner_data")
        self._transforms: dict[str, None] = {}
        self._places: dict[tuple[str, Shape | None], Place] = {}

    def metadata(self) -> DcpMetadata:
        for index, info in self._storage.items():
            self._note_place(_state(index, "MetadataIndex"), _state(info, "_StorageInfo"))
        self._check_apart()
        entries = {name: self._entry(name, entry) for name, entry in self._described.items()}
        return DcpMetadata(entries, self._paths(entries), tuple(self._transforms))

    def _note_place(self, index: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        match info:
            case {"relative_path": str(name), "offset": int(offset), "length": int(length)}:
                place = Place(name, offset, offset + length)
            case _:
                raise malformed("a place is not described as one")
        if not are_counts((offset, length)) or place.stop > self._files.sizes_bytes.get(name, -1):
            raise CorruptCheckpointError(
                f"the file {shown(name)} is cut off or missing",
                path=self._files.path,
                expected=f"{place.stop} bytes or more",
                got=self._files.sizes_bytes.get(name, "no such file"),
                hint="Copy it again, or take the checkpoint before it.",
            )
        offset_in_tensor = index.get("offset")
        key = (index.get("fqn"), None if offset_in_tensor is None else _shape(offset_in_tensor))
        if not isinstance(key[0], str) or key in self._places:
            raise malformed("it describes a place without a name, or twice")
        self._places[key] = place  # type: ignore[index]  # the name was checked
        transforms = info.get("transform_descriptors")
        self._transforms.update(dict.fromkeys(map(str, transforms if isinstance(transforms, list | tuple) else ())))

    def _check_apart(self) -> None:
        """Require that no two places overlap: so all of them together are no larger than the files."""
        before = Place("", 0, 0)
        for place in sorted(self._places.values()):
            if place.file_name == before.file_name and place.start < before.stop:
                raise malformed(f"two places in {shown(place.file_name)} overlap")
            before = place

    def _entry(self, name: Any, entry: Any) -> ChunkedTensor | Place:
        if not isinstance(name, str) or not isinstance(entry, StoredObject):
            raise malformed("an entry is not described as one")
        if entry.class_name.endswith(".BytesStorageMetadata"):
            return self._place(name, None)
        state = _state(entry, "TensorStorageMetadata")
        shape, chunks = _shape(state.get("size")), state.get("chunks")
        if not isinstance(chunks, list):
            raise malformed(f"{shown(name)} has no chunks")
        dtype = _dtype(name, state.get("properties"))
        tensor = ChunkedTensor(dtype, shape, tuple(self._chunk(name, dtype, shape, chunk) for chunk in chunks))
        check_covered(name, tensor)
        return tensor

    def _chunk(self, name: str, dtype: torch.dtype, shape: Shape, chunk: Any) -> Chunk:
        state = _state(chunk, "ChunkStorageMetadata")
        offsets, sizes = _shape(state.get("offsets")), _shape(state.get("sizes"))
        place = self._place(name, offsets)
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise malformed(f"a chunk of {shown(name)} has another number of dimensions")
        if math.prod(sizes) * dtype.itemsize > place.stop - place.start:
            raise malformed(f"a chunk of {shown(name)} is larger than its bytes")
        return Chunk(offsets, sizes, place)

    def _place(self, name: str, offsets: Shape | None) -> Place:
        place = self._places.get((name, offsets))
        if place is None:
            raise malformed(f"it does not say where {shown(name)} is stored")
        return place

    def _paths(self, entries: Mapping[str, Any]) -> dict[str, tuple[str | int, ...]]:
        planner = self._planner if isinstance(self._planner, dict) else {}
        paths = {name: path for name, path in planner.items() if name in entries}
        for path in paths.values():
            if (
                not isinstance(path, tuple)
                or not 0 < len(path) <= MAX_LEVELS
                or not all(type(part) in (str, int) for part in path)
            ):
                raise malformed("a path in it is none")
        return paths


def check_covered(name: str, tensor: ChunkedTensor) -> None:
    """Require that each element is in exactly one chunk.

    The cuts of all chunks divide the tensor into cells, each of which is looked at once. Raises
    :class:`CorruptCheckpointError` for a gap or an overlap.
    """
    if 0 in tensor.shape:
        return
    chunks = [chunk for chunk in tensor.chunks if 0 not in chunk.sizes]
    cuts = []
    for dimension, length in enumerate(tensor.shape):
        stops = {chunk.offsets[dimension] + chunk.sizes[dimension] for chunk in chunks}
        if any(stop > length for stop in stops):
            raise malformed(f"a chunk of {shown(name)} reaches beyond the tensor")
        found = sorted({0, length, *stops, *(chunk.offsets[dimension] for chunk in chunks)})
        cuts.append({cut: number for number, cut in enumerate(found)})
    counts = [len(found) - 1 for found in cuts]
    if math.prod(counts) > _MAX_CELLS:
        raise UnsafePayloadError(f"the chunks of {shown(name)} were not compared: they are cut in too many ways")
    is_covered = torch.zeros(counts, dtype=torch.bool, device="cpu")
    for chunk in chunks:
        parts = zip(cuts, chunk.offsets, chunk.sizes, strict=True)
        cells = is_covered[tuple(slice(found[start], found[start + size]) for found, start, size in parts)]
        if cells.any():
            raise malformed(f"two chunks of {shown(name)} overlap")
        cells.fill_(True)
    if not is_covered.all():
        raise malformed(f"no chunk holds some elements of {shown(name)}")


def malformed(reason: str) -> CorruptCheckpointError:
    """Return the error for metadata that contradict themselves."""
    return CorruptCheckpointError(f"{METADATA_FILE} is malformed: {reason}")


def _state(value: Any, name: str) -> Mapping[str, Any]:
    """Return the attributes of an object of this class of PyTorch."""
    is_known = isinstance(value, StoredObject) and value.class_name.startswith(_PACKAGES)
    if not is_known or value.class_name.rpartition(".")[2] != name or not isinstance(value.state, dict):
        raise malformed(f"it holds {shown(value)} instead of {name}")
    return value.state


def _dict(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise malformed("it has no entries")
    return value


def _shape(value: Any) -> Shape:
    if not isinstance(value, tuple) or not is_shape(value):
        raise malformed("it holds an impossible shape")
    return tuple(value)


def _dtype(name: str, properties: Any) -> torch.dtype:
    """Return the type of the elements, the first of the attributes that are stored in a tuple or by name."""
    state = properties.state if isinstance(properties, StoredObject) else None
    found = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    if not isinstance(found, torch.dtype):
        raise malformed(f"{shown(name)} has no type of elements")
    return found
