"""From models, optimizers and schedulers to payloads, and what a manifest says of them. Tensors pass by reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from ckpt_lib.errors import ConfigError, UnsupportedStateError

PARTS = ("model", "optimizer", "scheduler")
MAX_NAMES_BYTES = 2**20
"""Longer lists of parameter names stay out of the manifest, and the optimizer's state is matched by position."""

Names = tuple[tuple[str, ...], ...]
"""The names of an optimizer's parameters, group by group."""


class Stateful(Protocol):
    """What ``torch.nn.Module``, optimizers and schedulers have in common."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def check_stateful(method: str, **owners: Any) -> None:
    """Raise :class:`ConfigError` unless each owner that is given has ``method``."""
    for part, owner in owners.items():
        if owner is not None and not callable(getattr(owner, method, None)):
            raise ConfigError(
                f"{part} has no {method}()",
                expected=f"an object with {method}(), such as a torch {part}",
                got=type(owner).__name__,
            )


def check_wanted(keys: Collection[str] | None, **owners: Any) -> None:
    """Raise :class:`ConfigError` unless ``keys`` name the whole state of each owner that is given."""
    for part, owner in owners.items():
        if owner is not None and keys is not None and f"{part}_state_dict" not in keys:
            raise ConfigError(
                f"keys leaves out the state that {part}= needs",
                expected=f"{part}_state_dict among them",
                hint=f"Add it, or leave out {part}= and restore from what is returned.",
            )


def check_parts(*, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> None:
    """Raise :class:`ConfigError` for what has no state that could be saved."""
    if model is None:
        raise ConfigError("a checkpoint needs a model", expected="model=<torch.nn.Module>")
    check_stateful("state_dict", model=model, optimizer=optimizer, scheduler=scheduler)


def capture(*, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> dict[str, Any]:
    """The ``*_state_dict`` part of a payload; ``None`` for what was not given."""
    given = dict(zip(PARTS, (model, optimizer, scheduler), strict=True))
    return {f"{part}_state_dict": None if owner is None else _state_of(part, owner) for part, owner in given.items()}


def _state_of(part: str, owner: Stateful) -> Mapping[str, Any]:
    state = owner.state_dict()
    if not isinstance(state, Mapping):  # restore() could not tell it from a part that was not saved
        raise UnsupportedStateError(
            f"state_dict() of the {part} is not a mapping", expected="a dict", got=type(state).__name__
        )
    return state


def kinds_of(**owners: Stateful | None) -> dict[str, str]:
    """Return the class of each part that is given, as ``module.ClassName``."""
    given = {part: type(owner) for part, owner in owners.items() if owner is not None}
    return {part: f"{kind.__module__}.{kind.__qualname__}" for part, kind in given.items()}


def parameter_names(optimizer: Any, model: Any) -> Names | None:
    """Return the names of an optimizer's parameters; ``None`` when one has none or two have the same.

    An optimizer built from ``named_parameters()`` knows them. Else they are those of the same parameters in ``model``.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        return None
    known: dict[int, str] = {}
    if callable(getattr(model, "named_parameters", None)):
        known = {id(parameter): name for name, parameter in model.named_parameters()}
    names = tuple(
        tuple(group.get("param_names") or (known.get(id(parameter), "") for parameter in group["params"]))
        for group in groups
    )
    every = [name for group in names for name in group]
    is_known = all(isinstance(name, str) and name for name in every) and len(set(every)) == len(every)
    return names if is_known else None
