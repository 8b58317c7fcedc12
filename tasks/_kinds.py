"""The kinds of tasks: what ``submit`` and ``map`` mean for a configuration and for the caller's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ParamSpec, Self, TypeVar, cast

from prefect import Task, unmapped
from pydantic import BaseModel

from ckpt_lib.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


class CheckpointTask(Task[P, R]):
    """A task for which a configuration or a policy is one value, also in ``map``."""

    def map(self, *args: Any, **kwargs: Any) -> Any:
        # Pydantic models are iterable, so Prefect would map over their fields.
        return super().map(*map(_as_one, args), **{name: _as_one(value) for name, value in kwargs.items()})

    def with_options(self, **options: Any) -> Self:
        changed = super().with_options(**options)
        changed.__class__ = type(self)  # Prefect makes a plain task
        return cast(Self, changed)


def _as_one(value: Any) -> Any:
    return unmapped(value) if isinstance(value, BaseModel) else value


class ImmediateTask(CheckpointTask[P, R]):
    """A task that runs when it is called, on the caller's thread, because it reads or writes the caller's model.

    Submitted, it would start later: a save would store the weights of that moment, and in another process a load would
    restore nothing that the caller sees. Where no part of the training is passed, any way to run the task is allowed.
    """

    parts = ("model", "optimizer", "scheduler")
    refusal = "would run later, and not with the {part} as it is now"
    hint = "CheckpointManager.save_checkpoint_async saves in the background, from a copy that it makes at once."

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("submit", kwargs)
        return super().submit(*args, **kwargs)

    def map(self, *args: Any, **kwargs: Any) -> Any:
        self._refuse("map", kwargs)
        return super().map(*args, **kwargs)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:  # type: ignore[override]
        self._refuse("apply_async", kwargs or {})
        return super().apply_async(args, kwargs, **options)

    def _refuse(self, how: str, parameters: Mapping[str, Any]) -> None:
        passed = [part for part in self.parts if parameters.get(part) is not None]
        if passed:
            raise ConfigError(
                f"{self.name}.{how}() {self.refusal.format(part=passed[0])}",
                expected=f"a direct call, {self.name}(...)",
                hint=self.hint,
            )


class RestoringTask(ImmediateTask[P, R]):
    """An immediate task that restores into the caller's model."""

    refusal = "would restore later or in another process, and not into the {part} that training goes on with"
    hint = "Call it in the flow's own process, and go on when it returns."
