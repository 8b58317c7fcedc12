"""How much larger than its memory a tensor may look.

``torch.zeros(1).expand(10**9)`` takes four bytes, and is stored as four; who copies what was loaded needs gigabytes.
States have a few such tensors, and small ones. So there is a limit, which a save is told of before it writes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

MAX_EXPANDED_BYTES = 2**30
"""What all tensors of a payload together may be larger than the memory that they lie in."""


def extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """How many elements lie from the first to the last that a tensor uses."""
    last = 0
    for length, step in zip(size, stride, strict=True):
        if not length:
            return 0
        last += (length - 1) * step
    return last + 1


def expanded_bytes(size: Sequence[int], stride: Sequence[int], element_bytes: int) -> int:
    """How many bytes a copy of a tensor takes beyond those that it lies in."""
    return max(0, math.prod(size) - extent(size, stride)) * element_bytes
