"""Walks through the nested containers of a payload."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

_NUMBERS = {int, float, bool}


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return every tensor in nested dicts, lists, tuples and sets."""
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
        if type(item) not in _NUMBERS:  # lists of numbers may be long
            _add_tensors(item, found)


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Rebuild the dicts, lists and tuples of ``value``, and apply ``change`` to everything else."""
    kind = type(value)
    if kind is dict:
        return {key: map_leaves(item, change) for key, item in value.items()}
    if kind is OrderedDict:
        ordered = OrderedDict((key, map_leaves(item, change)) for key, item in value.items())
        ordered.__dict__.update(map_leaves(value.__dict__, change))  # where state_dict() keeps the modules' versions
        return ordered
    if kind is list or kind is tuple:
        return kind([map_leaves(item, change) for item in value])
    return change(value)
