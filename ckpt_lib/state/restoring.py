"""From a verified payload back into models, optimizers and schedulers.

What ``load_state_dict(strict=True)`` of a model takes is taken. An optimizer's state is matched by parameter names
where both sides have them, else by position. Restored state shares no memory with the payload, and an error leaves
everything as it was.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.exactness import changed_values, is_held, is_lazy
from ckpt_lib.state.settings import Changes, Settled, settle_optimizer, settle_scheduler, shown
from ckpt_lib.state.stateful import PARTS, Names, Stateful, check_stateful, parameter_names

logger = logging.getLogger("ckpt_lib")

_SHAPED_LIKE_PARAMETERS = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
    *("sum", "prev", "step_size", "exp_inf", "ax"),
}
"""What the optimizers of PyTorch call state that has the shape of its parameter."""
_UNCHANGED = "Nothing was changed."

SavedTypes = dict[Any, Any]
"""The type that each parameter was saved with, by its place in the optimizer's state; ``None`` where unknown."""


@dataclass(frozen=True)
class Stored:
    """What a manifest says of the objects whose state its payload holds."""

    kinds: Mapping[str, str] = field(default_factory=dict)
    names: Names | None = None


@dataclass
class Restored:
    """What restoring did that a caller may not expect."""

    replaced: dict[str, Changes] = field(default_factory=dict)
    """Part and setting to the caller's value and the stored one that took its place."""
    changed_values: list[str] = field(default_factory=list)
    """Tensors whose stored values the model's own types or ties could not hold."""


def restore(
    payload: Mapping[str, Any],
    stored: Stored = Stored(),
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    keep: Mapping[str, Collection[str]] | None = None,
    require_exact: bool = False,
) -> Restored:
    """Load a payload's state into what was passed, and say what that replaced.

    ``keep`` names settings, by part, of which the caller's value stays, as :mod:`ckpt_lib.state.settings` says. With
    ``require_exact``, a tensor is refused of which any value would differ. Raises :class:`StateMismatchError`, which
    leaves all of it unchanged: a model that has load hooks, or loading code of its own, is copied beforehand for that.
    """
    check_stateful("load_state_dict", model=model, optimizer=optimizer, scheduler=scheduler)
    given = dict(zip(PARTS, (model, optimizer, scheduler), strict=True))
    wanted = {part: owner for part, owner in given.items() if owner is not None}
    states = {part: _state_in(payload, part) for part in wanted}
    _check_kept(keep, wanted)
    report = Restored()
    saved_types: SavedTypes = {}
    if optimizer is not None:
        _check_kind("optimizer", optimizer, stored)
        states["optimizer"] = _matched(optimizer, states["optimizer"], stored.names, model)
        names = parameter_names(optimizer, model) or stored.names
        saved_types = _saved_types(states["optimizer"], names, payload.get("model_state_dict"))
        if require_exact:
            _refuse_rounded_state(optimizer, states["optimizer"], saved_types)
    if scheduler is not None:
        _check_kind("scheduler", scheduler, stored)
    _settle(payload, states, wanted, keep or {}, report)
    if model is not None:
        report.changed_values = _check_model(model, states["model"], require_exact=require_exact)
    _load(wanted, states, saved_types)
    _tell(report)
    return report


def _state_in(payload: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = payload.get(f"{part}_state_dict")
    if not isinstance(found, Mapping):
        raise StateMismatchError(
            f"the checkpoint holds no {part} state",
            hint=f"Leave out {part}=, or load a checkpoint that was saved with it.",
        )
    return found


def _check_kind(part: str, owner: Stateful, stored: Stored) -> None:
    kind, saved = type(owner).__qualname__, stored.kinds.get(part)
    # Modules move, from a script into a package for example; the class has to be of the same name.
    if saved is not None and saved.rpartition(".")[2] != kind.rpartition(".")[2]:
        raise StateMismatchError(
            f"the checkpoint was saved with another kind of {part}",
            expected=kind,
            got=saved,
            hint=f"{_UNCHANGED} To go on with a new {part}, leave out {part}=.",
        )


def _matched(
    optimizer: Any, state: Mapping[str, Any], stored_names: Names | None, model: Stateful | None
) -> Mapping[str, Any]:
    """Return the stored state in the order of the optimizer's own parameters."""
    groups, own = state.get("param_groups", ()), getattr(optimizer, "param_groups", ())
    sizes = [[len(group.get("params", ())) for group in found] for found in (groups, own)]
    if sizes[0] != sizes[1]:
        raise StateMismatchError(
            "the checkpoint does not fit the optimizer",
            expected=f"parameter groups of {sizes[1]} parameters",
            got=sizes[0],
            hint=f"Build the optimizer as it was when the checkpoint was saved. {_UNCHANGED}",
        )
    saved = _names_in(groups) or stored_names
    current = parameter_names(optimizer, model)
    if saved is not None and current is not None and saved != current and list(map(len, saved)) == sizes[0]:
        state = _reordered(state, saved, current)
    _check_shapes(state, own)
    return state


def _names_in(groups: Any) -> Names | None:
    """The names that an optimizer built from named parameters put into its own state."""
    if not groups or not all(group.get("param_names") for group in groups):
        return None
    return tuple(tuple(group["param_names"]) for group in groups)


def _reordered(state: Mapping[str, Any], saved: Names, current: Names) -> dict[str, Any]:
    groups = []
    for number, (group, before, now) in enumerate(zip(state["param_groups"], saved, current, strict=True)):
        if set(before) != set(now):
            raise StateMismatchError(
                f"parameter group {number} of the optimizer holds other parameters",
                expected=_some(sorted(set(now) - set(before))) or "no others",
                got=_some(sorted(set(before) - set(now))) or "no others",
                hint=f"Build the optimizer as it was when the checkpoint was saved. {_UNCHANGED}",
            )
        places = dict(zip(before, group["params"], strict=True))
        named = {"param_names": list(now)} if "param_names" in group else {}
        groups.append({**group, **named, "params": [places[name] for name in now]})
    return {**state, "param_groups": groups}


def _check_shapes(state: Mapping[str, Any], own: Any) -> None:
    """Refuse momentum of one parameter for another one of a different shape."""
    entries = state.get("state", {})
    for group, current in zip(state.get("param_groups", ()), own, strict=True):
        for place, parameter in zip(group.get("params", ()), current["params"], strict=True):
            values = entries.get(place)
            for name, value in values.items() if isinstance(values, Mapping) else ():
                shape = _shape(value)
                if name in _SHAPED_LIKE_PARAMETERS and shape not in (None, (), _shape(parameter)):
                    raise StateMismatchError(
                        f"the optimizer's {name} of parameter {place} has another shape",
                        expected=_shape(parameter),
                        got=shape,
                        hint="The parameters come in another order, or the model has changed. Save and load with the "
                        f"model, or build the optimizer from named_parameters(). {_UNCHANGED}",
                    )


def _settle(
    payload: Mapping[str, Any],
    states: dict[str, Mapping[str, Any]],
    wanted: Mapping[str, Stateful],
    keep: Mapping[str, Collection[str]],
    report: Restored,
) -> None:
    """Put the settings to keep into the states, and note those that the states replace."""
    settled: dict[str, Settled] = {}
    if (owner := wanted.get("optimizer")) is not None:
        schedule = payload.get("scheduler_state_dict")
        settled["optimizer"] = settle_optimizer(owner, states["optimizer"], keep.get("optimizer", ()), schedule)
    if (owner := wanted.get("scheduler")) is not None:
        rates_kept = settled["optimizer"].rates_kept if "optimizer" in settled else ()
        settled["scheduler"] = settle_scheduler(owner, states["scheduler"], keep.get("scheduler", ()), rates_kept)
    for part, result in settled.items():
        states[part] = result.state
        if result.replaced:
            report.replaced[part] = result.replaced


def _check_kept(keep: Mapping[str, Collection[str]] | None, wanted: Collection[str]) -> None:
    for part, names in (keep or {}).items():
        if part not in ("optimizer", "scheduler") or part not in wanted or isinstance(names, str):
            raise ConfigError(
                "keep lists settings of an optimizer or a scheduler that is passed",
                expected='keep={"optimizer": ["lr"]}',
                got=ascii({part: names})[:120],
            )


def _load(wanted: Mapping[str, Stateful], states: Mapping[str, Mapping[str, Any]], saved_types: SavedTypes) -> None:
    """Load each part; what one of them refuses is taken back from all.

    The model comes last: its tensors are overwritten in place, while the state of the others is replaced as a whole,
    so that keeping what they had before costs no memory.
    """
    undo: list[Callable[[], object]] = []
    for part in reversed(list(wanted)):
        owner, state = wanted[part], states[part]
        try:
            undo.append(_way_back(part, owner, state))
            owner.load_state_dict(_own(owner, state))
            if part == "optimizer":
                _keep_types(owner, state, saved_types)
        except Exception as error:
            for back in reversed(undo):
                back()
            raise StateMismatchError(
                f"the {part} refused its stored state: {_reason(error)}", hint=_UNCHANGED
            ) from error


def _way_back(part: str, owner: Stateful, state: Mapping[str, Any]) -> Callable[[], object]:
    """Return what puts an owner back into its present state."""
    if part != "model":
        before = owner.state_dict()
        return lambda: owner.load_state_dict(before)
    if not _may_fail_midway(owner, state):
        return lambda: None
    return _ModuleBackup(owner).restore if _is_module(owner) else _reload(owner)


def _reload(owner: Stateful) -> Callable[[], object]:
    before = _copied(owner.state_dict())
    return lambda: owner.load_state_dict(before)


def _may_fail_midway(model: Any, state: Mapping[str, Any]) -> bool:
    """Whether loading may raise after it has begun: names or shapes differ, or code of others takes part."""
    if not _is_module(model):
        return True
    return bool(_differences(model.state_dict(), state)) or any(map(_has_own_loading, model.modules()))


def _has_own_loading(module: Any) -> bool:
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


class _ModuleBackup:
    """A copy of all that loading may change of a module: its tensors, which objects they are, and extra state."""

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
        self._tensors = [(tensor, type(tensor), _copy_of(tensor)) for tensor in tensors.values()]

    def restore(self) -> None:
        """Put everything back."""
        import torch

        for module, stores, extra_state in self._modules:
            for store, before in stores:
                store.clear()
                store.update(before)
            if extra_state is not None:
                module.set_extra_state(extra_state[0])
        for tensor, kind, values in self._tensors:
            if values is None:  # it had no memory yet, and may have been given some
                tensor.data, tensor.__class__ = torch.empty(0, device=tensor.device, dtype=tensor.dtype), kind
            else:
                with torch.no_grad():
                    tensor.data = values


def _copy_of(tensor: Any) -> Any:
    return None if is_lazy(tensor) else tensor.detach().clone()


def _extra_state(module: Any) -> tuple[Any] | None:
    from torch import nn

    if type(module).get_extra_state is nn.Module.get_extra_state:
        return None
    return (copy.deepcopy(module.get_extra_state()),)


def _own(owner: Any, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an owner may keep: a module copies tensors into its own, but takes extra state over; others take all.

    Loading code of others may keep tensors too, so that it gets copies.
    """
    own: Any = copy.copy(stored)  # with the versions of the modules, which hang on it
    keeps_all = not _is_module(owner) or any(map(_has_own_loading, owner.modules()))
    own.update({key: _copied(value) for key, value in stored.items() if keeps_all or str(key).endswith("_extra_state")})
    return own  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    """Copy a state deeply; ``deepcopy`` alone refuses sparse and nested tensors."""
    return copy.deepcopy(value, {id(tensor): tensor.detach().clone() for tensor in _sparse_or_nested(value)})


def _sparse_or_nested(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested:
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _sparse_or_nested(item)


def _saved_types(state: Mapping[str, Any], names: Names | None, model_state: Any) -> SavedTypes:
    """The types that the optimizer's parameters were saved with, by their place in its state.

    They stand in the stored state of the model, under the parameter's name. Where that does not lead to one, the type
    is known if all that is floating there has the same.
    """
    import torch

    types = {
        name: value.dtype
        for name, value in (model_state if isinstance(model_state, Mapping) else {}).items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    common = next(iter(types.values())) if len(set(types.values())) == 1 else None
    saved: SavedTypes = {}
    for number, group in enumerate(state.get("param_groups", ())):
        known = names[number] if names and number < len(names) else ()
        for index, place in enumerate(group["params"]):
            saved[place] = types.get(known[index] if index < len(known) else None, common)
    return saved


def _tensors_to_load(optimizer: Any, state: Mapping[str, Any]) -> Iterator[tuple[Any, Any, str, Any]]:
    """Yield the place, the parameter, the name and the stored value of each tensor that PyTorch gives another type."""
    import torch

    is_standard = isinstance(optimizer, torch.optim.Optimizer) and (
        type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict
    )
    for group, current in zip(state["param_groups"], optimizer.param_groups, strict=True) if is_standard else ():
        for place, parameter in zip(group["params"], current["params"], strict=True):
            entry = state["state"].get(place)
            for name, value in entry.items() if isinstance(entry, Mapping) else ():
                is_cast = isinstance(value, torch.Tensor) and name != "step" and parameter.is_floating_point()
                if is_cast and value.dtype != parameter.dtype:
                    yield place, parameter, name, value


def _keeps_type(value: Any, parameter: Any, saved: Any) -> bool:
    """Whether a tensor was saved in another type than its parameter on purpose, and the parameter is as it was then."""
    return bool(saved == parameter.dtype != value.dtype)


def _keep_types(optimizer: Any, state: Mapping[str, Any], saved_types: SavedTypes) -> None:
    """Give state its stored type back that differed from its parameter's on purpose, as masters and 8-bit state do.

    PyTorch casts state to the type of its parameter. That stands where the parameter's type has changed since the save.
    """
    for place, parameter, name, value in _tensors_to_load(optimizer, state):
        if _keeps_type(value, parameter, saved_types.get(place)):
            loaded = optimizer.state[parameter]
            loaded[name] = value.detach().clone().to(loaded[name].device)


def _refuse_rounded_state(optimizer: Any, state: Mapping[str, Any], saved_types: SavedTypes) -> None:
    rounded = [
        f"{name} of parameter {place}"
        for place, parameter, name, value in _tensors_to_load(optimizer, state)
        if not _keeps_type(value, parameter, saved_types.get(place)) and not is_held(value, parameter.dtype)
    ]
    if rounded:
        raise StateMismatchError(f"the optimizer cannot hold stored values exactly: {_some(rounded)}", hint=_UNCHANGED)


def _check_model(model: Any, state: Mapping[str, Any], *, require_exact: bool) -> list[str]:
    """Refuse what PyTorch would refuse, before anything changes; return the names whose values will change."""
    current = model.state_dict()
    if not isinstance(current, Mapping):
        return []
    _refuse_meta(current)
    _refuse_nested(model, current)
    if _is_module(model) and not _decides_itself(model) and (differences := _differences(current, state)):
        raise StateMismatchError(
            "the checkpoint does not fit the model: " + "; ".join(differences),
            hint=f"Build the model as it was when the checkpoint was saved. {_UNCHANGED}",
        )
    if require_exact and (differing := changed_values(current, state, exactly=True)):
        raise StateMismatchError(f"the model cannot hold stored values exactly: {_some(differing)}", hint=_UNCHANGED)
    return changed_values(current, state, exactly=False)


def _decides_itself(model: Any) -> bool:
    """Whether other names or shapes than the model's own may load: older versions, hooks, loading code of its own."""
    from torch import nn

    standard = nn.Module._load_from_state_dict
    return any(
        _has_own_loading(module) or type(module)._load_from_state_dict is not standard for module in model.modules()
    )


def _refuse_meta(current: Mapping[str, Any]) -> None:
    if on_meta := [name for name, value in current.items() if getattr(value, "is_meta", False)]:
        raise StateMismatchError(
            f"the model has no memory to restore into: {_some(on_meta)} on the meta device",
            hint=f'Call model.to_empty(device="cpu"), or build the model on a real device. {_UNCHANGED}',
        )


def _differences(current: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """What PyTorch's own strict loading refuses, unless hooks see to it."""
    missing = sorted(str(name) for name in current.keys() - state.keys())
    unexpected = sorted(str(name) for name in state.keys() - current.keys())
    shapes = [
        f"{name} {_shape(state[name])} instead of {_shape(value)}"
        for name, value in current.items()
        if name in state and not is_lazy(value) and _shape(value) != _shape(state[name])
    ]
    kinds = (("not stored", missing), ("not in the model", unexpected), ("other shape", shapes))
    return [f"{label}: {_some(names)}" for label, names in kinds if names]


def _refuse_nested(model: Any, current: Mapping[str, Any]) -> None:
    import torch

    nested = [
        name
        for name, value in current.items()
        if isinstance(value, torch.Tensor) and value.is_nested and value.layout is torch.strided
    ]
    if nested and _is_module(model) and not _decides_itself(model):
        raise StateMismatchError(
            f"PyTorch loads no strided nested tensor: {_some(nested)}",
            hint=f"Give the module a load_state_dict of its own, or hold the tensors one by one. {_UNCHANGED}",
        )


def _tell(report: Restored) -> None:
    for part, changes in report.replaced.items():
        logger.warning(
            "the stored %s replaces settings that were built anew: %s; keep= keeps yours", part, shown(changes)
        )
    if report.changed_values:
        logger.warning("the model cannot hold these stored values exactly: %s", _some(report.changed_values))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _is_module(owner: Any) -> bool:
    from torch.nn import Module  # loaded already, by whoever made the payload

    return isinstance(owner, Module)


def _shape(value: Any) -> tuple[int, ...] | None:
    """``None`` for what has no shape, as strided nested tensors have none."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):
        return None
