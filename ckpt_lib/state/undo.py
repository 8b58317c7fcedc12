"""Undoes a restore that failed: brings models and other objects back to the state that they had before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.exactness import is_lazy
from ckpt_lib.state.model_state import Fit
from ckpt_lib.state.stateful import Stateful, is_module

Back = Callable[[], object]
"""Brings one object back into an earlier state."""


class Undo:
    """The ways back of what a restore may have changed so far."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Back]] = []

    def add(self, label: str, back: Back) -> None:
        self._steps.append((label, back))

    def run(self) -> dict[str, BaseException]:
        """Try each step, the last one first; return what could not be brought back, and why."""
        failed: dict[str, BaseException] = {}
        for label, back in reversed(self._steps):
            try:
                back()
            except BaseException as error:  # also Ctrl-C: the other steps matter no less
                failed[label] = error
        return failed


def way_back(kind: str, stateful: Stateful, fit: Fit | None, *, is_last: bool = False) -> Back:
    """Return a function that puts an object back into its present state, after this or a later load has failed.

    ``is_last`` says that no load follows that may fail: a module of which, as ``fit`` says, loading cannot fail midway
    is not copied then. Its way back raises, and only an interrupt takes it.
    The function raises where the state is not what it was before.
    """
    if is_module(stateful):
        is_needed = not is_last or fit is None or fit.may_fail_midway()
        return _ModuleBackup(stateful).restore if is_needed else _not_copied
    if kind == "data":
        own = getattr(stateful, "way_back", None)
        found: Back = own() if callable(own) else partial(stateful.load_state_dict, _copied(stateful.state_dict()))
        return found
    if kind == "optimizer" and _replaces_what_it_holds(stateful):
        # Not by its load_state_dict(), which casts the state to the types of the parameters.
        held = {name: vars(stateful)[name] for name in ("state", "param_groups")}
        return lambda: vars(stateful).update(held)
    before = stateful.state_dict()
    if kind != "scheduler" or not _is_of_torch(stateful, "load_state_dict"):  # PyTorch's replace what they hold
        before = _copied(before)
    return partial(_bring_back, stateful.load_state_dict, stateful.state_dict, before)


def _replaces_what_it_holds(optimizer: Any) -> bool:
    """Tell whether loading leaves alone what an optimizer holds now, and puts new objects in its place."""
    import torch

    hooks = ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks")
    return (
        isinstance(optimizer, torch.optim.Optimizer)
        and type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict
        and _is_of_torch(optimizer, "__setstate__")
        and not any(getattr(optimizer, name, None) for name in hooks)
    )


def _is_of_torch(item: Any, method: str) -> bool:
    return str(getattr(getattr(type(item), method, None), "__module__", "")).startswith("torch.")


def _bring_back(load: Callable[[Any], object], current: Callable[[], Any], before: Any) -> None:
    """Load an earlier state; raise unless the state then is what it was, also where loading is always refused."""
    from ckpt_lib.state.sameness import first_difference

    refused: Exception | None = None
    try:
        load(copy.copy(before))
    except Exception as error:
        refused = error
    if place := first_difference(current(), before, "its state"):
        raise refused or StateMismatchError(f"{place} is not what it was")


def _not_copied() -> None:
    raise StateMismatchError("its weights were being overwritten, and no copy of them was made")


class _ModuleBackup:
    """A copy of everything that loading may change in a module: tensors, their identity, and extra state."""

    def __init__(self, model: Any) -> None:
        self._undo = Undo()
        modules = dict(model.named_modules())
        stores = [store for module in modules.values() for store in (module._parameters, module._buffers)]
        tensors = {id(tensor): tensor for store in stores for tensor in store.values() if tensor is not None}
        for tensor in tensors.values():
            self._undo.add("tensors", _way_back_of_tensor(tensor))
        for name, module in modules.items():
            if (extra_state := _extra_state(module)) is not None:
                load, current = module.set_extra_state, module.get_extra_state
                self._undo.add(f"the extra state of {name}", partial(_bring_back, load, current, extra_state[0]))
        for store in stores:
            self._undo.add("tensors", partial(_refill, store, dict(store)))

    def restore(self) -> None:
        """Bring the module back to the state at construction; raise the first error once all else is back."""
        for error in self._undo.run().values():
            raise error


def _refill(store: dict[str, Any], before: Mapping[str, Any]) -> None:
    store.clear()
    store.update(before)


def _way_back_of_tensor(tensor: Any) -> Back:
    """Return what brings values back in place: others may hold the same memory, such as tied weights."""
    import torch

    if is_lazy(tensor):  # loading may give it memory
        return partial(_make_lazy, tensor, type(tensor))
    same_memory = tensor.detach()
    values = same_memory.clone()
    if tensor.layout is not torch.strided or tensor.is_nested:  # several tensors, which a copy replaces
        return partial(_set_data, tensor, values)
    return partial(_set_values, tensor, same_memory, values)


def _make_lazy(tensor: Any, kind: type) -> None:
    import torch

    tensor.data, tensor.__class__ = torch.empty(0, device=tensor.device, dtype=tensor.dtype), kind


def _set_data(tensor: Any, values: Any) -> None:
    import torch

    with torch.no_grad():
        tensor.data = values


def _set_values(tensor: Any, same_memory: Any, values: Any) -> None:
    import torch

    if same_memory.numel() and same_memory.untyped_storage().nbytes() == 0:  # loading has freed it
        return _set_data(tensor, values)
    _set_data(tensor, same_memory)
    for dim, stride in enumerate(same_memory.stride() if same_memory.numel() else ()):
        if stride == 0:  # the elements of an expanded tensor share memory, which is written once
            same_memory, values = same_memory.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    with torch.inference_mode(same_memory.is_inference()), torch.no_grad():
        same_memory.copy_(values)
    return None


def _extra_state(module: Any) -> tuple[Any] | None:
    from torch import nn

    if type(module).get_extra_state is nn.Module.get_extra_state:
        return None
    return (copy.deepcopy(module.get_extra_state()),)


def own_copy(fit: Fit | None, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored state in which an object may keep references, without sharing memory with the payload.

    ``fit`` is that of a module. PyTorch's modules copy tensors, but keep extra state. Any other loading code may keep
    everything.
    """
    own: Any = copy.copy(stored)  # which keeps its attributes, the versions of the modules
    keeps_all = fit is None or fit.has_own_loading
    own.update({key: _copied(value) for key, value in stored.items() if keeps_all or str(key).endswith("_extra_state")})
    return own  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    """Return a deep copy of a state. ``deepcopy`` alone refuses sparse and nested tensors."""
    import torch

    from ckpt_lib.state.tree import tensors_in

    odd = [tensor for tensor in tensors_in(value) if tensor.layout is not torch.strided or tensor.is_nested]
    return copy.deepcopy(value, {id(tensor): tensor.detach().clone() for tensor in odd})
