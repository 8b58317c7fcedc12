"""Walks through what checkpoints hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from ckpt_lib.foreign.base import StoredTensor


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Yield every tensor in nested containers with its dotted name, in order."""
    waiting = [(name, value)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, StoredTensor):
            yield name, item
            continue
        entries = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list | tuple) else ()
        before = f"{name}." if name else ""
        waiting += [(f"{before}{key}", entry) for key, entry in reversed(list(entries)) if _may_hold(entry)]


def _may_hold(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | StoredTensor)


def materialise(value: Any) -> Any:
    """Return nested containers with the tensors themselves; all of them are views of the files where possible."""
    if isinstance(value, StoredTensor):
        return value.read()
    if isinstance(value, OrderedDict):  # the state of a module, with the versions of its parts as an attribute
        copied = OrderedDict((key, materialise(entry)) for key, entry in value.items())
        vars(copied).update(vars(value))
        return copied
    if isinstance(value, dict):
        return {key: materialise(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [materialise(entry) for entry in value]
    return tuple(map(materialise, value)) if type(value) is tuple else value
