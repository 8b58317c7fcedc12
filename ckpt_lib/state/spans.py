"""Which bytes of which storages a payload needs: each once, however many tensors share them.

PyTorch stores the whole memory that a tensor is a part of. A view of a small part of a large one then makes a large
file, so here a storage counts from the first to the last byte that some tensor of the payload uses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckpt_lib.errors import UnsupportedStateError

_TENSORS = (torch.Tensor, torch.nn.Parameter)
_NUMBERS = {int, float, bool}
_ALIGNMENT_BYTES = 16
"""The size of the largest element: a span that begins at a multiple of it can be addressed in elements of any type."""


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is nothing but a strided view of its storage: shape and strides say all about it."""
    return (
        type(tensor) in _TENSORS
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not (tensor.is_quantized or tensor.is_meta or tensor.is_conj() or tensor.is_neg() or tensor.__dict__)
    )


class Span:
    """The bytes ``start`` to ``stop`` of one storage, and who needs them. What is asked of it is settled then."""

    __slots__ = ("_size_bytes", "start", "stop", "storage", "tensors")

    def __init__(self, storage: torch.UntypedStorage, start: int, stop: int, tensors: list[torch.Tensor]) -> None:
        self.storage = storage
        self.start = start
        self.stop = stop
        self.tensors = tensors
        self._size_bytes: int | None = None

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of all tensors in it, or ``None`` when they differ."""
        first = self.tensors[0].dtype
        if len(self.tensors) == 1 or all(tensor.dtype is first for tensor in self.tensors):
            return first
        return None

    @property
    def is_gappy(self) -> bool:
        """Whether its only tensor leaves out bytes between the first and the last, as a column of a matrix does."""
        return self.size_bytes < self.stop - self.start

    @property
    def size_bytes(self) -> int:
        """How much has to be stored."""
        if self._size_bytes is None:
            self._size_bytes = self.stop - self.start
            used = self.tensors[0].nbytes if len(self.tensors) == 1 else 0
            if 0 < used <= self._size_bytes - _ALIGNMENT_BYTES:
                self._size_bytes = used
        return self._size_bytes

    def dense(self) -> torch.Tensor:
        """The bytes to store, as a one-dimensional tensor; a copy only of a gappy one."""
        if self.is_gappy:
            check_memory(self.tensors[0])
            return byte_view(self.tensors[0].detach().contiguous().untyped_storage(), 0, self.size_bytes)
        return byte_view(self.storage, self.start, self.stop)

    def place_of(self, tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
        """Where ``tensor`` begins in the dense bytes, in its elements, and its strides there."""
        if self.is_gappy:
            return 0, torch.empty(tensor.shape, dtype=tensor.dtype, device="meta").stride()
        if tensor.numel() == 0:  # it may begin anywhere, even past the end
            return 0, tensor.stride()
        return int(tensor.storage_offset()) - self.start // tensor.itemsize, tensor.stride()


def byte_view(storage: torch.UntypedStorage, start: int, stop: int) -> torch.Tensor:
    """Bytes of a storage as a tensor that shares them. Raises as :func:`check_memory` does."""
    # All of it first: told of more than there is, set_() would make the caller's storage larger.
    view = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[start:stop]
    if len(view) < stop - start:
        raise _lost_memory("a tensor", stop, storage)
    return view


def address_of(storage: torch.UntypedStorage, start: int, stop: int) -> int:
    """Where bytes of a storage lie that is in this process's memory. Raises as :func:`check_memory` does."""
    if stop > storage.nbytes():
        raise _lost_memory("a tensor", stop, storage)
    return storage.data_ptr() + start


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether the storage of a strided tensor holds all of it: ``resize_`` frees storages, or cuts them short."""
    return _extent(tensor)[1] <= tensor.untyped_storage().nbytes()


def check_memory(tensor: torch.Tensor, name: str = "a tensor") -> None:
    """Raise :class:`~ckpt_lib.errors.UnsupportedStateError` for a tensor that lies beyond the end of its storage.

    PyTorch would read there whatever the heap holds.
    """
    for part in _strided_parts(tensor):
        if not has_memory(part):
            raise _lost_memory(name, _extent(part)[1], part.untyped_storage())


def _lost_memory(name: str, size_bytes: int, storage: torch.UntypedStorage) -> UnsupportedStateError:
    return UnsupportedStateError(
        f"{name} has lost its memory: its storage was freed or shortened",
        expected=f"a storage of at least {size_bytes} bytes",
        got=f"{storage.nbytes()} bytes",
        hint="Sharded and offloaded weights have to be brought back before they are saved.",
    )


def _strided_parts(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """The tensors with a storage of their own that one of whatever kind consists of; none if it has no such memory."""
    parts: Iterable[torch.Tensor] = (tensor,)
    if is_traceable_wrapper_subclass(tensor):
        inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        parts = [part for item in inner for part in _strided_parts(item)]
    elif tensor.is_meta or tensor.is_mkldnn:
        parts = ()
    elif tensor.layout is torch.sparse_coo:
        parts = tensor._indices(), tensor._values()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = tensor.crow_indices(), tensor.col_indices(), tensor.values()
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    elif tensor.is_nested:
        parts = tensor.unbind()
    elif tensor.is_quantized and is_per_channel(tensor):
        parts = tensor, tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return parts


def is_per_channel(tensor: torch.Tensor) -> bool:
    """Whether a quantized tensor has a scale for each channel, and not one for all."""
    return tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


class Spans:
    """The spans of one payload. Storages are told apart by where they lie, tensors by identity.

    Raises as :func:`check_memory` does.
    """

    def __init__(self, payload: Mapping[str, Any]) -> None:
        self._spans: dict[tuple[Any, ...], Span] = {}
        self._of_tensor: dict[int, Span] = {}  # the spans hold the tensors, so that ids stay their own
        for tensor in tensors_in(payload):
            if id(tensor) not in self._of_tensor and is_plain(tensor):
                self._of_tensor[id(tensor)] = self._add(tensor)

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans.values())

    def _add(self, tensor: torch.Tensor) -> Span:
        storage, start, stop = _used(tensor)
        address = _address(storage, tensor.dtype)
        span = self._spans.get(address)
        if span is None:
            span = self._spans[address] = Span(storage, start, stop, [tensor])
            return span
        span.tensors.append(tensor)
        if start < stop:
            is_empty = span.start == span.stop
            span.start = start if is_empty else min(span.start, start)
            span.stop = stop if is_empty else max(span.stop, stop)
            if storage.nbytes() > span.storage.nbytes():
                span.storage = storage
        return span

    def of(self, tensor: torch.Tensor) -> Span:
        """The span of a plain tensor; one of its own when no span covers it, as with one that hides in an object."""
        if found := self._of_tensor.get(id(tensor)):
            return found
        storage, start, stop = _used(tensor)
        span = self._spans.get(_address(storage, tensor.dtype))
        if span is not None and start == stop:  # an empty tensor is anywhere
            return span
        if span is None or start < span.start or stop > span.stop:
            return Span(storage, start, stop, [tensor])
        return span


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in nested dicts, lists, tuples and sets."""
    found: list[torch.Tensor] = []
    _add_tensors(value, found)
    return found


def _add_tensors(value: Any, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
        return
    if isinstance(value, Mapping):
        items: Iterable[Any] = (*value.values(), *getattr(value, "__dict__", {}).values())
    elif isinstance(value, list | tuple | set | frozenset):
        items = value
    else:
        return
    for item in items:
        if type(item) not in _NUMBERS:  # of which lists may be long
            _add_tensors(item, found)


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with its dicts, lists and tuples built anew around what ``change`` makes of everything else."""
    if type(value) in (dict, OrderedDict):
        rebuilt = type(value)((key, map_leaves(item, change)) for key, item in value.items())
        if type(value) is OrderedDict:  # state_dict() hangs the modules' versions on it
            rebuilt.__dict__.update(map_leaves(value.__dict__, change))
        return rebuilt
    if type(value) in (list, tuple):
        return type(value)(map_leaves(item, change) for item in value)
    return change(value)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First and last byte a tensor uses of its storage; it begins at a multiple of every element size."""
    nbytes = tensor.nbytes
    if not nbytes:
        return 0, 0
    offset = int(tensor.storage_offset())
    if tensor.is_contiguous():  # which most are, and which is quicker to say
        first = offset * tensor.itemsize
        return first - first % _ALIGNMENT_BYTES, first + nbytes
    last = offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = offset * tensor.itemsize
    return first - first % _ALIGNMENT_BYTES, (last + 1) * tensor.itemsize


def _used(tensor: torch.Tensor) -> tuple[torch.UntypedStorage, int, int]:
    """The storage of a plain tensor, and the first and last byte that it uses of that."""
    storage = tensor.untyped_storage()
    start, stop = _extent(tensor)
    if stop > storage.nbytes():
        raise _lost_memory("a tensor", stop, storage)
    return storage, start, stop


def _address(storage: torch.UntypedStorage, dtype: torch.dtype) -> tuple[Any, ...]:
    """What tells storages apart: two objects for the same memory are one."""
    return (storage.device, storage.data_ptr()) if storage.nbytes() else (storage.device, 0, dtype)
