"""Checks that a stored state fits a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ckpt_lib.core.wording import listed
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.exactness import changed_values, is_lazy
from ckpt_lib.state.naming import NamedState, nothing_matches
from ckpt_lib.state.stateful import UNCHANGED, is_module, shape_of

Hint = Callable[[], str]
"""Returns what to do about a state that does not fit."""


def check_model(model: Any, named: NamedState, *, require_exact: bool, hint: Hint) -> list[str]:
    """Refuse a state that PyTorch would refuse, and return the names of tensors whose values will change.

    Raises :class:`StateMismatchError`, for another set of names with ``hint``. Nothing has been changed then.
    """
    current, state = model.state_dict(), named.state
    if not isinstance(current, Mapping):
        return []
    _refuse_meta(current)
    _refuse_nested(model, current)
    if _takes_nothing(model, current, named):
        raise nothing_matches(named, hint())
    is_checked = is_module(model) and not _decides_itself(model)
    if is_checked:
        refuse_differences(model, named, hint)
        _refuse_unwritable({name: value for name, value in current.items() if name in state})
    if require_exact and (differing := changed_values(current, state, exactly=True)):
        raise StateMismatchError(f"the model cannot hold stored values exactly: {listed(differing, 5)}", hint=UNCHANGED)
    return changed_values(current, state, exactly=False)


def refuse_differences(model: Any, named: NamedState, hint: Hint) -> None:
    """Raise :class:`StateMismatchError` with ``hint`` for other names or shapes than those of the model.

    A model with loading code of its own may take them.
    """
    if not is_module(model) or any(map(has_own_loading, model.modules())):
        return
    if found := differences(model.state_dict(), named.state, named.stored_names, strict=named.naming.strict):
        raise StateMismatchError("the checkpoint does not fit the model: " + "; ".join(found), hint=hint())


def _takes_nothing(model: Any, current: Mapping[str, Any], named: NamedState) -> bool:
    """Tell whether a load without ``strict`` would restore nothing, unless loading code of the model changes names."""
    if named.naming.strict or not is_module(model) or any(map(has_own_loading, model.modules())):
        return False
    return bool(current) and not current.keys() & named.state.keys()


def _decides_itself(model: Any) -> bool:
    """Tell whether the model may accept other names or shapes than its own: by hooks, or by loading code of its own."""
    from torch import nn

    standard = nn.Module._load_from_state_dict
    return any(
        has_own_loading(module) or type(module)._load_from_state_dict is not standard for module in model.modules()
    )


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

    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    return bool(is_strided and tensor.numel()) and any(
        size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def is_copied_plainly(value: Any, stored: Any) -> bool:
    """Tell whether copying a stored tensor of the same shape into one of a model surely cannot fail."""
    import torch

    is_writable = type(value) is torch.Tensor and not (value.is_inference() or is_expanded(value))
    return is_writable and all(
        isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
        for tensor in (value, stored)
    )


def differences(
    current: Mapping[str, Any],
    state: Mapping[str, Any],
    stored_names: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
) -> list[str]:
    """Describe the differences for which PyTorch refuses a state, unless hooks handle them.

    Without ``strict``, names may differ. ``stored_names`` are those of the tensors in ``state``, where they are others.
    """
    stored = stored_names or {}
    missing = sorted(str(name) for name in current.keys() - state.keys() if strict)
    unexpected = sorted(str(stored.get(name, name)) for name in state.keys() - current.keys() if strict)
    shapes = [
        f"{name} {shape_of(state[name])} instead of {shape_of(value)}"
        for name, value in current.items()
        if name in state and not is_lazy(value) and shape_of(value) != shape_of(state[name])
    ]
    kinds = (("not stored", missing), ("not in the model", unexpected), ("other shape", shapes))
    return [f"{label}: {listed(names, 5)}" for label, names in kinds if names]


def _refuse_nested(model: Any, current: Mapping[str, Any]) -> None:
    import torch

    nested = [
        name
        for name, value in current.items()
        if isinstance(value, torch.Tensor) and value.is_nested and value.layout is torch.strided
    ]
    if nested and is_module(model) and not _decides_itself(model):
        raise StateMismatchError(
            f"PyTorch loads no strided nested tensor: {listed(nested, 5)}",
            hint=f"Give the module a load_state_dict of its own, or hold the tensors one by one. {UNCHANGED}",
        )


def has_own_loading(module: Any) -> bool:
    """Tell whether a module has load hooks or loading code that is not PyTorch's."""
    from torch import nn

    own = type(module)
    hooks = (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks)
    is_standard = own.__module__.startswith("torch.nn.modules.")
    return any(hooks) or not (
        is_standard
        or (
            own._load_from_state_dict is nn.Module._load_from_state_dict
            and own.load_state_dict is nn.Module.load_state_dict
            and own.set_extra_state is nn.Module.set_extra_state
        )
    )
