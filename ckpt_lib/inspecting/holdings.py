"""Walks through what a checkpoint holds, and adds up its tensors."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY, MODEL_KEY, PAYLOAD_KEYS
from ckpt_lib.foreign import ForeignCheckpoint, StoredObject, StoredTensor
from ckpt_lib.inspecting.results import InspectedState, InspectedTensor

_LEAVES = {str, int, float, bool, type(None), complex, bytes}
"""What most entries of long lists are; nothing is in them."""
_SEQUENCES = (list, tuple)
_WALKED = (dict, list, tuple, StoredTensor, StoredObject, Mapping)
Named = list[tuple[str, StoredTensor]]

_STATES = {key: name for name, key in PAYLOAD_KEYS.items()} | {EXTRA_STATE_KEY: EXTRA_STATE_KEY}


def walk(value: Any, name: str = "") -> Iterator[tuple[str, StoredTensor | StoredObject]]:
    """Yield every tensor and every object of a class with its dotted name, in order; what objects hold, too.

    A container that is there twice, or within itself, is walked through once.
    """
    waiting: list[tuple[str, Any]] = [(name, value)]
    met: set[int] = set()
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, StoredTensor):
            yield name, item
            continue
        entries = _entries(item)
        if entries is None or id(item) in met:
            continue
        met.add(id(item))
        if isinstance(item, StoredObject):
            yield name, item
        before = f"{name}." if name else ""
        waiting += [(f"{before}{key}", entry) for key, entry in reversed(entries) if _is_walked(entry)]


def _entries(item: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(item, dict):
        return [] if _LEAVES.issuperset(map(type, item.values())) else list(item.items())
    if isinstance(item, _SEQUENCES):
        return [] if _LEAVES.issuperset(map(type, item)) else list(enumerate(item))
    if isinstance(item, StoredObject):
        parts = (item.arguments, item.entries, item.state)
        return [entry for part in parts if part is not None for entry in _entries(part) or ()]
    return list(item.items()) if isinstance(item, Mapping) else None


def _is_walked(item: Any) -> bool:
    return type(item) not in _LEAVES and isinstance(item, _WALKED)


def tensors_of(value: Any) -> Named:
    """Return every tensor in a structure with its dotted name, in order."""
    return [(name, item) for name, item in walk(value) if isinstance(item, StoredTensor)]


def classes_in(value: Any) -> tuple[str, ...]:
    """Return the names of the classes that objects in a structure have, each once."""
    return tuple(dict.fromkeys(item.class_name for _, item in walk(value) if isinstance(item, StoredObject)))


def distinct(tensors: Iterable[tuple[str, StoredTensor]]) -> Named:
    """Return the tensors without those that are one of the others under a further name."""
    return list({_identity(tensor): (name, tensor) for name, tensor in reversed(list(tensors))}.values())[::-1]


def _identity(tensor: StoredTensor) -> Hashable:
    return tensor.memory, tensor.dtype, tensor.shape, tensor.offset_bytes


def elements_in(tensors: Iterable[tuple[str, StoredTensor]]) -> int:
    """Return how many elements tensors have."""
    return sum(math.prod(tensor.shape) for _, tensor in tensors)


def bytes_in(tensors: Iterable[tuple[str, StoredTensor]]) -> int:
    """Return how many bytes the elements of tensors take."""
    return sum(tensor.size_bytes for _, tensor in tensors)


def dtype_name(tensor: StoredTensor) -> str:
    """Return a type such as ``float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def bytes_by_dtype(tensors: Named) -> dict[str, int]:
    """Return how many bytes there are of each type, the most first."""
    found: dict[str, int] = {}
    for _, tensor in tensors:
        found[dtype_name(tensor)] = found.get(dtype_name(tensor), 0) + tensor.size_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def model_of(found: ForeignCheckpoint) -> Named:
    """Return the tensors of the model, each once; all there are where the model cannot be told."""
    model = found.payload.get(MODEL_KEY) if found.payload else None
    return distinct(tensors_of(found.contents if model is None else model))


def states_of(found: ForeignCheckpoint) -> tuple[InspectedState, ...]:
    """Return what the checkpoint holds, in the words of this library; in its own where it cannot be loaded."""
    if found.payload is None:
        parts = {str(key): value for key, value in found.contents.items() if tensors_of(value)}
    else:
        parts = {name: found.payload[key] for key, name in _STATES.items() if found.payload.get(key)}
    states = []
    for name, part in parts.items():
        tensors = tensors_of(part)
        once = distinct(tensors)
        states.append(
            InspectedState(name=name, tensors=len(tensors), elements=elements_in(once), size_bytes=bytes_in(once))
        )
    return tuple(states)


def listed_tensors(tensors: Named) -> tuple[InspectedTensor, ...]:
    """Return the tensors as an inspection lists them."""
    first: dict[Hashable, str] = {}
    listed = []
    for name, tensor in tensors:
        owner = first.setdefault(tensor.memory, name)
        listed.append(
            InspectedTensor(
                name=name,
                dtype=dtype_name(tensor),
                shape=tensor.shape,
                size_bytes=tensor.size_bytes,
                shares_memory_with=None if owner == name else owner,
            )
        )
    return tuple(listed)
