"""From models, optimizers and schedulers to payloads and back.

Saving passes tensors by reference. Restoring copies them: what is restored shares no memory with the payload.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from ckpt_lib.errors import ConfigError, StateMismatchError, UnsupportedStateError

_PARTS = ("model", "optimizer", "scheduler")


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
    given = dict(zip(_PARTS, (model, optimizer, scheduler), strict=True))
    return {f"{part}_state_dict": None if owner is None else _state_of(part, owner) for part, owner in given.items()}


def _state_of(part: str, owner: Stateful) -> Mapping[str, Any]:
    state = owner.state_dict()
    if not isinstance(state, Mapping):  # restore() could not tell it from a part that was not saved
        raise UnsupportedStateError(
            f"state_dict() of the {part} is not a mapping", expected="a dict", got=type(state).__name__
        )
    return state


def restore(
    payload: Mapping[str, Any],
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
) -> None:
    """Load a payload's state into what was passed.

    Everything is compared first, and what an optimizer or a scheduler refuses nevertheless is taken back, so that
    :class:`StateMismatchError` leaves all of it unchanged.
    """
    check_stateful("load_state_dict", model=model, optimizer=optimizer, scheduler=scheduler)
    given = dict(zip(_PARTS, (model, optimizer, scheduler), strict=True))
    wanted = {part: owner for part, owner in given.items() if owner is not None}
    for part, owner in wanted.items():
        stored = payload.get(f"{part}_state_dict")
        if not isinstance(stored, Mapping):
            raise StateMismatchError(
                f"the checkpoint holds no {part} state",
                hint=f"Leave out {part}=, or load a checkpoint that was saved with it.",
            )
        _CHECKS[part](owner, stored)
    before: list[tuple[Stateful, Any]] = []
    # The model last: its tensors are overwritten in place, while the state of the others is replaced as a whole, so
    # that keeping what they had before costs no memory.
    for part in reversed(wanted):
        owner = wanted[part]
        needed = _hyperparameters(owner)
        if part != "model":
            before.append((owner, owner.state_dict()))
        try:
            owner.load_state_dict(_own(owner, payload[f"{part}_state_dict"]))
            _check_hyperparameters(owner, needed)
        except Exception as error:
            for changed, state in before:
                changed.load_state_dict(state)
            raise StateMismatchError(f"the {part} refused its stored state: {_reason(error)}") from error


def _own(owner: Stateful, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an owner may keep: a module copies tensors into its own, but takes extra state over; others take all."""
    from torch.nn import Module  # loaded already, by whoever made the payload

    if not isinstance(owner, Module):
        return copy.deepcopy(stored)
    own: Any = copy.copy(stored)  # with the versions of the modules, which hang on it
    own.update({key: copy.deepcopy(value) for key, value in stored.items() if key.endswith("_extra_state")})
    return own  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _hyperparameters(owner: Stateful) -> set[str]:
    """What each parameter group of an optimizer needs; schedulers add more to it, which it does not."""
    groups = getattr(owner, "param_groups", ())
    return {name for group in groups for name in group if name in getattr(owner, "defaults", ())}


def _check_hyperparameters(owner: Stateful, needed: set[str]) -> None:
    """An optimizer takes the hyperparameters of any other kind, and fails at its next step only."""
    for group in getattr(owner, "param_groups", ()):
        if missing := sorted(needed - group.keys()):
            raise ValueError(f"it was saved by another kind of optimizer, without {', '.join(missing)}")


def _check_model(model: Stateful, stored: Mapping[str, Any]) -> None:
    current = model.state_dict()
    missing = sorted(str(name) for name in current.keys() - stored.keys())
    unexpected = sorted(str(name) for name in stored.keys() - current.keys())
    shapes = [
        f"{name} {_shape(stored[name])} instead of {_shape(value)}"
        for name, value in current.items()
        if name in stored and not _is_lazy(value) and _shape(value) != _shape(stored[name])
    ]
    differences = [
        f"{label}: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        for label, names in (("not stored", missing), ("not in the model", unexpected), ("other shape", shapes))
        if names
    ]
    if differences:
        raise StateMismatchError(
            "the checkpoint does not fit the model: " + "; ".join(differences),
            hint="Build the model as it was when the checkpoint was saved. Nothing was changed.",
        )


def _is_lazy(value: Any) -> bool:
    """Whether it is a parameter that takes its shape from what is loaded; asking it for one is an error."""
    from torch.nn.parameter import is_lazy  # loaded already: only a torch model has such

    return bool(is_lazy(value))


def _shape(value: Any) -> tuple[int, ...] | None:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)


def _check_optimizer(optimizer: Stateful, stored: Mapping[str, Any]) -> None:
    current = optimizer.state_dict()
    sizes = [[len(group.get("params", ())) for group in state.get("param_groups", ())] for state in (stored, current)]
    if sizes[0] != sizes[1]:
        raise StateMismatchError(
            "the checkpoint does not fit the optimizer",
            expected=f"parameter groups of {sizes[1]} parameters",
            got=sizes[0],
            hint="Build the optimizer as it was when the checkpoint was saved. Nothing was changed.",
        )


def _check_scheduler(scheduler: Stateful, stored: Mapping[str, Any]) -> None:
    """Schedulers have no shape that could be compared."""


_CHECKS = {"model": _check_model, "optimizer": _check_optimizer, "scheduler": _check_scheduler}
