"""Files of safetensors: one, or several with an index."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ckpt_lib.core.payload_keys import MODEL_KEY
from ckpt_lib.foreign.base import ForeignCheckpoint, Region, StoredTensor
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.formats.safetensors.header import read_header
from ckpt_lib.formats.structure.entries import Entry
from ckpt_lib.stream import VerifiedFile

_NUMBER_BYTES = 8
_MAX_HEADER_BYTES = 2**32  # what a library of a later version may allow

_SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$")
_SHARD_OBSTACLE = "It is one of several files that hold the weights of a model. Name the folder that it lies in."


class SafetensorsFile:
    """One file of safetensors: the weights of a model."""

    name = "safetensors"

    def recognises(self, files: FoundFiles) -> bool:
        if not files.is_one_file:
            return False
        start = files.start()
        return (
            start[_NUMBER_BYTES:].startswith(b"{")
            and int.from_bytes(start[:_NUMBER_BYTES], "little") < _MAX_HEADER_BYTES
        )

    def open(self, files: FoundFiles) -> ForeignCheckpoint:
        weights = tensors_of(files.open())
        is_shard = _SHARD.search(files.title) is not None
        return ForeignCheckpoint(
            kind=self.name,
            title="a safetensors file",
            files=files,
            contents=weights,
            payload=None if is_shard else {MODEL_KEY: dict(weights)},
            obstacle=_SHARD_OBSTACLE if is_shard else None,
            can_be_mapped=not is_shard,
        )


def tensors_of(file: VerifiedFile) -> Mapping[str, Any]:
    """Return the tensors of one file by name, tied ones by each of their names. Only its header is read."""
    header = read_header(file)
    found = {name: _stored(file, name, entry) for name, entry in header.entries.items()}
    for alias, name in header.metadata.items():  # where safetensors.torch.save_model notes which it has dropped
        if name in found:
            found.setdefault(alias, found[name])
    return found


def _stored(file: VerifiedFile, name: str, entry: Entry) -> StoredTensor:
    return StoredTensor(
        dtype=entry.dtype,
        shape=entry.shape,
        memory=(file, name),
        read=lambda: _read(file, entry),
        regions=lambda: [Region(file, entry.start, entry.stop)],
        memory_bytes=entry.stop - entry.start,
    )


def _read(file: VerifiedFile, entry: Entry) -> torch.Tensor:
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    elements = torch.frombuffer(file.view(entry.start, entry.stop), dtype=torch.uint8)
    if elements.data_ptr() % entry.dtype.itemsize:
        elements = elements.clone()
    return elements.view(entry.dtype).view(entry.shape)
