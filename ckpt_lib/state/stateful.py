"""Collects the state of models, optimizers and schedulers for a payload. Tensors pass by reference."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from ckpt_lib.errors import ConfigError, UnsupportedStateError

MAX_NAMES_BYTES = 2**20
"""Longer lists of parameter names are left out of the manifest. Restoring then matches parameters by position."""

Names = tuple[tuple[str, ...], ...]
"""The names of an optimizer's parameters, group by group."""
UNCHANGED = "Nothing was changed."
"""The end of the hint of every error that leaves models and optimizers as they were."""


class Stateful(Protocol):
    """The methods that ``torch.nn.Module``, optimizers and schedulers share."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def check_stateful(method: str, **given: Any) -> None:
    """Raise :class:`ConfigError` unless each object that is given has ``method``."""
    for part, stateful in given.items():
        if stateful is not None and not callable(getattr(stateful, method, None)):
            raise ConfigError(
                f"{part} has no {method}()",
                expected=f"an object with {method}(), such as a torch {part}",
                got=type(stateful).__name__,
            )


def check_wanted(keys: Collection[str] | None, wanted: Mapping[str, str]) -> None:
    """Raise :class:`ConfigError` unless ``keys`` name the whole state of each object, given as label and its key."""
    for label, key in wanted.items():
        if keys is not None and key not in keys:
            raise ConfigError(
                f"keys leaves out the state that {label}= needs",
                expected=f"{key} among them",
                hint=f"Add it, or leave out {label}= and restore from what is returned.",
            )


def state_of(label: str, stateful: Stateful) -> Any:
    """Return an object's state. Raises :class:`UnsupportedStateError` for a state that is no mapping."""
    state = stateful.state_dict()
    if not isinstance(state, Mapping):  # restore() could not tell it from a part that was not saved
        raise UnsupportedStateError(
            f"state_dict() of the {label} is not a mapping", expected="a dict", got=type(state).__name__
        )
    return state


def kind_of(stateful: Stateful) -> str:
    """Return the class of an object, as ``module.ClassName``."""
    return f"{type(stateful).__module__}.{type(stateful).__qualname__}"


def parameter_names(optimizer: Any, model: Any) -> Names | None:
    """Return the names of an optimizer's parameters; ``None`` unless each parameter has a unique name.

    They are looked up in ``model``, or in each of several. An optimizer of other parameters knows the names if it was
    built from ``named_parameters()``.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        return None
    known = dict(_named_parameters(model))
    names = tuple(_names_in_group(group, known) for group in groups)
    every = [name for group in names for name in group]
    is_known = all(isinstance(name, str) and name for name in every) and len(set(every)) == len(every)
    return names if is_known else None


def _named_parameters(model: Any) -> Iterator[tuple[int, str]]:
    """Yield the identity and the name of each parameter, which begins with the name of its model where it has one."""
    models = model.items() if isinstance(model, Mapping) else [("", model)]
    for prefix, item in models:
        if callable(getattr(item, "named_parameters", None)):
            for name, parameter in item.named_parameters():
                yield id(parameter), f"{prefix}.{name}" if prefix else name


def _names_in_group(group: Mapping[str, Any], known: Mapping[int, str]) -> tuple[str, ...]:
    names = tuple(known.get(id(parameter), "") for parameter in group["params"])
    return names if all(names) else tuple(group.get("param_names") or names)


def is_module(stateful: Any) -> bool:
    """Tell whether an object is a ``torch.nn.Module``."""
    from torch.nn import Module

    return isinstance(stateful, Module)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of a value; ``None`` if it has none, as a strided nested tensor."""
    try:
        return tuple(value.shape)
    except (AttributeError, RuntimeError):
        return None
