"""Undoes a restore that failed: brings models and other objects back to the state that they had before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ckpt_lib.state.exactness import is_lazy
from ckpt_lib.state.model_state import differences, has_own_loading, is_copied_plainly
from ckpt_lib.state.stateful import Stateful, is_module


def way_back(
    kind: str, stateful: Stateful, state: Mapping[str, Any], *, strict: bool = True, is_last: bool = False
) -> Callable[[], object]:
    """Return a function that puts an object back into its present state, after this or a later load has failed.

    ``strict`` is how a model will be loaded. ``is_last`` says that no load follows that may fail: a module of which
    loading cannot fail midway need not be copied then.
    """
    if is_module(stateful):
        is_needed = not is_last or _may_fail_midway(stateful, state, strict)
        return _ModuleBackup(stateful).restore if is_needed else lambda: None
    if kind == "data" and callable(own := getattr(stateful, "way_back", None)):
        found: Callable[[], object] = own()
        return found
    before = stateful.state_dict()
    if kind not in ("optimizer", "scheduler"):  # these replace what they hold as a whole
        before = _copied(before)
    return lambda: stateful.load_state_dict(before)


def _may_fail_midway(model: Any, state: Mapping[str, Any], strict: bool) -> bool:
    """Tell whether loading may raise midway: a tensor cannot be copied as it is, or loading code is not PyTorch's."""
    if _has_own_loading(model):
        return True
    current = model.state_dict()
    is_plain = all(is_copied_plainly(value, state[name]) for name, value in current.items() if name in state)
    return not is_plain or bool(differences(current, state, strict=strict))


def _has_own_loading(stateful: Any) -> bool:
    return not is_module(stateful) or any(map(has_own_loading, stateful.modules()))


class _ModuleBackup:
    """A copy of everything that loading may change in a module: tensors, their identity, and extra state."""

    def __init__(self, model: Any) -> None:
        self._modules = [
            (module, [(store, dict(store)) for store in (module._parameters, module._buffers)], _extra_state(module))
            for module in model.modules()
        ]
        tensors = {
            id(tensor): tensor
            for _, stores, _ in self._modules
            for _, before in stores
            for tensor in before.values()
            if tensor is not None
        }
        self._tensors = [
            (tensor, type(tensor), None if is_lazy(tensor) else tensor.detach().clone()) for tensor in tensors.values()
        ]

    def restore(self) -> None:
        """Bring the module back to the state at construction."""
        import torch

        for module, stores, extra_state in self._modules:
            for store, before in stores:
                store.clear()
                store.update(before)
            if extra_state is not None:
                module.set_extra_state(extra_state[0])
        for tensor, kind, values in self._tensors:
            if values is None:  # a lazy parameter, which loading may have given memory
                tensor.data, tensor.__class__ = torch.empty(0, device=tensor.device, dtype=tensor.dtype), kind
            else:
                with torch.no_grad():
                    tensor.data = values


def _extra_state(module: Any) -> tuple[Any] | None:
    from torch import nn

    if type(module).get_extra_state is nn.Module.get_extra_state:
        return None
    return (copy.deepcopy(module.get_extra_state()),)


def own_copy(stateful: Any, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored state in which an object may keep references, without sharing memory with the payload.

    PyTorch's modules copy tensors, but keep extra state. Any other loading code may keep everything.
    """
    own: Any = copy.copy(stored)  # which keeps its attributes, the versions of the modules
    keeps_all = _has_own_loading(stateful)
    own.update({key: _copied(value) for key, value in stored.items() if keeps_all or str(key).endswith("_extra_state")})
    return own  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    """Return a deep copy of a state. ``deepcopy`` alone refuses sparse and nested tensors."""
    return copy.deepcopy(value, {id(tensor): tensor.detach().clone() for tensor in _sparse_or_nested(value)})


def _sparse_or_nested(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested:
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _sparse_or_nested(item)
