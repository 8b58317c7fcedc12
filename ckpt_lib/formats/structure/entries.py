"""Where the bytes of a tensor lie, and which numbers and objects of JSON can describe it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

_MAX_DIMENSIONS = 64  # of a tensor of PyTorch
_LIMIT_64 = 2**63


class Entry(NamedTuple):
    """A tensor in a file, and where its bytes begin and end there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Home(NamedTuple):
    """The file that holds a tensor, and the tensor's type, shape and bytes there."""

    file: str
    entry: Entry


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON as a dict. Raises ``ValueError`` for one that has a key twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def is_shape(numbers: Sequence[Any]) -> bool:
    """Tell whether a tensor can have this shape."""
    return (
        len(numbers) <= _MAX_DIMENSIONS and are_counts(numbers) and math.prod(filter(None, numbers)) < _LIMIT_64 // 16
    )


def are_counts(numbers: Iterable[Any]) -> bool:
    """Tell whether all are whole numbers that can count elements or bytes."""
    for number in numbers:  # noqa: SIM110 - a generator takes twice as long, and files have many tensors
        if type(number) is not int or not 0 <= number < _LIMIT_64:
            return False
    return True
