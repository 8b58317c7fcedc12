"""Matches a stored optimizer state with the parameters of an optimizer, and keeps the types of its tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ckpt_lib.core.wording import listed
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.exactness import is_held
from ckpt_lib.state.naming import NOTHING, NamedModels, NamedState
from ckpt_lib.state.stateful import UNCHANGED, Names, parameter_names, shape_of

_SHAPED_LIKE_PARAMETERS = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"),
    *("sum", "prev", "step_size", "exp_inf", "ax"),
}
"""The names that PyTorch's optimizers give to state with the shape of its parameter."""

SavedTypes = dict[Any, Any]
"""Maps each parameter's id in the optimizer's state to the type that it was saved with; ``None`` if unknown."""


def match_parameters(
    optimizer: Any,
    state: Mapping[str, Any],
    stored_names: Names | None,
    model: Any,
    named: NamedState | NamedModels = NOTHING,
) -> Mapping[str, Any]:
    """Return the stored state in the order of the optimizer's parameters: by name where both sides have names.

    ``named`` tells for which names of the model the stored ones stand. Raises :class:`StateMismatchError` when the
    parameters do not match.
    """
    groups, own = state.get("param_groups", ()), getattr(optimizer, "param_groups", ())
    sizes = [[len(group.get("params", ())) for group in found] for found in (groups, own)]
    if sizes[0] != sizes[1]:
        raise StateMismatchError(
            "the checkpoint does not fit the optimizer",
            expected=f"parameter groups of {sizes[1]} parameters",
            got=sizes[0],
            hint=f"Build the optimizer as it was when the checkpoint was saved. {UNCHANGED}",
        )
    saved, current = _names_on_both_sides(
        [named.bare_of_stored(names) for names in (_names_in(groups), stored_names) if names],
        [named.bare_of(names) for names in (parameter_names(optimizer, model), _names_in(own)) if names],
        sizes[0],
    )
    if saved != current:
        state = _reordered(state, saved, current)
    state = _with_own_names(state, own)
    _check_shapes(state, own)
    return state


def _names_in(groups: Any) -> Names | None:
    """Return the parameter names in a stored state; an optimizer built from ``named_parameters()`` stores them."""
    if not groups or not all(group.get("param_names") for group in groups):
        return None
    return tuple(tuple(group["param_names"]) for group in groups)


def _names_on_both_sides(saved: list[Names], current: list[Names], sizes: list[int]) -> tuple[Names, Names]:
    """Return the stored and the present names that stand for the same parameters; two empty ones if there are none.

    Where no two do, the first of each are returned.
    """
    pairs = [(one, other) for one in saved for other in current if list(map(len, one)) == sizes]
    same = (pair for pair in pairs if [set(names) for names in pair[0]] == [set(names) for names in pair[1]])
    return next(same, pairs[0] if pairs else ((), ()))


def _with_own_names(state: Mapping[str, Any], own: Any) -> Mapping[str, Any]:
    """Return a state in which an optimizer that has names for its parameters finds them as it has them."""
    stored = state.get("param_groups", ())
    if _names_in(stored) == (names := _names_in(own)) or not _names_in(stored) or names is None:
        return state
    groups = [{**group, "param_names": list(own_names)} for group, own_names in zip(stored, names, strict=True)]
    return {**state, "param_groups": groups}


def _reordered(state: Mapping[str, Any], saved: Names, current: Names) -> dict[str, Any]:
    groups = []
    for number, (group, before, now) in enumerate(zip(state["param_groups"], saved, current, strict=True)):
        if set(before) != set(now):
            raise StateMismatchError(
                f"parameter group {number} of the optimizer holds other parameters",
                expected=listed(sorted(set(now) - set(before)), 5) or "no others",
                got=listed(sorted(set(before) - set(now)), 5) or "no others",
                hint=f"Build the optimizer as it was when the checkpoint was saved. {UNCHANGED}",
            )
        by_name = dict(zip(before, group["params"], strict=True))
        named = {"param_names": list(now)} if "param_names" in group else {}
        groups.append({**group, **named, "params": [by_name[name] for name in now]})
    return {**state, "param_groups": groups}


def _check_shapes(state: Mapping[str, Any], own: Any) -> None:
    """Refuse state of a different shape than its parameter, such as the momentum of another parameter."""
    entries = state.get("state", {})
    for group, current in zip(state.get("param_groups", ()), own, strict=True):
        for parameter_id, parameter in zip(group.get("params", ()), current["params"], strict=True):
            values = entries.get(parameter_id)
            for name, value in values.items() if isinstance(values, Mapping) else ():
                shape = shape_of(value)
                if name in _SHAPED_LIKE_PARAMETERS and shape not in (None, (), shape_of(parameter)):
                    raise StateMismatchError(
                        f"the optimizer's {name} of parameter {parameter_id} has another shape",
                        expected=shape_of(parameter),
                        got=shape,
                        hint="The parameters come in another order, or the model has changed. Save and load with the "
                        f"model, or build the optimizer from named_parameters(). {UNCHANGED}",
                    )


def saved_types(state: Mapping[str, Any], names: Names | None, model_state: Any) -> SavedTypes:
    """Return the type that each of the optimizer's parameters was saved with, by its id in the optimizer's state.

    The stored state of the model has the type under the parameter's name. Without a name, the type is known only if
    all floating-point tensors of the model share it.
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
        for index, parameter_id in enumerate(group["params"]):
            saved[parameter_id] = types.get(known[index] if index < len(known) else None, common)
    return saved


def _tensors_to_load(optimizer: Any, state: Mapping[str, Any]) -> Iterator[tuple[Any, Any, str, Any]]:
    """Yield id, parameter, name and stored value of each tensor whose type PyTorch changes when it loads the state."""
    import torch

    is_standard = isinstance(optimizer, torch.optim.Optimizer) and (
        type(optimizer).load_state_dict is torch.optim.Optimizer.load_state_dict
    )
    for group, current in zip(state["param_groups"], optimizer.param_groups, strict=True) if is_standard else ():
        for parameter_id, parameter in zip(group["params"], current["params"], strict=True):
            entry = state["state"].get(parameter_id)
            for name, value in entry.items() if isinstance(entry, Mapping) else ():
                is_cast = isinstance(value, torch.Tensor) and name != "step" and parameter.is_floating_point()
                if is_cast and value.dtype != parameter.dtype:
                    yield parameter_id, parameter, name, value


def _differs_on_purpose(value: Any, parameter: Any, saved: Any) -> bool:
    """Tell whether a tensor was saved in another type than its parameter, which still has the type that it had then."""
    return bool(saved == parameter.dtype != value.dtype)


def restore_types(optimizer: Any, state: Mapping[str, Any], types: SavedTypes) -> None:
    """Give tensors back the stored type that differed from their parameter's on purpose, such as 8-bit state.

    PyTorch casts state to the type of its parameter. The cast stays where the parameter's type changed since the save.
    """
    for parameter_id, parameter, name, value in _tensors_to_load(optimizer, state):
        if _differs_on_purpose(value, parameter, types.get(parameter_id)):
            loaded = optimizer.state[parameter]
            loaded[name] = value.detach().clone().to(loaded[name].device)


def refuse_rounded_state(optimizer: Any, state: Mapping[str, Any], types: SavedTypes) -> None:
    """Raise :class:`StateMismatchError` for tensors that the optimizer cannot hold exactly."""
    rounded = [
        f"{name} of parameter {parameter_id}"
        for parameter_id, parameter, name, value in _tensors_to_load(optimizer, state)
        if not _differs_on_purpose(value, parameter, types.get(parameter_id)) and not is_held(value, parameter.dtype)
    ]
    if rounded:
        raise StateMismatchError(
            f"the optimizer cannot hold stored values exactly: {listed(rounded, 5)}", hint=UNCHANGED
        )
