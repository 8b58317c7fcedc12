"""Takes weights out of modules that were pickled whole, by what is stored of them. No class of theirs is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_lib.foreign.base import StoredObject, StoredTensor
from ckpt_lib.foreign.tree import tensors_in, walk

_PARTS = ("_parameters", "_buffers", "_modules")


def is_module(value: Any) -> bool:
    """Tell whether an object is a module as ``torch.nn.Module`` pickles itself."""
    return (
        isinstance(value, StoredObject)
        and isinstance(value.state, Mapping)
        and all(isinstance(value.state.get(part), Mapping) for part in _PARTS)
    )


def weights_of(module: StoredObject) -> dict[str, Any]:
    """Return parameters and persistent buffers by name, as ``state_dict()`` would: tensors, or what stands for one."""
    return dict(_weights(module, ""))


def has_hooks(module: StoredObject) -> bool:
    """Tell whether a module changes its ``state_dict()`` by hooks, which only its own program could run."""
    found = any(module.state.get(name) for name in ("_state_dict_hooks", "_state_dict_pre_hooks"))
    return bool(found) or any(has_hooks(part) for part in module.state["_modules"].values() if is_module(part))


def holds_tensors(value: Any) -> bool:
    """Tell whether a tensor, or an object that may hold one, is in nested containers."""
    return any(True for _ in walk(value))


def weight_bytes(state: Any) -> int:
    """Return how many bytes the tensors in a state have, or in a module."""
    state = weights_of(state) if is_module(state) else state
    return sum(tensor.size_bytes for _, tensor in tensors_in(state))


def _weights(module: StoredObject, before: str) -> Iterator[tuple[str, Any]]:
    state = module.state
    passing = state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for part in ("_parameters", "_buffers"):
        for name, value in state[part].items():
            if value is not None and name not in passing:
                yield f"{before}{name}", value
    for name, value in state["_modules"].items():
        if is_module(value):
            yield from _weights(value, f"{before}{name}.")
        elif value is not None:
            yield f"{before}{name}", value


def unreadable(state: Any) -> list[str]:
    """Name whatever in the state of a model only its own program can read, and of which class each is."""
    found: list[str] = []
    waiting = [("", state)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, StoredObject):
            found.append(f"{name or 'it'} ({item.class_name})")
        elif isinstance(item, Mapping):
            entries = [*item.items(), *getattr(item, "__dict__", {}).items()]
            waiting += [(f"{name}.{key}" if name else str(key), entry) for key, entry in reversed(entries)]
        elif isinstance(item, list | tuple) and not isinstance(item, StoredTensor):
            waiting += [(f"{name}[{number}]", entry) for number, entry in enumerate(item)]
    return found
