"""Hands the bytes of tensors to a stream, in blocks that share their memory wherever that is possible."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ckpt_lib.state.memory import address_of, byte_view, check_memory
from ckpt_lib.stream import BLOCK_SIZE_BYTES, HashingWriter

SMALL_BYTES = 2**16
"""Up to this size, copying the memory as ``bytes`` is faster than asking PyTorch for a view of it."""


def blocks_of(data: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a one-dimensional tensor in blocks, never copying all of a tensor on a device."""
    for start in range(0, len(data), BLOCK_SIZE_BYTES):
        check_memory(data)  # another thread may have freed it
        # Tensor.numpy() would make the storage, which belongs to the training, impossible to resize.
        yield np.from_dlpack(data[start : start + BLOCK_SIZE_BYTES].cpu()).data


def pieces_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor in contiguous parts, in order. Only those of a tensor that is not contiguous are copies."""
    check_memory(tensor)  # another thread may have freed it
    tensor = tensor.detach()
    if tensor.nbytes <= BLOCK_SIZE_BYTES:
        yield tensor.contiguous()
        return
    rows = max(1, BLOCK_SIZE_BYTES * len(tensor) // tensor.nbytes)
    for start in range(0, len(tensor), rows):
        part = tensor[start : start + rows]
        yield from pieces_of(part) if part.nbytes <= BLOCK_SIZE_BYTES else pieces_of(part[0])


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


@dataclass(frozen=True, eq=False, slots=True)
class TensorStream:
    """A contiguous tensor that is not in memory: its bytes are produced when they are written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[memoryview]]
    """Returns all of its bytes, each time it is called."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize
