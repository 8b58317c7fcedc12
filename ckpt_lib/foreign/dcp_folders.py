"""Folders of torch.distributed.checkpoint, and of Lightning where it saves by that."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ckpt_lib.core.wording import listed, shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign.base import ForeignCheckpoint, Region, StoredTensor
from ckpt_lib.foreign.dcp_metadata import METADATA_FILE, ChunkedTensor, Place, malformed, read_metadata
from ckpt_lib.foreign.folders import folder_checkpoint
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.torch_parts import read_torch, value_of
from ckpt_lib.stream.part import FilePart

LIGHTNING_FILE = "meta.pt"
_OPTIMIZER = re.compile(r"optimizer_\d+")


class DcpFolder:
    """A checkpoint of torch.distributed.checkpoint, whatever number of processes wrote it."""

    name = "dcp"

    def recognises(self, files: FoundFiles) -> bool:
        return METADATA_FILE in files.sizes_bytes or any(
            name.endswith(".distcp") and "/" not in name for name in files.names
        )

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        if METADATA_FILE not in files.sizes_bytes:
            raise CorruptCheckpointError(
                f"the folder lacks {METADATA_FILE}, which is written last",
                path=files.path,
                hint="The save did not end. Take the checkpoint before it.",
            )
        contents, obstacle = dcp_contents(files)
        is_lightning = LIGHTNING_FILE in files.sizes_bytes
        if is_lightning:
            contents = {**_dict(read_torch(files, LIGHTNING_FILE)), **contents}
        title = "a sharded checkpoint of Lightning" if is_lightning else "a checkpoint of torch.distributed"
        if obstacle:
            return ForeignCheckpoint(
                self.name, title, files, contents, payload=None, obstacle=obstacle, can_be_mapped=False
            )
        return folder_checkpoint(self.name, title, files, contents, _keys(contents) if is_lightning else {})


def _keys(contents: Mapping[str, Any]) -> dict[str, str]:
    """Return which entry of Lightning is what: it numbers the optimizers."""
    return {"state_dict": "model", **{name: "optimizer" for name in contents if _OPTIMIZER.fullmatch(name)}}


def dcp_contents(files: FoundFiles) -> tuple[dict[str, Any], str | None]:
    """Return what a folder holds, nested as it was saved, and why it cannot be loaded, if so.

    Raises :class:`CorruptCheckpointError` for metadata that contradict themselves or the files.
    """
    metadata = read_metadata(files)
    if metadata.transforms:
        names = listed([shown(name) for name in metadata.transforms])
        return {}, f"Its bytes are transformed by {names}. Load it with torch.distributed.checkpoint."
    found = {}
    for name, entry in metadata.entries.items():
        found[name] = _tensor(files, name, entry) if isinstance(entry, ChunkedTensor) else _value(files, entry)
    return _nested({metadata.paths.get(name, (name,)): value for name, value in found.items()}), None


def _tensor(files: FoundFiles, name: str, tensor: ChunkedTensor) -> StoredTensor:
    return StoredTensor(
        dtype=tensor.dtype,
        shape=tensor.shape,
        memory=(files.path, name),
        read=lambda: _assembled(files, name, tensor),
        regions=lambda: _regions(files, tensor),
    )


def _regions(files: FoundFiles, tensor: ChunkedTensor) -> list[Region]:
    """Return where the chunks of a tensor lie; nothing if that is not known of one."""
    found: list[Region] = []
    for chunk in tensor.chunks:
        part = _value(files, chunk.place)
        if not isinstance(part, StoredTensor) or part.dtype != tensor.dtype or not (regions := part.regions()):
            return []
        found += regions
    return found


def _assembled(files: FoundFiles, name: str, tensor: ChunkedTensor) -> torch.Tensor:
    """Return a tensor of its chunks, which cover it exactly; a single chunk as it is."""
    whole: torch.Tensor | None = None
    for chunk in tensor.chunks:
        part = _value(files, chunk.place)
        if not isinstance(part, StoredTensor) or (part.dtype, part.shape) != (tensor.dtype, chunk.sizes):
            raise malformed(f"a chunk of {shown(name)} is stored as something else")
        if chunk.sizes == tensor.shape:
            return part.read()
        if whole is None:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        window = whole[
            tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        ]
        window.copy_(part.read())
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu") if whole is None else whole


def _value(files: FoundFiles, place: Place) -> Any:
    """Return what ``torch.save`` has written into a part of a file."""
    return value_of(FilePart(files.open(place.file_name), place.start, place.stop))


class _Branch(dict[Any, Any]):
    """A dict that paths lead through, unlike one that is a value."""


def _nested(values: Mapping[tuple[str | int, ...], Any]) -> dict[str, Any]:
    """Return values at their paths, in dicts for names and in lists for numbers."""
    root = _Branch()
    for path, value in values.items():
        inner = root
        for part in path[:-1]:
            inner = inner.setdefault(part, _Branch())
            if type(inner) is not _Branch:
                raise malformed("a path in it leads through a value")
        if path[-1] in inner:
            raise malformed("two paths in it are the same")
        inner[path[-1]] = value
    nested: dict[str, Any] = _with_lists(root)
    return nested


def _with_lists(value: Any) -> Any:
    """Return nested dicts with a list instead of each whose keys are the numbers from 0 on."""
    if type(value) is not _Branch:
        return value
    entries = {key: _with_lists(entry) for key, entry in value.items()}
    is_list = bool(entries) and all(type(key) is int for key in entries)
    if is_list and entries.keys() == set(range(len(entries))):
        return [entries[number] for number in range(len(entries))]
    return entries


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CorruptCheckpointError(f"{LIGHTNING_FILE} holds something else than a dict")
    return value
