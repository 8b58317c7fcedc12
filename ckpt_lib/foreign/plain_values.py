"""Plain values out of what checkpoints hold: what is no plain value and no tensor is left out by name."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ckpt_lib.foreign.base import StoredObject, StoredTensor

_LEAVES = (str, int, float, bool, type(None), complex, bytes, bytearray, torch.dtype, torch.device, torch.Size)
_NAMESPACES = ("argparse.Namespace", "types.SimpleNamespace")
_PLAIN = {str, int, float, bool, type(None)}
"""What most entries of long lists are: no place has to be named for them."""
REFUSED = object()
"""Stands for a value that is not plain, whose place was noted."""


class PlainConverter:
    """Converts values and collects the places of those that are not plain.

    For a configuration, an object of any class counts as a dict of its attributes, and a tensor is not plain.
    """

    def __init__(self, *, is_config: bool = False) -> None:
        self.refused: list[str] = []
        self.has_tensors = False
        self._is_config = is_config

    def plain(self, value: Any, place: str) -> Any:
        """Return the value as nested dicts, lists, tuples, sets, plain values and tensors; or :data:`REFUSED`."""
        if isinstance(value, _LEAVES):
            return value
        for kind, convert in _CONVERSIONS:
            if isinstance(value, kind):
                return convert(self, value, place)
        return self._refuse(place, type(value).__name__)

    def _tensor(self, value: StoredTensor, place: str) -> Any:
        self.has_tensors = True
        return self._refuse(place, "a tensor") if self._is_config else value

    def _set(self, value: set[Any], place: str) -> Any:
        return value if all(isinstance(item, _LEAVES) for item in value) else self._refuse(place, "a set of objects")

    def _sequence(self, value: list[Any] | tuple[Any, ...], place: str) -> Any:
        if _PLAIN.issuperset(map(type, value)):
            return type(value)(value)
        items = [self.plain(item, f"{place}[{number}]") for number, item in enumerate(value)]
        return REFUSED if any(item is REFUSED for item in items) else type(value)(items)

    def _dict(self, value: Mapping[Any, Any], place: str) -> dict[Any, Any]:
        converted: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        for key, entry in value.items():
            if not isinstance(key, _LEAVES):
                self._refuse(f"{place}.<key>", getattr(key, "class_name", type(key).__name__))
            elif (found := self.plain(entry, f"{place}.{key!s}" if place else str(key))) is not REFUSED:
                converted[key] = found
        if isinstance(value, OrderedDict):
            vars(converted).update(vars(value))
        return converted

    def _object(self, value: StoredObject, place: str) -> Any:
        fields = fields_of(value, attributes=self._is_config)
        if fields is not None:
            return self._dict(fields, place)
        if isinstance(value.entries, list) and value.state is None and not value.arguments:
            return self.plain(value.entries, place)
        return self._refuse(place, value.class_name)  # a member of an enum too: without code, it looks like any call

    def _refuse(self, place: str, kind: str) -> Any:
        self.refused.append(f"{place} ({kind})")
        return REFUSED


_CONVERSIONS: tuple[tuple[type | tuple[type, ...], Callable[[PlainConverter, Any, str], Any]], ...] = (
    (StoredTensor, PlainConverter._tensor),
    (StoredObject, PlainConverter._object),
    (Mapping, PlainConverter._dict),
    (set, PlainConverter._set),
    ((list, tuple), PlainConverter._sequence),
)


def fields_of(value: StoredObject, *, attributes: bool) -> Mapping[Any, Any] | None:
    """Return the fields of a namespace, or the entries of an object that is a dict; ``None`` for another object.

    With ``attributes``, return those of any object that was made without arguments.
    """
    if isinstance(value.entries, Mapping) and not value.arguments and not isinstance(value.state, list | tuple):
        return value.entries
    is_open = value.class_name in _NAMESPACES or value.class_name.endswith("Namespace")
    is_open = is_open or (attributes and not value.class_name.startswith("omegaconf."))
    return value.state if is_open and not value.arguments and isinstance(value.state, Mapping) else None
