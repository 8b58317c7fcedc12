"""Tensors on their way from one file to another: read, cast block by block, and forgotten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError, CorruptCheckpointError
from ckpt_lib.foreign import StoredTensor
from ckpt_lib.formats.tensor_bytes import TensorStream, blocks_of, pieces_of
from ckpt_lib.state.memory import byte_view
from ckpt_lib.state.ranges import is_plain
from ckpt_lib.state.tree import map_leaves

_SERIAL_ELEMENTS = 2**15 - 1
"""PyTorch works on more elements with all its threads, which wait for each other: a busy machine takes minutes then."""


def stored_tensors(payload: Any) -> Any:
    """Return a payload with a :class:`~ckpt_lib.foreign.StoredTensor` for each ordinary tensor; others stay."""
    found: dict[int, StoredTensor] = {}

    def stored(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not is_plain(value):
            return value
        if id(value) not in found:
            tensor = value.detach()
            memory = (str(tensor.device), tensor.untyped_storage().data_ptr())
            found[id(value)] = StoredTensor(tensor.dtype, tuple(tensor.shape), memory, lambda: tensor)
        return found[id(value)]

    return map_leaves(payload, stored)


class Sharing:
    """Which of some tensors share memory. Only those that may are read."""

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        self._first: dict[int, StoredTensor] = {}
        self._overlapping: set[int] = set()
        groups: dict[Hashable, dict[int, StoredTensor]] = defaultdict(dict)
        for tensor in tensors:
            if tensor.size_bytes:
                groups[tensor.memory][id(tensor)] = tensor
        for group in groups.values():
            if len(group) > 1:
                self._compare(group.values())

    def _compare(self, group: Iterable[StoredTensor]) -> None:
        views: dict[Hashable, StoredTensor] = {}
        tensors = [(stored, stored.read()) for stored in group]  # all at once: addresses of freed memory are used again
        for stored, tensor in tensors:
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            view = (*place, tensor.dtype, tensor.is_conj(), tensor.is_neg())
            self._first[id(stored)] = views.setdefault(view, stored)
        if len(views) > 1:
            self._overlapping.update(id(stored) for stored in views.values())

    def first_of(self, tensor: StoredTensor) -> StoredTensor:
        """Return the first tensor with the same elements in the same memory."""
        return self._first.get(id(tensor), tensor)

    def overlaps(self, tensor: StoredTensor) -> bool:
        """Tell whether a first one may share memory with other tensors, that is, with parts of them."""
        return id(tensor) in self._overlapping


def tensor_stream(name: str, stored: StoredTensor, dtype: torch.dtype | None = None) -> TensorStream:
    """Return the bytes of a stored tensor, cast if it is a floating one and another ``dtype`` is wanted.

    They are produced when they are asked for. That raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for a tensor
    that is not what was said of it, and :class:`~ckpt_lib.errors.ConfigError` for numbers that ``dtype`` cannot hold.
    """
    wanted = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
    return TensorStream(wanted, stored.shape, lambda: _blocks(name, stored, wanted))


def _blocks(name: str, stored: StoredTensor, dtype: torch.dtype) -> Iterator[memoryview]:
    tensor = stored.read().detach().resolve_conj().resolve_neg()
    if tensor.dtype != stored.dtype or tuple(tensor.shape) != stored.shape:
        raise CorruptCheckpointError(
            f"{shown(name)} is another tensor than its description says",
            expected=f"{stored.dtype} {stored.shape}",
            got=f"{tensor.dtype} {tuple(tensor.shape)}",
        )
    for piece in pieces_of(tensor):
        if dtype == stored.dtype:
            yield from _bytes_of(piece)
            continue
        flat = piece.view(-1)
        for start in range(0, len(flat), _SERIAL_ELEMENTS):
            yield from _bytes_of(_cast(name, flat[start : start + _SERIAL_ELEMENTS], dtype))


def _bytes_of(piece: torch.Tensor) -> Iterator[memoryview]:
    start = int(piece.storage_offset()) * piece.itemsize
    if piece.nbytes:
        yield from blocks_of(byte_view(piece.untyped_storage(), start, start + piece.nbytes))


def _cast(name: str, piece: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = piece.to(dtype)
    if not torch.isinf(cast).any():
        return cast
    wide = piece.to(torch.float32) if piece.itemsize == 1 else piece  # PyTorch asks no float8 whether it is infinite
    overflowed = torch.isinf(cast) & ~torch.isinf(wide)
    if overflowed.any():
        limit = torch.finfo(dtype).max
        raise ConfigError(
            f"{shown(name)} holds numbers that {str(dtype).removeprefix('torch.')} cannot, and that would become inf",
            expected=f"none beyond {limit:.4g}",
            got=f"{wide[overflowed].abs().max().item():.4g}",
            hint="bfloat16 has the range of float32. Nothing was written.",
        )
    return cast
