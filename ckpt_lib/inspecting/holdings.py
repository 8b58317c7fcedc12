"""The tensors and states that a checkpoint holds, added up."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

from ckpt_lib.core.payload_keys import EXTRA_STATE_KEY, MODEL_KEY, PAYLOAD_KEYS
from ckpt_lib.foreign import ForeignCheckpoint, StoredObject, StoredTensor
from ckpt_lib.foreign.modules import is_module
from ckpt_lib.foreign.tree import walk
from ckpt_lib.inspecting.results import InspectedState, InspectedTensor

Named = list[tuple[str, StoredTensor]]

_STATES = {key: name for name, key in PAYLOAD_KEYS.items()} | {EXTRA_STATE_KEY: EXTRA_STATE_KEY}


def tensors_of(value: Any) -> Named:
    """Return every tensor in a structure with its dotted name, in order."""
    return [(name, item) for name, item in walk(value) if isinstance(item, StoredTensor)]


def tensors_and_objects(value: Any) -> tuple[Named, list[StoredObject]]:
    """Return every tensor in a structure with its dotted name, and every object, in order: both of one walk."""
    tensors: Named = []
    objects: list[StoredObject] = []
    for name, item in walk(value):
        if isinstance(item, StoredTensor):
            tensors.append((name, item))
        else:
            objects.append(item)
    return tensors, objects


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


def model_of(found: ForeignCheckpoint, tensors: Named) -> Named:
    """Return the tensors of the model, each once; all ``tensors`` that there are where the model cannot be told."""
    model = found.payload.get(MODEL_KEY) if found.payload else None
    return distinct(tensors if model is None else tensors_of(model))


def parameters_of(model: Named, objects: Iterable[StoredObject]) -> int | None:
    """Return how many elements the parameters of the model have; ``None`` where they cannot be told from buffers.

    A module that was pickled whole says which are which; a state dict names both in the same way.
    """
    parameters: set[Hashable] = set()
    buffers: set[Hashable] = set()
    for item in objects:
        if is_module(item):
            parameters |= {_identity(tensor) for _, tensor in tensors_of(item.state["_parameters"])}
            buffers |= {_identity(tensor) for _, tensor in tensors_of(item.state["_buffers"])}
    if not parameters or not all(_identity(tensor) in parameters | buffers for _, tensor in model):
        return None
    return elements_in((name, tensor) for name, tensor in model if _identity(tensor) in parameters)


def states_of(found: ForeignCheckpoint) -> tuple[InspectedState, ...]:
    """Return what the checkpoint holds, in the words of this library; in its own where it cannot be loaded."""
    if found.payload is None:
        parts = {str(key): tensors for key, value in found.contents.items() if (tensors := tensors_of(value))}
    else:
        parts = {name: tensors_of(found.payload[key]) for key, name in _STATES.items() if found.payload.get(key)}
    states = []
    for name, tensors in parts.items():
        once = distinct(tensors)
        states.append(
            InspectedState(
                name=name, tensor_count=len(tensors), element_count=elements_in(once), size_bytes=bytes_in(once)
            )
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
