"""Writes a payload as a folder of safetensors files, each as one stream.

The files are those that the safetensors library writes for the same tensors. The memory of a contiguous tensor goes to
the stream as it is; others are made contiguous piece by piece.
"""

from __future__ import annotations

import ctypes
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.base import Payload, PayloadSink
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.safetensors.decoding import excess
from ckpt_lib.formats.safetensors.dtypes import ORDER
from ckpt_lib.formats.safetensors.header import MAX_HEADER_BYTES, header_bytes
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, STATE_FILE, Names, file_name
from ckpt_lib.formats.safetensors.sharing import Stored, View, odd_stride, store_once
from ckpt_lib.formats.safetensors.values import TENSOR, Encoder, json_bytes
from ckpt_lib.formats.tensor_bytes import SMALL_BYTES, blocks_of, pieces_of
from ckpt_lib.state.memory import address_of, byte_view
from ckpt_lib.stream import HashingWriter

VERSION = 1
SHARD_BYTES = 5 * 10**9
"""How many bytes of tensors a file should hold at most, as in the files of Hugging Face's libraries."""
_ENTRY_BYTES, _DIMENSION_BYTES = 120, 20  # of a header: what a tensor takes at most beside its name


@dataclass(frozen=True)
class _TensorFile:
    """One safetensors file: its name, its header and its tensors, in order."""

    name: str
    header: bytes
    tensors: Sequence[Stored]

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(stored.source.nbytes for stored in self.tensors)


class FolderLayout:
    """A payload laid out as the files of a folder, before any of it is written.

    The constructor raises :class:`UnsupportedStateError` for what could not be read back.
    """

    def __init__(self, payload: Payload) -> None:
        self._files: list[_TensorFile] = []
        self._texts: dict[str, bytes] = {}
        with CollectionPause():
            self._lay_out(_Structure(payload))
        if reason := excess(self._texts[STATE_FILE]):
            raise UnsupportedStateError(
                f"the state has too many parts to be read back: {reason}",
                hint="Store long lists of numbers as tensors.",
            )

    def _lay_out(self, structure: _Structure) -> None:
        files = {}
        for group, tensors in structure.groups.items():
            shards = list(_shards(tensors))
            named = [file_name(group, number, len(shards)) for number in range(1, len(shards) + 1)]
            for name, shard in zip(named, shards, strict=True):
                self._files.append(_tensor_file(name, shard, structure.aliases.get(group, {})))
            files[group] = named[0]
            if len(shards) > 1:
                files[group] = f"{group}{INDEX_SUFFIX}"
                sizes = [{stored.name: stored.source.nbytes for stored in shard} for shard in shards]
                self._texts[files[group]] = index_bytes(dict(zip(named, sizes, strict=True)))
        facts = {"format": "safetensors", "version": VERSION, "files": files, "payload": structure.payload}
        self._texts[STATE_FILE] = json_bytes(facts)

    @property
    def size_bytes(self) -> int:
        """The exact size of all files."""
        return sum(file.size_bytes for file in self._files) + sum(map(len, self._texts.values()))

    def write(self, sink: PayloadSink) -> None:
        """Write each file from start to end, the structure last."""
        for file in self._files:
            with sink.open(file.name) as stream:
                stream.write(file.header)
                for stored in file.tensors:
                    write_tensor(stream, stored.source)
        for name, text in self._texts.items():
            with sink.open(name) as stream:
                stream.write(text)


class _Structure:
    """The JSON of a payload, and the tensors that its files have to hold."""

    def __init__(self, payload: Payload) -> None:
        self._tensors: list[tuple[torch.Tensor, str, dict[str, Any]]] = []
        self.payload = Encoder(self._refer).encode(payload, "")
        self.groups: dict[str, list[Stored]] = defaultdict(list)
        self.aliases: dict[str, dict[str, str]] = defaultdict(dict)
        """For each group, the further names of its tensors, as ``safetensors.torch.save_model`` notes them."""
        self._place_all(Names(payload))

    def _refer(self, tensor: torch.Tensor, name: str) -> dict[str, Any]:
        """Note a tensor; what refers to it is filled in when it is known which tensors share memory."""
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.detach().resolve_conj().resolve_neg()
        reference: dict[str, Any] = {TENSOR: ""}
        self._tensors.append((tensor, name, reference))
        return reference

    def _place_all(self, names: Names) -> None:
        placed = store_once([tensor for tensor, *_ in self._tensors])
        called: dict[int, list[str]] = defaultdict(list)  # by what is stored: the tensors that it is, or that are in it
        for (_, name, _), (stored, view) in zip(self._tensors, placed, strict=True):
            if stored.is_memory or view is None:
                called[id(stored)].append(name)
        homes: dict[int, str] = {}
        for (tensor, _, reference), (stored, view) in zip(self._tensors, placed, strict=True):
            if id(stored) not in homes:
                homes[id(stored)] = self._place(stored, called[id(stored)], names)
            reference[TENSOR] = homes[id(stored)]
            if view is not None:
                reference["view"] = spelled_view(view)
            elif stride := odd_stride(tensor):
                reference["stride"] = list(stride)
        for group, further in self.aliases.items():
            self.aliases[group] = {name: kept for name, kept in further.items() if not names.is_taken(group, name)}

    def _place(self, stored: Stored, called: Sequence[str], names: Names) -> str:
        """Give a stored tensor its name, and return the group with it."""
        group, stored.name = names.take(called[0], "@memory" if stored.is_memory else "")
        self.groups[group].append(stored)
        for other, name in map(names.place, called[1:] if not stored.is_memory else ()):
            if other == group and name != "format":  # the metadata has another meaning for that
                self.aliases[group][name] = stored.name
        return f"{group}/{stored.name}"


def spelled_view(view: View) -> dict[str, Any]:
    """Return a view as JSON."""
    dtype = str(view.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(view.shape), "stride": list(view.stride), "offset": view.offset}


def _shards(tensors: Iterable[Stored]) -> Iterator[list[Stored]]:
    """Yield the tensors of each file of a group, in the order of the payload. A larger tensor has a file of its own."""
    shard: list[Stored] = []
    size_bytes = header_size_bytes = 0
    for stored in tensors:
        entry_bytes = len(json.dumps(stored.name)) + _ENTRY_BYTES + _DIMENSION_BYTES * stored.source.dim()
        size_bytes += stored.source.nbytes
        header_size_bytes += entry_bytes
        if shard and (size_bytes > SHARD_BYTES or header_size_bytes > MAX_HEADER_BYTES // 2):
            yield shard
            shard, size_bytes, header_size_bytes = [], stored.source.nbytes, entry_bytes
        shard.append(stored)
    yield shard


def _tensor_file(name: str, tensors: Iterable[Stored], aliases: Mapping[str, str]) -> _TensorFile:
    ordered = sorted(tensors, key=lambda stored: (ORDER[stored.source.dtype], stored.name.encode()))
    here = {stored.name for stored in ordered}
    metadata = {"format": "pt", **{alias: kept for alias, kept in aliases.items() if kept in here}}
    entries = [(item.name, item.source.dtype, tuple(item.source.shape), item.source.nbytes) for item in ordered]
    header = header_bytes(entries, metadata)
    if len(header) > MAX_HEADER_BYTES:
        raise UnsupportedStateError(
            f"the names of the tensors of {name} are too long to be read back",
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            got=f"{len(header)} bytes",
        )
    return _TensorFile(name, header, ordered)


def index_bytes(sizes_bytes: Mapping[str, Mapping[str, int]]) -> bytes:
    """Return the index of several files, given the sizes of the tensors of each."""
    total = sum(size_bytes for tensors in sizes_bytes.values() for size_bytes in tensors.values())
    weight_map = {tensor: file for file, tensors in sizes_bytes.items() for tensor in tensors}
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
    return f"{text}\n".encode()


def write_tensor(stream: HashingWriter, tensor: torch.Tensor) -> None:
    """Write the elements of a dense tensor, one row after the other, without a second copy of it in memory."""
    if not tensor.is_contiguous():
        for piece in pieces_of(tensor):
            write_tensor(stream, piece)
        return
    storage, size_bytes = tensor.untyped_storage(), tensor.nbytes
    start = int(tensor.storage_offset()) * tensor.itemsize if size_bytes else 0
    if size_bytes <= SMALL_BYTES and tensor.device.type == "cpu":
        stream.write(ctypes.string_at(address_of(storage, start, start + size_bytes), size_bytes))
        return
    for block in blocks_of(byte_view(storage, start, start + size_bytes)):
        stream.write(block)
