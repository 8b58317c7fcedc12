"""Checks that a stored state fits a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

from ckpt_lib.core.wording import listed
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.exactness import changed_values, is_lazy
from ckpt_lib.state.naming import AS_STORED, NamedState, Naming, named_for, nothing_matches
from ckpt_lib.state.stateful import UNCHANGED, is_module, shape_of

Hint = Callable[[], str]
"""Returns what to do about a state that does not fit."""

_LOADING = ("load_state_dict", "_load_from_state_dict", "set_extra_state")
_SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")
_METHODS = (*_LOADING, *_SAVING)


class Fit:
    """A model, and the stored state that it is to take: all that the checks and the load ask of both.

    Each look at a model walks through all of its modules and tensors, so there is one, before anything is loaded.
    """

    def __init__(self, model: Any, current: Any, named: NamedState) -> None:
        self.model = model
        self.named = named
        self.current = current
        """The model's own state."""
        kinds, is_changed = _kinds_of(model)
        is_usual = is_module(model) and isinstance(current, Mapping)
        self.has_own_loading = not is_usual or is_changed or any(map(_has_own_code, kinds))
        """True for hooks and code of loading or saving that are not PyTorch's, and for all that is no module.

        What code of its own returns as the state need not be the names that loading wants, nor the model's memory.
        """
        self.decides_itself = self.has_own_loading or any(map(_loads_itself, kinds))
        """True for a model that may accept other names or shapes than its own."""

    @cached_property
    def uncommon(self) -> Mapping[str, Any]:
        """The model's values but for dense tensors for which a dense one of the same type and shape is stored."""
        state = self.named.state
        return {name: value for name, value in self.current.items() if not _is_alike(value, state.get(name))}

    def is_copied_plainly(self) -> bool:
        """Tell whether loading does nothing but copy each stored tensor into the model's one of the same name."""
        return not (self.decides_itself or self.uncommon or self.current.keys() ^ self.named.state.keys())

    def copy(self) -> None:
        """Copy the stored tensors into a model of which :meth:`is_copied_plainly` is true.

        ``load_state_dict`` does the same and looks for each name in each module, which takes a tenth of a load.
        """
        import torch

        with torch.no_grad():
            for name, value in self.current.items():
                value.copy_(self.named.state[name])

    def release(self) -> None:
        """Let go of the model's own state, for which a sharded model may have gathered all of it."""
        self.current = {}

    def renewed(self) -> Fit:
        """Return the fit of the same state to the model as it is by now."""
        return Fit(self.model, self.model.state_dict(), self.named)

    def may_fail_midway(self) -> bool:
        """Tell whether loading may raise midway: a tensor is not copied as it is, or loading code is not PyTorch's."""
        state = self.named.state
        return (
            self.has_own_loading
            or not all(_is_copied_plainly(value, state[name]) for name, value in self.uncommon.items() if name in state)
            or bool(self.differences())
        )

    def differences(self) -> list[str]:
        """Describe the differences for which PyTorch refuses the state, unless hooks handle them.

        Without ``strict``, names may differ. They are told as they are stored.
        """
        current, state, stored = self.current, self.named.state, self.named.stored_names
        strict = self.named.naming.strict
        missing = sorted(str(name) for name in current.keys() - state.keys() if strict)
        unexpected = sorted(str(stored.get(name, name)) for name in state.keys() - current.keys() if strict)
        shapes = [
            f"{name} {shape_of(state[name])} instead of {shape_of(value)}"
            for name, value in self.uncommon.items()
            if name in state and not is_lazy(value) and shape_of(value) != shape_of(state[name])
        ]
        kinds = (("not stored", missing), ("not in the model", unexpected), ("other shape", shapes))
        return [f"{label}: {listed(names, 5)}" for label, names in kinds if names]


def fit_of(model: Any, stored: Mapping[str, Any], naming: Naming = AS_STORED) -> Fit:
    """Look at a model and the state that is stored for it. Raises :class:`~ckpt_lib.errors.ConfigError` as
    :func:`~ckpt_lib.state.naming.named_for` does.
    """
    current = model.state_dict()
    return Fit(model, current, named_for(model, current, stored, naming))


def check_model(fit: Fit, *, require_exact: bool, hint: Hint) -> list[str]:
    """Refuse a state that PyTorch would refuse, and return the names of tensors whose values will change.

    Raises :class:`StateMismatchError`, for another set of names with ``hint``. Nothing has been changed then.
    """
    current, state = fit.current, fit.named.state
    if not isinstance(current, Mapping):
        return []
    _refuse_meta(fit.uncommon)
    if not fit.decides_itself:
        _refuse_nested(fit.uncommon)
    if _takes_nothing(fit):
        raise nothing_matches(fit.named, hint())
    if not fit.decides_itself:
        refuse_differences(fit, hint)
        _refuse_unwritable({name: value for name, value in fit.uncommon.items() if name in state})
    changed = partial(changed_values, current, state, uncommon=fit.uncommon)
    if require_exact and (differing := changed(exactly=True)):
        raise StateMismatchError(f"the model cannot hold stored values exactly: {listed(differing, 5)}", hint=UNCHANGED)
    return changed(exactly=False)


def refuse_differences(fit: Fit, hint: Hint) -> None:
    """Raise :class:`StateMismatchError` with ``hint`` for other names or shapes than those of the model.

    A model with loading code of its own may take them.
    """
    if not fit.has_own_loading and (found := fit.differences()):
        raise StateMismatchError("the checkpoint does not fit the model: " + "; ".join(found), hint=hint())


def _takes_nothing(fit: Fit) -> bool:
    """Tell whether a load without ``strict`` would restore nothing, unless loading code of the model changes names."""
    if fit.named.naming.strict or fit.has_own_loading:
        return False
    return bool(fit.current) and not fit.current.keys() & fit.named.state.keys()


def _refuse_meta(current: Mapping[str, Any]) -> None:
    if on_meta := [name for name, value in current.items() if getattr(value, "is_meta", False)]:
        raise StateMismatchError(
            f"the model has no memory to restore into: {listed(on_meta, 5)} on the meta device",
            hint=f'Call model.to_empty(device="cpu"), or build the model on a real device. {UNCHANGED}',
        )


def _refuse_unwritable(current: Mapping[str, Any]) -> None:
    """Refuse tensors into which PyTorch copies nothing. It would notice after it has overwritten others."""
    import torch

    tensors = {name: value for name, value in current.items() if isinstance(value, torch.Tensor)}
    inference = torch.is_inference_mode_enabled()
    if found := [name for name, value in tensors.items() if value.is_inference() and not inference]:
        raise StateMismatchError(
            f"tensors of the model cannot be written: {listed(found, 5)} made in inference mode",
            hint=f"Build the model outside torch.inference_mode(). {UNCHANGED}",
        )
    if found := [name for name, value in tensors.items() if is_expanded(value)]:
        raise StateMismatchError(
            f"tensors of the model cannot be written: elements of {listed(found, 5)} share memory, as after expand()",
            hint=f"Give each element its own memory by clone(). {UNCHANGED}",
        )


def is_expanded(tensor: Any) -> bool:
    """Tell whether several elements of a tensor lie in the same memory, as after ``expand()``."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_contiguous():
        return False
    return bool(tensor.numel()) and any(
        size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _is_copied_plainly(value: Any, stored: Any) -> bool:
    """Tell whether copying a stored tensor of the same shape into one of a model surely cannot fail."""
    import torch

    return (
        type(value) is torch.Tensor
        and isinstance(stored, torch.Tensor)
        and value.layout is stored.layout is torch.strided
        and not (value.is_nested or stored.is_nested or value.is_quantized or stored.is_quantized)
        and not (value.is_inference() or is_expanded(value))
    )


def _is_alike(value: Any, stored: Any) -> bool:
    """Tell whether no check has anything to say about a tensor of a model, and about the one that is stored for it."""
    return (
        _is_copied_plainly(value, stored)
        and value.dtype is stored.dtype
        and value.shape == stored.shape
        and not value.is_meta
    )


def _refuse_nested(current: Mapping[str, Any]) -> None:
    import torch

    nested = [
        name
        for name, value in current.items()
        if isinstance(value, torch.Tensor) and value.is_nested and value.layout is torch.strided
    ]
    if nested:
        raise StateMismatchError(
            f"PyTorch loads no strided nested tensor: {listed(nested, 5)}",
            hint=f"Give the module a load_state_dict of its own, or hold the tensors one by one. {UNCHANGED}",
        )


def _kinds_of(model: Any) -> tuple[set[Any], bool]:
    """Return the classes of all modules in a model, and whether one module has hooks or methods of its own."""
    kinds, is_changed = set(), False
    for module in model.modules() if is_module(model) else ():
        kinds.add(type(module))
        is_changed |= bool(module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks)
        is_changed |= bool(module._state_dict_pre_hooks or module._state_dict_hooks)
        is_changed |= any(name in vars(module) for name in _METHODS)
    return kinds, is_changed


def _has_own_code(kind: Any) -> bool:
    """Tell whether loading into objects of a class, or asking for their state, runs code that is not PyTorch's."""
    from torch import nn

    is_torch = kind.__module__.startswith("torch.nn.modules.")
    return not is_torch and any(getattr(kind, name) is not getattr(nn.Module, name) for name in _METHODS)


def _loads_itself(kind: Any) -> bool:
    """Tell whether a class of modules, be it one of PyTorch's, stores or looks for its tensors in a way of its own."""
    from torch import nn

    return (
        kind._load_from_state_dict is not nn.Module._load_from_state_dict
        or kind._save_to_state_dict is not nn.Module._save_to_state_dict
    )
