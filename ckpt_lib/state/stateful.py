"""Collects the state of models, optimizers and schedulers for a payload. Tensors pass by reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from ckpt_lib.errors import ConfigError, UnsupportedStateError

PARTS = ("model", "optimizer", "scheduler")
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


def check_wanted(keys: Collection[str] | None, **given: Any) -> None:
    """Raise :class:`ConfigError` unless ``keys`` name the whole state of each object that is given."""
    for part, stateful in given.items():
        if stateful is not None and keys is not None and f"{part}_state_dict" not in keys:
            raise ConfigError(
                f"keys leaves out the state that {part}= needs",
                expected=f"{part}_state_dict among them",
                hint=f"Add it, or leave out {part}= and restore from what is returned.",
            )


def check_parts(*, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> None:
    """Raise :class:`ConfigError` for an object without a state to save, or when there is no model."""
    if model is None:
        raise ConfigError("a checkpoint needs a model", expected="model=<torch.nn.Module>")
    check_stateful("state_dict", model=model, optimizer=optimizer, scheduler=scheduler)


def capture(*, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> dict[str, Any]:
    """Return the ``*_state_dict`` entries of a payload, with ``None`` for each object that is not given.

    Raises :class:`UnsupportedStateError` for a state that is no mapping.
    """
    given = dict(zip(PARTS, (model, optimizer, scheduler), strict=True))
    return {f"{part}_state_dict": None if item is None else _state_of(part, item) for part, item in given.items()}


def _state_of(part: str, stateful: Stateful) -> Mapping[str, Any]:
    state = stateful.state_dict()
    if not isinstance(state, Mapping):  # restore() could not tell it from a part that was not saved
        raise UnsupportedStateError(
            f"state_dict() of the {part} is not a mapping", expected="a dict", got=type(state).__name__
        )
    return state


def kinds_of(**given: Stateful | None) -> dict[str, str]:
    """Return the class of each object that is given, as ``module.ClassName``."""
    kinds = {part: type(stateful) for part, stateful in given.items() if stateful is not None}
    return {part: f"{kind.__module__}.{kind.__qualname__}" for part, kind in kinds.items()}


def parameter_names(optimizer: Any, model: Any) -> Names | None:
    """Return the names of an optimizer's parameters; ``None`` unless each parameter has a unique name.

    They are looked up in ``model``. An optimizer of other parameters knows the names if it was built from
    ``named_parameters()``.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        return None
    known: dict[int, str] = {}
    if callable(getattr(model, "named_parameters", None)):
        known = {id(parameter): name for name, parameter in model.named_parameters()}
    names = tuple(_names_in_group(group, known) for group in groups)
    every = [name for group in names for name in group]
    is_known = all(isinstance(name, str) and name for name in every) and len(set(every)) == len(every)
    return names if is_known else None


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
