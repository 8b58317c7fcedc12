"""Hands the bytes of tensors to a stream, in blocks that share their memory wherever that is possible."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ckpt_lib.state.memory import check_memory
from ckpt_lib.stream import BLOCK_SIZE_BYTES

SMALL_BYTES = 2**16
"""Up to this size, copying the memory as ``bytes`` is faster than asking PyTorch for a view of it."""


def blocks_of(data: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a one-dimensional tensor in blocks, never copying all of a tensor on a device."""
    for start in range(0, len(data), BLOCK_SIZE_BYTES):
        check_memory(data)  # another thread may have freed it
        # Tensor.numpy() would make the storage, which belongs to the training, impossible to resize.
        yield np.from_dlpack(data[start : start + BLOCK_SIZE_BYTES].cpu()).data
