"""Limits on what a payload may cost its reader, which a save checks before it writes.

- The structure may take only so many bytes and unpickling steps, nest only so deep and repeat itself only so often.
- Tensors may look only so much larger than their memory. ``torch.zeros(1).expand(10**9)`` is stored as four bytes, but
  a copy of the loaded tensor takes gigabytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from ckpt_lib.errors import UnsafePayloadError

MAX_LEVELS = 100
"""How deep containers may nest below each entry of a payload."""
MAX_EXPANDED_BYTES = 2**30
"""By how many bytes all tensors of a payload together may exceed the memory that they lie in."""

_STRUCTURE_BYTES, _BYTES_A_RECORD = 64 * 2**20, 400
_STEPS_ALLOWED, _STEPS_A_RECORD = 4_000_000, 200
# How much longer a structure may become when every shared part is written out in full.
_MAX_SHARED_FACTOR, _MAX_UNSHARED = 16, 1_000_000

CONTAINERS = {dict, list, tuple, OrderedDict, set}


def unsafe(reason: str) -> UnsafePayloadError:
    """Return the error for a payload that would cost too much, or run code, when it is read."""
    return needs_trust(f"the payload was not read: {reason}")


def needs_trust(message: str) -> UnsafePayloadError:
    """Return the error for a payload that is read only on request."""
    return UnsafePayloadError(
        message,
        hint="If you trust whoever wrote it, load it with trust_pickle=True, which may run code stored in it.",
    )


def max_structure_bytes(records: int) -> int:
    """Return how many bytes the pickle of a payload with this many records may take."""
    return _STRUCTURE_BYTES + _BYTES_A_RECORD * records


def max_steps(records: int) -> int:
    """Return how many opcodes the pickle of a payload with this many records may execute.

    Each opcode builds up to 80 bytes; a list of thousands of numbers counts as one. A tensor takes about forty and
    usually has a record of its own, so the limit grows with the number of tensors.
    """
    return _STEPS_ALLOWED + _STEPS_A_RECORD * records


def is_deeper(value: Any, levels: int) -> bool:
    """Tell whether containers nest more than ``levels`` deep in ``value``, which must not contain itself."""
    layer = [value] if type(value) in CONTAINERS else []
    for _ in range(levels):
        layer = [part for item in layer for part in _containers_in(item)]
    return bool(layer)


def check_sharing(loaded: Any) -> None:
    """Refuse a structure that contains itself, or that shares parts so often that walking through it takes too long.

    Raises :class:`~ckpt_lib.errors.UnsafePayloadError`.
    """
    sizes: dict[int, int] = {}  # of each container when every shared part is counted again; -1 while it is open
    waiting: list[tuple[Any, bool]] = [(loaded, False)]
    while waiting:
        item, is_done = waiting.pop()
        parts = _containers_in(item)
        if is_done:
            sizes[id(item)] = 1 + sum(sizes[id(part)] for part in parts)
        elif id(item) not in sizes:
            sizes[id(item)] = -1
            waiting.append((item, True))
            waiting += [(part, False) for part in parts if id(part) not in sizes]
            if any(sizes.get(id(part)) == -1 for part in parts):
                raise unsafe("a container in it contains itself")
    if sizes[id(loaded)] > _MAX_UNSHARED + _MAX_SHARED_FACTOR * len(sizes):
        raise unsafe("its structure repeats itself without end")


def _containers_in(item: Any) -> list[Any]:
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
