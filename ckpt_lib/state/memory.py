"""Checks that tensors have their memory, and reads it: ``resize_`` may have freed or shortened a tensor's storage."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckpt_lib.errors import UnsupportedStateError

ALIGNMENT_BYTES = 16
"""The size of the widest element. Bytes from a multiple of it on can be addressed as elements of any type."""


def byte_view(storage: torch.UntypedStorage, start: int, stop: int) -> torch.Tensor:
    """Return bytes of a storage as a tensor that shares them. Raises as :func:`check_memory` does."""
    # The whole storage first: set_() with a larger size than it has would enlarge the caller's storage.
    view = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[start:stop]
    if len(view) < stop - start:
        raise lost_memory("a tensor", stop, storage)
    return view


def address_of(storage: torch.UntypedStorage, start: int, stop: int) -> int:
    """Return the address of bytes in a CPU storage. Raises as :func:`check_memory` does."""
    if stop > storage.nbytes():
        raise lost_memory("a tensor", stop, storage)
    return storage.data_ptr() + start


def has_memory(tensor: torch.Tensor) -> bool:
    """Tell whether the storage of a strided tensor is long enough to hold it."""
    return extent_bytes(tensor)[1] <= tensor.untyped_storage().nbytes()


def check_memory(tensor: torch.Tensor, name: str = "a tensor") -> None:
    """Raise :class:`~ckpt_lib.errors.UnsupportedStateError` for a tensor that reaches beyond the end of its storage.

    PyTorch would read arbitrary memory of the heap there.
    """
    for part in _strided_parts(tensor):
        if not has_memory(part):
            raise lost_memory(name, extent_bytes(part)[1], part.untyped_storage())


def lost_memory(name: str, size_bytes: int, storage: torch.UntypedStorage) -> UnsupportedStateError:
    """Return the error for a tensor whose storage has fewer than ``size_bytes``."""
    return UnsupportedStateError(
        f"{name} has lost its memory: its storage was freed or shortened",
        expected=f"a storage of at least {size_bytes} bytes",
        got=f"{storage.nbytes()} bytes",
        hint="Sharded and offloaded weights have to be brought back before they are saved.",
    )


def _strided_parts(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    """Return the strided tensors that a tensor of any kind consists of; none if it has no memory of that kind."""
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
    """Tell whether a quantized tensor has a scale per channel instead of a single one."""
    return tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)


def extent_bytes(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the bytes that a tensor uses of its storage, beginning at a multiple of :data:`ALIGNMENT_BYTES`."""
    nbytes = tensor.nbytes
    if not nbytes:
        return 0, 0
    offset = int(tensor.storage_offset())
    if tensor.is_contiguous():  # the common case, and faster
        first = offset * tensor.itemsize
        return first - first % ALIGNMENT_BYTES, first + nbytes
    last = offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = offset * tensor.itemsize
    return first - first % ALIGNMENT_BYTES, (last + 1) * tensor.itemsize
