"""Limits on what a payload may cost its reader, in every format. A save checks them before it writes.

- Containers may nest only so deep.
- Tensors may look only so much larger than their memory. ``torch.zeros(1).expand(10**9)`` is stored as four bytes, but
  a copy of the loaded tensor takes gigabytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

MAX_LEVELS = 100
"""How deep containers may nest below each entry of a payload."""
MAX_EXPANDED_BYTES = 2**30
"""By how many bytes all tensors of a payload together may exceed the memory that they lie in."""
MAX_INT_BITS = 2_000
"""How long an integer may be. Pickle spells longer ones with an opcode that weights_only loading does not know."""

CONTAINERS = {dict, list, tuple, OrderedDict, set}


def is_deeper(value: Any, levels: int) -> bool:
    """Tell whether containers nest more than ``levels`` deep in ``value``, which must not contain itself."""
    layer = [value] if type(value) in CONTAINERS else []
    for _ in range(levels):
        layer = [part for item in layer for part in containers_in(item)]
    return bool(layer)


def containers_in(item: Any) -> list[Any]:
    """Return the containers that are directly in a container, as keys, values or attributes."""
    return [part for part in _parts(item) if type(part) in CONTAINERS]


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, OrderedDict):
        return [*item.keys(), *item.values(), *vars(item).values()]
    if isinstance(item, dict):
        return [*item.keys(), *item.values()]
    return item if type(item) in CONTAINERS else ()


def extent(size: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements lie between the first and the last that a tensor uses, both included."""
    last = 0
    for length, step in zip(size, stride, strict=True):
        if not length:
            return 0
        last += (length - 1) * step
    return last + 1


def expanded_bytes(size: Sequence[int], stride: Sequence[int], element_bytes: int) -> int:
    """Return by how many bytes a dense copy of a tensor exceeds the memory that the tensor lies in."""
    return max(0, math.prod(size) - extent(size, stride)) * element_bytes
