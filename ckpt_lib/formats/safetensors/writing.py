"""Writes a payload as a folder of safetensors files, each as one stream.

The files are those that the safetensors library writes for the same tensors. The memory of a contiguous tensor goes to
the stream as it is; others are made contiguous piece by piece.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.base import Payload, PayloadSink
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.safetensors.header import FORMAT_KEY, MAX_HEADER_BYTES, header_bytes
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, STATE_FILE, Names, file_name
from ckpt_lib.formats.structure.dtypes import ORDER
from ckpt_lib.formats.structure.sharing import Stored
from ckpt_lib.formats.structure.values import json_bytes
from ckpt_lib.formats.structure.writing import Placed, check_size, spell
from ckpt_lib.formats.tensor_bytes import write_tensor

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
        check_size(self._texts[STATE_FILE])

    def _lay_out(self, structure: _Structure) -> None:
        files = {}
        for group, tensors in structure.groups.items():
            found = list(shards(tensors, _measured, SHARD_BYTES))
            named = [file_name(group, number, len(found)) for number in range(1, len(found) + 1)]
            for name, shard in zip(named, found, strict=True):
                self._files.append(_tensor_file(name, shard, structure.aliases.get(group, {})))
            files[group] = named[0]
            if len(found) > 1:
                files[group] = f"{group}{INDEX_SUFFIX}"
                sizes = [{stored.name: stored.source.nbytes for stored in shard} for shard in found]
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
        self.payload, placed = spell(payload)
        self.groups: dict[str, list[Stored]] = defaultdict(list)
        self.aliases: dict[str, dict[str, str]] = defaultdict(dict)
        """For each group, the further names of its tensors, as ``safetensors.torch.save_model`` notes them."""
        self._place_all(placed, Names(payload))

    def _place_all(self, placed: Sequence[Placed], names: Names) -> None:
        called: dict[int, list[str]] = defaultdict(list)  # by what is stored: the tensors that it is, or that are in it
        for item in placed:
            if item.stored.is_memory or item.view is None:
                called[id(item.stored)].append(item.name)
        groups: dict[int, str] = {}
        for item in placed:
            stored = item.stored
            if id(stored) not in groups:
                groups[id(stored)] = self._place(stored, called[id(stored)], names)
            item.place(groups[id(stored)], stored.name)
        for group, further in self.aliases.items():
            self.aliases[group] = {name: kept for name, kept in further.items() if not names.is_taken(group, name)}

    def _place(self, stored: Stored, called: Sequence[str], names: Names) -> str:
        """Give a stored tensor its name, and return its group."""
        group, stored.name = names.take(called[0], "@memory" if stored.is_memory else "")
        self.groups[group].append(stored)
        for other, name in map(names.place, called[1:] if not stored.is_memory else ()):
            if other == group and name != FORMAT_KEY:
                self.aliases[group][name] = stored.name
        return group


Item = TypeVar("Item")
Measure = Callable[[Item], tuple[str, int, int]]
"""Returns the name of a tensor, the number of its dimensions, and its size in bytes."""


def shards(tensors: Iterable[Item], measure: Measure[Item], max_bytes: int) -> Iterator[list[Item]]:
    """Yield the tensors of each file, in the order given. A tensor that is larger has a file of its own."""
    shard: list[Item] = []
    shard_bytes = header_size_bytes = 0
    for tensor in tensors:
        name, dimensions, size_bytes = measure(tensor)
        entry_bytes = len(json.dumps(name)) + _ENTRY_BYTES + _DIMENSION_BYTES * dimensions
        shard_bytes += size_bytes
        header_size_bytes += entry_bytes
        if shard and (shard_bytes > max_bytes or header_size_bytes > MAX_HEADER_BYTES // 2):
            yield shard
            shard, shard_bytes, header_size_bytes = [], size_bytes, entry_bytes
        shard.append(tensor)
    yield shard


def _measured(stored: Stored) -> tuple[str, int, int]:
    return stored.name, stored.source.dim(), stored.source.nbytes


def _tensor_file(name: str, tensors: Iterable[Stored], aliases: Mapping[str, str]) -> _TensorFile:
    ordered = sorted(tensors, key=lambda stored: (ORDER[stored.source.dtype], stored.name.encode()))
    here = {stored.name for stored in ordered}
    metadata = {FORMAT_KEY: "pt", **{alias: kept for alias, kept in aliases.items() if kept in here}}
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
