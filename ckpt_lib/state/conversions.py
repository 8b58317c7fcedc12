"""Which values of a state are stored as another type, whatever the format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

Conversion = tuple[str, str, str, int]
"""Place, type as given, type as stored, and how many neighbours are converted alike."""


def conversions(given: Any, stored: Any, place: str = "") -> Iterator[Conversion]:
    """Yield where the types of ``stored`` are not those of ``given``, of which it was made, in the same order.

    What is converted alike in one container is told once: of a list of a million numbers, the first.
    """
    found: dict[tuple[bool, str, str], Conversion] = {}
    entries = list(_entries(given, stored, place))
    for is_key, value, stored_value, at in entries:
        if type(value) is not type(stored_value) and not isinstance(value, torch.Tensor):
            kinds = is_key, _name(value), _name(stored_value)
            first, *_, count = found.get(kinds, (at, "", "", 0))
            found[kinds] = first, *kinds[1:], count + 1
    yield from found.values()
    for _, value, stored_value, at in entries:
        if isinstance(stored_value, dict | list | tuple):
            yield from conversions(value, stored_value, at)


def _entries(given: Any, stored: Any, place: str) -> Iterator[tuple[bool, Any, Any, str]]:
    """Yield each key and value of a container as given and as stored, with its place."""
    if isinstance(stored, dict):
        for (key, value), (stored_key, stored_value) in zip(_fields(given).items(), stored.items(), strict=True):
            yield True, key, stored_key, f"a key of {place}"
            yield False, value, stored_value, f"{place}[{key!r}]" if place else str(key)
    elif isinstance(given, list | tuple):
        for number, (value, stored_value) in enumerate(zip(given, stored, strict=True)):
            yield False, value, stored_value, f"{place}[{number}]"


def _fields(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
