"""Reads a folder of safetensors files without copying them: tensors are views of the verified, mapped bytes.

The structure of the payload comes first, and then the headers of the files that hold the wanted tensors. So it is known
that each tensor is there, and fits into what is stored for it, before a byte of a tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.formats.base import Payload, PayloadSource
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.limits import MAX_EXPANDED_BYTES, MAX_LEVELS, expanded_bytes, extent, is_deeper
from ckpt_lib.formats.placing import Place
from ckpt_lib.formats.safetensors.decoding import TensorRef, decode, decode_plain, malformed, refs_in
from ckpt_lib.formats.safetensors.header import Entry, read_header
from ckpt_lib.formats.safetensors.naming import INDEX_SUFFIX, STATE_FILE, SUFFIX
from ckpt_lib.formats.safetensors.sharing import has_gaps
from ckpt_lib.formats.safetensors.writing import VERSION
from ckpt_lib.formats.selection import select
from ckpt_lib.state.tree import map_leaves
from ckpt_lib.stream import VerifiedFile

_MAX_ALIGNMENT_BYTES = 8  # that of the parts of a complex number, which are the widest


class _Home(NamedTuple):
    """The file that holds a tensor, and the tensor's entry there."""

    file: str
    entry: Entry


class SafetensorsReader:
    """One payload, whose structure is known before any tensor's bytes are read.

    The constructor raises :class:`CorruptCheckpointError` for a structure that contradicts itself or takes memory or
    time out of proportion, and :class:`UnsupportedFormatError` for that of a later version.
    """

    def __init__(self, source: PayloadSource) -> None:
        self._source = source
        with CollectionPause():
            found = _structure(source.open(STATE_FILE))
        self._groups: dict[str, str] = found["files"]
        self._outline: Payload = found["payload"]
        self._headers: dict[str, dict[str, Entry]] = {}
        self._indexes: dict[str, dict[str, str]] = {}
        self._homes: dict[tuple[str, str], _Home] = {}

    def outline(self) -> Payload:
        """Return the payload with a :class:`TensorRef` instead of each tensor, once all of them are known to be there.

        Raises :class:`CorruptCheckpointError`.
        """
        with CollectionPause():
            self._check(ref for _, ref in refs_in(self._outline))
        return self._outline

    def read(self, keys: Collection[str] | None, place: Place) -> Payload:
        """Verify and build the whole payload, or what ``keys`` name of it. CPU tensors are views of the file's memory.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a key that names nothing, and :class:`CorruptCheckpointError`
        with all damage of the requested tensors.
        """
        with CollectionPause():
            wanted = select(self._outline, keys)
            refs = [ref for _, ref in refs_in(wanted)]
            self._check(refs)
        self._require({self._home(ref) for ref in refs})
        with CollectionPause():
            builder = _Builder(self._source, self._home, place, refs)
            built: Payload = map_leaves(wanted, builder.build)
        return built

    def described(self, ref: TensorRef) -> tuple[torch.dtype, tuple[int, ...], tuple[str, str]]:
        """Return the type and the shape of a tensor, and the file and name of the stored tensor that it is a view of.

        Raises :class:`CorruptCheckpointError` if it is not there.
        """
        home = self._home(ref)
        kind = home.entry if ref.view is None else ref.view
        return kind.dtype, kind.shape, (home.file, ref.name)

    def builder(self) -> Callable[[Any], Any]:
        """Return the function that makes the tensor of a :class:`TensorRef`, each for itself, sharing memory as saved.

        Call :meth:`outline` before. Each call raises :class:`CorruptCheckpointError` with the damage of its tensor.
        """
        with CollectionPause():
            builder = _Builder(self._source, self._home, Place("cpu"), [ref for _, ref in refs_in(self._outline)])
        return builder.build

    def tensor_ranges(self, file: str) -> dict[str, list[tuple[int, int]]]:
        """Map the name of each tensor to its bytes in a file. Only headers are read."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for name, ref in refs_in(self._outline):
            if self._file_of(ref) == file:
                home = self._home(ref)
                _check_fit(ref, home.entry)
                start, stop = home.entry.start, home.entry.stop
                if (view := ref.view) is not None:
                    start += view.offset * view.dtype.itemsize
                    stop = start + extent(view.shape, view.stride) * view.dtype.itemsize
                ranges.setdefault(name, []).append((start, stop))
        return ranges

    def _check(self, refs: Iterable[TensorRef]) -> None:
        expanded = 0
        for ref in refs:
            expanded += _check_fit(ref, self._home(ref).entry)
            if expanded > MAX_EXPANDED_BYTES:
                raise malformed(f"its tensors are more than {MAX_EXPANDED_BYTES} bytes larger than their stored memory")

    def _require(self, homes: Iterable[_Home]) -> None:
        """Verify the bytes of tensors. Raises :class:`CorruptCheckpointError` with the damage of all files."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for home in homes:
            ranges.setdefault(home.file, []).append((home.entry.start, home.entry.stop))
        failures = []
        for name, wanted in ranges.items():
            try:
                self._source.open(name).require(wanted)
            except CorruptCheckpointError as error:
                failures.append(error)
        if failures:
            failures[0].damages = tuple(damage for error in failures for damage in error.damages)
            raise failures[0]

    def _home(self, ref: TensorRef) -> _Home:
        found = self._homes.get((ref.group, ref.name))
        if found is None:
            file = self._file_of(ref)
            if file not in self._headers:
                self._headers[file] = read_header(self._source.open(file))
            entry = self._headers[file].get(ref.name)
            if entry is None:
                raise malformed(f"{file} holds no {shown(ref.name)}")
            found = self._homes[ref.group, ref.name] = _Home(file, entry)
        return found

    def _file_of(self, ref: TensorRef) -> str:
        name = self._groups.get(ref.group)
        if name is None:
            raise malformed(f"it names no file for {shown(ref.group)}")
        if name.endswith(INDEX_SUFFIX):
            if name not in self._indexes:
                self._indexes[name] = _weight_map(self._source.open(name))
            name = self._indexes[name].get(ref.name, "")
        if not name.endswith(SUFFIX):
            raise malformed(f"it names no safetensors file for {shown(ref.name)}")
        return name


class _Builder:
    """Builds tensors. Those that shared memory share it again."""

    def __init__(self, source: PayloadSource, home: Any, place: Place, refs: Iterable[TensorRef]) -> None:
        self._source = source
        self._home = home
        self._place = place
        self._stored: dict[tuple[_Home, tuple[int, ...] | None], torch.Tensor] = {}
        self._alignment: dict[_Home, int] = {}
        for ref in refs:
            home_of_ref = home(ref)
            dtype = ref.view.dtype if ref.view else home_of_ref.entry.dtype
            wanted = min(dtype.itemsize, _MAX_ALIGNMENT_BYTES)
            self._alignment[home_of_ref] = max(wanted, self._alignment.get(home_of_ref, 1))

    def build(self, value: Any) -> Any:
        """Return the tensor that a :class:`TensorRef` describes, and any other value as it is."""
        if not isinstance(value, TensorRef):
            return value
        stored = self._open(self._home(value), value.stride)
        if (view := value.view) is None:
            tensor = stored.detach()  # flags and attributes belong to one of several
        else:
            tensor = torch.empty(0, dtype=view.dtype, device=stored.device)
            tensor.set_(stored.untyped_storage(), view.offset, view.shape, view.stride)
        if value.is_parameter:
            tensor = torch.nn.Parameter(tensor, value.requires_grad)
        elif value.requires_grad:
            tensor.requires_grad_()
        if value.attributes:
            vars(tensor).update(map_leaves(value.attributes, self.build))
        return tensor

    def _open(self, home: _Home, stride: tuple[int, ...] | None) -> torch.Tensor:
        """Return a stored tensor, which is copied only if its dimensions are to lie in another order."""
        found = self._stored.get((home, stride))
        if found is None:
            found = self._view_of(home) if stride is None else _permuted(self._open(home, None), stride)
            self._stored[home, stride] = found
        return found

    def _view_of(self, home: _Home) -> torch.Tensor:
        entry = home.entry
        data = self._source.open(home.file).view(entry.start, entry.stop)
        elements = (
            torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8, device="cpu")
        )
        if self._place.is_cpu and elements.data_ptr() % self._alignment[home]:  # ours are aligned; others may not be
            elements = elements.clone()
        elements = self._place(elements)
        return elements.view(entry.dtype).view(entry.shape)


def _permuted(tensor: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    """Return a contiguous tensor with another stride that leaves no gaps, copied unless that is the same memory."""
    same = tensor.as_strided(tensor.shape, stride)
    if same.is_contiguous():
        return same
    permuted = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return permuted.copy_(tensor)


def _check_fit(ref: TensorRef, entry: Entry) -> int:
    """Refuse what does not fit the stored tensor. Return how much larger than its memory the tensor is."""
    dtype = ref.view.dtype if ref.view else entry.dtype
    if ref.requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        raise malformed("a tensor of whole numbers wants gradients")
    if ref.stride is not None and (len(ref.stride) != len(entry.shape) or has_gaps(entry.shape, ref.stride)):
        raise malformed(f"{shown(ref.name)} has another shape than its stride")
    if (view := ref.view) is None:
        return 0
    length = extent(view.shape, view.stride)
    if (view.offset + length) * dtype.itemsize > entry.stop - entry.start:
        raise malformed(f"a tensor reaches beyond {shown(ref.name)}")
    return expanded_bytes(view.shape, view.stride, dtype.itemsize)


def _structure(file: VerifiedFile) -> dict[str, Any]:
    found = decode(_text(file))
    match found:
        case {"format": "safetensors", "version": int(version)} if version > VERSION:
            raise UnsupportedFormatError(
                f"the payload was written by a later version of the format safetensors, {version}",
                expected=f"at most {VERSION}",
                hint="Install a newer version of this library.",
            )
        case {"format": "safetensors", "version": 1, "files": dict(files), "payload": dict(payload)}:
            pass
        case _:
            raise malformed("it is not that of a payload")
    if not all(isinstance(name, str) for name in files.values()):
        raise malformed("it names its files in another way")
    if is_deeper(payload, MAX_LEVELS + 1):
        raise malformed(f"it is nested more than {MAX_LEVELS} levels deep")
    return {"files": files, "payload": payload}


def _weight_map(file: VerifiedFile) -> dict[str, str]:
    found = decode_plain(_text(file))
    match found:
        case {"weight_map": dict(names)} if all(isinstance(name, str) for name in names.values()):
            return names
    raise malformed("an index names no files")


def _text(file: VerifiedFile) -> bytes:
    with file.view(0, file.size_bytes) as view:
        return bytes(view)
