"""From models, optimizers and schedulers to payloads and back. Tensors pass by reference both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ckpt_lib.errors import ConfigError, StateMismatchError

_PARTS = ("model", "optimizer", "scheduler")


class Stateful(Protocol):
    """What ``torch.nn.Module``, optimizers and schedulers have in common."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def capture(*, model: Stateful, optimizer: Stateful | None, scheduler: Stateful | None) -> dict[str, Any]:
    """The ``*_state_dict`` part of a payload; ``None`` for what was not given."""
    given = dict(zip(_PARTS, (model, optimizer, scheduler), strict=True))
    for part, owner in given.items():
        if owner is not None and not callable(getattr(owner, "state_dict", None)):
            raise ConfigError(
                f"{part} has no state_dict()",
                expected=f"an object with state_dict(), such as a torch {part}",
                got=type(owner).__name__,
            )
    if model is None:
        raise ConfigError("a checkpoint needs a model", expected="model=<torch.nn.Module>", got=None)
    return {f"{part}_state_dict": None if owner is None else owner.state_dict() for part, owner in given.items()}


def restore(
    payload: Mapping[str, Any],
    *,
    model: Stateful | None = None,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
) -> None:
    """Load a payload's state into what was passed.

    Everything is compared first, so that :class:`StateMismatchError` leaves all of it unchanged.
    """
    given = dict(zip(_PARTS, (model, optimizer, scheduler), strict=True))
    wanted = {part: owner for part, owner in given.items() if owner is not None}
    for part, owner in wanted.items():
        stored = payload.get(f"{part}_state_dict")
        if stored is None:
            raise StateMismatchError(
                f"the checkpoint holds no {part} state",
                hint=f"Leave out {part}=, or load a checkpoint that was saved with it.",
            )
        _CHECKS[part](owner, stored)
    for part, owner in wanted.items():
        try:
            owner.load_state_dict(payload[f"{part}_state_dict"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise StateMismatchError(f"the {part} refused its stored state: {error}") from error


def _check_model(model: Stateful, stored: Mapping[str, Any]) -> None:
    current = model.state_dict()
    missing, unexpected = sorted(current.keys() - stored.keys()), sorted(stored.keys() - current.keys())
    shapes = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(value.shape)}"
        for name, value in current.items()
        if name in stored and getattr(value, "shape", None) != getattr(stored[name], "shape", None)
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
