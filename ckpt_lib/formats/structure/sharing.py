"""Decides which bytes are stored for the tensors of a payload: each byte once, however many tensors share it.

Tensors that overlap in memory are stored together, and come back sharing memory:

- The same view under several names is stored once.
- Views into a contiguous tensor of the payload are not stored; they are described as views of it.
- For other overlapping tensors the memory around them is stored, and all are described as views of that. So is a tensor
  that is expanded, or of a type that safetensors does not know.

Tensors that lie side by side in one storage do not overlap, and are stored each by itself. One that skips bytes, as a
column of a matrix does, comes back without the gaps; one whose dimensions lie in another order, as in
``torch.channels_last``, keeps that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch

from ckpt_lib.errors import UnsupportedStateError
from ckpt_lib.formats.limits import expanded_bytes, extent
from ckpt_lib.formats.structure.dtypes import NAMES
from ckpt_lib.state.memory import ALIGNMENT_BYTES, byte_view, check_memory


class View(NamedTuple):
    """A tensor as a view of stored bytes; ``shape``, ``stride`` and ``offset`` count its own elements."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def odd_stride(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the stride of a tensor without gaps that is not the one of a new tensor."""
    shape, stride = tensor.shape, tensor.stride()
    usual = 1
    for length, step in zip(reversed(shape), reversed(stride), strict=True):
        if step != usual:
            return None if not tensor.numel() or has_gaps(shape, stride) else stride
        usual *= length
    return None


def has_gaps(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Tell whether elements of a tensor overlap, or other memory lies between them."""
    expected = 1
    for step, length in sorted((step, length) for length, step in zip(shape, stride, strict=True) if length != 1):
        if step != expected:
            return True
        expected *= length
    return False


class Stored:
    """One tensor of a file. It is written as if it were contiguous."""

    __slots__ = ("is_memory", "name", "source")

    def __init__(self, source: torch.Tensor, *, is_memory: bool = False) -> None:
        self.source = source
        self.is_memory = is_memory
        """Whether it is the memory around tensors, and none of them."""
        self.name = ""


class _Span(NamedTuple):
    """The memory that a tensor lies in, by address."""

    device: str
    start: int
    stop: int
    number: int
    tensor: torch.Tensor


Placed = tuple[Stored, View | None]
"""What is stored for a tensor, and how the tensor is a view of it; ``None`` if it has the same elements."""


def store_once(tensors: Sequence[torch.Tensor]) -> list[Placed]:
    """Return for each tensor what is stored for it.

    Raises :class:`UnsupportedStateError` for a tensor that has lost its memory, and for tensors that share memory in a
    way that no single storage describes.
    """
    spans: dict[int, _Span] = {}
    for number, tensor in enumerate(tensors):
        if id(tensor) not in spans:
            check_memory(tensor)
            start = tensor.data_ptr()
            length_bytes = extent(tensor.shape, tensor.stride()) * tensor.itemsize
            spans[id(tensor)] = _Span(str(tensor.device), start, start + length_bytes, number, tensor)
    placed: dict[int, Placed] = {}
    for group in _overlapping(spans.values()):
        for span, found in zip(group, _store(group), strict=True):
            placed[id(span.tensor)] = found
    return [placed[id(tensor)] for tensor in tensors]


def _overlapping(spans: Iterable[_Span]) -> Iterator[list[_Span]]:
    """Yield the tensors that share memory, those of each group in the order of the payload."""
    group: list[_Span] = []
    stop = 0
    for span in sorted(spans, key=lambda span: span[:3]):
        if span.start == span.stop:
            yield [span]
        elif group and span.device == group[0].device and span.start < stop:
            group.append(span)
            stop = max(stop, span.stop)
        else:
            if group:
                yield sorted(group, key=lambda span: span.number)
            group, stop = [span], span.stop
    if group:
        yield sorted(group, key=lambda span: span.number)


def _store(group: Sequence[_Span]) -> list[Placed]:
    first = group[0].tensor
    if len(group) == 1 and _is_storable(first):
        return [(Stored(first), None)]
    start, stop = min(span.start for span in group), max(span.stop for span in group)
    if whole := next((span for span in group if _is_whole(span, start, stop)), None):
        if views := _views_of(group, start, whole.tensor):
            stored = Stored(whole.tensor)
            return [(stored, view) for view in views]
    elif _is_storable(first) and all(_is_same(span.tensor, first) for span in group):
        stored = Stored(first)
        return [(stored, None) for _ in group]
    return _store_memory(group, start, stop)


def _store_memory(group: Sequence[_Span], start: int, stop: int) -> list[Placed]:
    """Store the memory around tensors, as elements of their type if they have one."""
    lowest = min(group, key=lambda span: span.start)
    storage = lowest.tensor.untyped_storage()
    offset = start - storage.data_ptr() if start < stop else 0
    offset -= offset % ALIGNMENT_BYTES
    end = stop - storage.data_ptr() if start < stop else 0
    views = _views_of(group, storage.data_ptr() + offset if start < stop else start)
    if not views or end > storage.nbytes():
        raise UnsupportedStateError(
            f"tensors of the state share memory that is not one storage: {len(group)} of them overlap",
            hint="Store clones of them.",
        )
    memory = byte_view(storage, offset, end)
    dtype = lowest.tensor.dtype
    if dtype in NAMES and all(span.tensor.dtype is dtype for span in group) and not (end - offset) % dtype.itemsize:
        memory = memory.view(dtype)
    stored = Stored(memory, is_memory=True)
    return [(stored, view) for view in views]


def _views_of(group: Iterable[_Span], start: int, whole: torch.Tensor | None = None) -> list[View | None]:
    """Describe tensors as views of the memory from ``start`` on; empty if one does not lie at its own elements."""
    views: list[View | None] = []
    for span in group:
        tensor = span.tensor
        if (span.start - start) % tensor.itemsize:
            return []
        is_same = whole is not None and _is_same(tensor, whole)
        offset = (span.start - start) // tensor.itemsize
        views.append(None if is_same else View(tensor.dtype, tuple(tensor.shape), tensor.stride(), offset))
    return views


def _is_storable(tensor: torch.Tensor) -> bool:
    """Tell whether a file can hold a tensor with its elements, and without repeating any."""
    return tensor.dtype in NAMES and (
        tensor.is_contiguous() or not expanded_bytes(tensor.shape, tensor.stride(), tensor.itemsize)
    )


def _is_whole(span: _Span, start: int, stop: int) -> bool:
    is_all = span.start == start and span.stop == stop
    return is_all and span.tensor.dtype in NAMES and span.tensor.is_contiguous()


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether two tensors are one view of the same memory."""
    if one is other:
        return True
    if one.data_ptr() != other.data_ptr() or one.dtype is not other.dtype or one.shape != other.shape:
        return False
    return one.stride() == other.stride() or (one.is_contiguous() and other.is_contiguous())
