"""Builds a payload of its structure: tensors are views of the verified, mapped bytes of the files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.formats.base import Payload, PayloadSource
from ckpt_lib.formats.gc_pause import CollectionPause
from ckpt_lib.formats.limits import MAX_EXPANDED_BYTES, MAX_LEVELS, expanded_bytes, extent, is_deeper
from ckpt_lib.formats.placing import Place
from ckpt_lib.formats.selection import select
from ckpt_lib.formats.structure.decoding import TensorRef, decode, malformed, refs_in
from ckpt_lib.formats.structure.entries import Entry, Home
from ckpt_lib.formats.structure.sharing import has_gaps
from ckpt_lib.state.tree import map_leaves
from ckpt_lib.stream import VerifiedFile

_MAX_ALIGNMENT_BYTES = 16  # of a complex128: PyTorch copies a misaligned one by instructions that end the process


def parse(text: bytes) -> tuple[dict[str, Any], Payload]:
    """Return the facts and the payload of a JSON of :func:`take_apart`, with a :class:`TensorRef` for each tensor.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, in bounded time and memory, for any other.
    """
    match decode(text):
        case {"facts": dict(facts), "payload": dict(payload)}:
            check_payload(payload)
            return facts, payload
    raise malformed("it is not that of a payload")


def check_payload(payload: Payload) -> None:
    """Raise :class:`~ckpt_lib.errors.CorruptCheckpointError` for a structure that is nested too deeply."""
    if is_deeper(payload, MAX_LEVELS + 1):
        raise malformed(f"it is nested more than {MAX_LEVELS} levels deep")


class StructureReader:
    """Reads a payload whose structure is known: tensors are views of the verified, mapped bytes of the files.

    ``home`` says where the tensor of a :class:`TensorRef` lies. It raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` if that is nowhere, or if the file is too short for it.
    """

    def __init__(self, source: PayloadSource, outline: Payload, home: Callable[[TensorRef], Home]) -> None:
        self._source = source
        self._outline = outline
        self._find = home
        self._homes: dict[TensorRef, Home] = {}

    def outline(self) -> Payload:
        """Return the payload with a :class:`TensorRef` instead of each tensor, once all of them are known to be there.

        Raises :class:`CorruptCheckpointError`.
        """
        with CollectionPause():
            self._check(ref for _, ref in refs_in(self._outline))
            outline: Payload = map_leaves(self._outline, self._with_type)
        return outline

    def _with_type(self, value: Any) -> Any:
        if not isinstance(value, TensorRef):
            return value
        dtype, shape, _ = self.described(value)
        return replace(value, dtype=dtype, shape=shape)

    def read(self, keys: Collection[str] | None, place: Place) -> Payload:
        """Verify and build the whole payload, or what ``keys`` name of it. CPU tensors are views of the file's memory.

        Raises :class:`~ckpt_lib.errors.ConfigError` for a key that names nothing, and :class:`CorruptCheckpointError`
        with all damage of the requested tensors.
        """
        with CollectionPause():
            wanted = select(self._outline, keys)
            refs = [ref for _, ref in refs_in(wanted)]
            self._check(refs)
        self._require(map(self._home, refs))
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
            home = self._home(ref)
            if home.file == file:
                _check_fit(ref, home.entry)
                start, stop = home.entry.start, home.entry.stop
                if (view := ref.view) is not None:
                    start += view.offset * view.dtype.itemsize
                    stop = start + extent(view.shape, view.stride) * view.dtype.itemsize
                ranges.setdefault(name, []).append((start, stop))
        return ranges

    def _check(self, refs: Iterable[TensorRef]) -> None:
        expanded = 0
        strides: dict[tuple[str, str], set[tuple[int, ...]]] = {}
        for ref in refs:
            file, entry = self._home(ref)
            expanded += _check_fit(ref, entry)
            if ref.stride is not None:  # each order of its dimensions is a copy; a writer knows one
                orders = strides.setdefault((file, ref.name), {ref.stride})
                expanded += (entry.stop - entry.start) * (ref.stride not in orders)
                orders.add(ref.stride)
            if expanded > MAX_EXPANDED_BYTES:
                raise malformed(f"its tensors are more than {MAX_EXPANDED_BYTES} bytes larger than their stored memory")

    def _require(self, homes: Iterable[Home]) -> None:
        """Verify the bytes of tensors. Raises :class:`CorruptCheckpointError` with the damage of all files."""
        ranges: dict[str, set[tuple[int, int]]] = {}
        for file, entry in homes:
            ranges.setdefault(file, set()).add((entry.start, entry.stop))
        failures = []
        for name, wanted in ranges.items():
            try:
                self._source.open(name).require(wanted)
            except CorruptCheckpointError as error:
                failures.append(error)
        if failures:
            failures[0].damages = tuple(damage for error in failures for damage in error.damages)
            raise failures[0]

    def _home(self, ref: TensorRef) -> Home:
        found = self._homes.get(ref)
        if found is None:
            found = self._homes[ref] = self._find(ref)
        return found


class _Builder:
    """Builds tensors. Those that shared memory share it again."""

    def __init__(
        self, source: PayloadSource, home: Callable[[TensorRef], Home], place: Place, refs: Iterable[TensorRef]
    ) -> None:
        self._source = source
        self._home = home
        self._place = place
        self._files: dict[str, VerifiedFile] = {}
        self._stored: dict[tuple[str, str, tuple[int, ...] | None], torch.Tensor] = {}
        self._widest: dict[tuple[str, str], int] = {}
        """The sizes of elements of views of stored tensors, the largest of each."""
        for ref in refs:
            if ref.view is not None:
                place_of_ref = home(ref).file, ref.name
                size_bytes = ref.view.dtype.itemsize
                self._widest[place_of_ref] = max(size_bytes, self._widest.get(place_of_ref, 1))

    def build(self, value: Any) -> Any:
        """Return the tensor that a :class:`TensorRef` describes, and any other value as it is."""
        if not isinstance(value, TensorRef):
            return value
        stored = self._open(value, value.stride)
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

    def _open(self, ref: TensorRef, stride: tuple[int, ...] | None) -> torch.Tensor:
        """Return a stored tensor, which is copied only if its dimensions are to lie in another order."""
        file, entry = self._home(ref)
        found = self._stored.get((file, ref.name, stride))
        if found is None:
            found = _permuted(self._open(ref, None), stride) if stride else self._view_of(file, ref.name, entry)
            self._stored[file, ref.name, stride] = found
        return found

    def _view_of(self, file: str, name: str, entry: Entry) -> torch.Tensor:
        if file not in self._files:
            self._files[file] = self._source.open(file)
        dtype = entry.dtype
        data = self._files[file].view(entry.start, entry.stop)
        elements = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype, device="cpu")
        if self._place.is_cpu and (odd_bytes := elements.data_ptr() % _MAX_ALIGNMENT_BYTES):
            wanted = max(dtype.itemsize, self._widest.get((file, name), 1))
            if odd_bytes % min(wanted, _MAX_ALIGNMENT_BYTES):  # ours are aligned; others may not be
                elements = elements.clone()
        if not self._place.is_memory_of_file:
            elements = self._place(elements.view(torch.uint8)).view(dtype)
        return elements.view(entry.shape)


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
