"""Tied tensors of which a stored state has only one, as the libraries of Hugging Face and safetensors store them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any


def with_tied(state: Mapping[str, Any], current: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state with each name it lacks for which the model has the same memory as for one that it has.

    Loading that one sets the other, so that nothing is missing. ``current`` is the state of the model as it is.
    """
    missing = [name for name in current if name not in state]
    if not missing:
        return state
    stored = {place: name for name in current if name in state and (place := _place(current[name])) is not None}
    tied = {name: stored[place] for name in missing if (place := _place(current[name])) in stored}
    if not tied:
        return state
    found: OrderedDict[str, Any] = OrderedDict(state)
    vars(found).update(getattr(state, "__dict__", {}))  # the versions of modules
    found.update({name: state[first] for name, first in tied.items()})
    return found


def _place(value: Any) -> tuple[Any, ...] | None:
    """Return what is equal for tensors with the same elements in the same memory; ``None`` for one without memory."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_meta or value.layout is not torch.strided or value.is_nested:
        return None
    if torch.nn.parameter.is_lazy(value) or not value.numel():
        return None
    return value.data_ptr(), value.shape, value.stride(), value.dtype, value.device
