"""Walks through what checkpoints hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_lib.foreign.base import StoredObject, StoredTensor

_LEAVES = {str, int, float, bool, type(None), complex, bytes}
"""What most entries of long lists are: nothing is in them, and no such list is walked through."""
_WALKED = (dict, list, tuple, StoredTensor, StoredObject, Mapping)  # the abstract one last: it takes longest to tell


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Yield every tensor in nested containers with its dotted name, in order; not those that objects hold."""
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


def walk(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor | StoredObject]]:
    """Yield every tensor and every object of a class with its dotted name, in order; what objects hold, too.

    A container that is there twice, or within itself, is walked through once.
    """
    waiting: list[tuple[str, Any, Any]] = [("", name, value)]
    met: set[int] = set()
    while waiting:
        before, key, item = waiting.pop()
        if isinstance(item, StoredTensor):
            yield f"{before}{key}", item
            continue
        is_object = isinstance(item, StoredObject)
        entries = [entry for entry in _entries(item) if _is_walked(entry[1])]
        if id(item) in met or not (entries or is_object):  # most containers hold nothing, and need no name
            continue
        met.add(id(item))
        name = f"{before}{key}"
        if is_object:
            yield name, item
        before = f"{name}." if name else ""
        waiting += [(before, key, entry) for key, entry in reversed(entries)]


def _entries(item: Any) -> list[tuple[Any, Any]]:
    if isinstance(item, list | tuple):
        return [] if _LEAVES.issuperset(map(type, item)) else list(enumerate(item))
    if isinstance(item, StoredObject):
        return [entry for part in (item.arguments, item.entries, item.state) for entry in _entries(part)]
    if isinstance(item, Mapping):
        return [] if _LEAVES.issuperset(map(type, item.values())) else list(item.items())
    return []


def _is_walked(item: Any) -> bool:
    return type(item) not in _LEAVES and isinstance(item, _WALKED)


def materialise(value: Any) -> Any:
    """Return nested containers with the tensors themselves; all of them are views of the files where possible.

    One that has several names is read once.
    """
    return _materialise(value, {})


def _materialise(value: Any, tensors: dict[int, Any]) -> Any:
    if isinstance(value, StoredTensor):
        if id(value) not in tensors:
            tensors[id(value)] = value.read()
        return tensors[id(value)]
    if isinstance(value, OrderedDict):  # the state of a module, with the versions of its parts as an attribute
        copied = OrderedDict((key, _materialise(entry, tensors)) for key, entry in value.items())
        vars(copied).update(vars(value))
        return copied
    if isinstance(value, dict):
        return {key: _materialise(entry, tensors) for key, entry in value.items()}
    if isinstance(value, list):
        return [_materialise(entry, tensors) for entry in value]
    return tuple(_materialise(entry, tensors) for entry in value) if type(value) is tuple else value
