"""Task classes: how ``submit`` and ``map`` treat configurations and the caller's model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ParamSpec, Self, TypeVar, cast

from prefect import Task, unmapped
from pydantic import BaseModel

from ckpt_lib.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


class CheckpointTask(Task[P, R]):
    """A task whose ``map`` treats a configuration or policy as a single value."""

    def map(self, *args: Any, **kwargs: Any) -> Any:
        # Prefect would map over the fields of a pydantic model, which is iterable.
        return super().map(*map(_as_one, args), **{name: _as_one(value) for name, value in kwargs.items()})

    def with_options(self, **options: Any) -> Self:
        changed = super().with_options(**options)
        changed.__class__ = type(self)  # Prefect returns a plain Task
        return cast(Self, changed)


def _as_one(value: Any) -> Any:
    return unmapped(value) if isinstance(value, BaseModel) else value


class ImmediateTask(CheckpointTask[P, R]):
    """A task that must run on the caller's thread at once, because it reads or writes the caller's model.

    A submitted save would run later and store the weights of that moment; a load in another process would restore
    nothing that the caller sees. Without a model, optimizer or scheduler, ``submit`` and ``map`` are allowed.
    """

    parts: tuple[str, ...] = ("state", "model", "optimizer", "scheduler")
    refusal = "would run later, when the {part} may have changed"
    hint = "To save in the background, call CheckpointManager.save_checkpoint_async: it copies the state at once."

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
    """A task that restores into the caller's model."""

    refusal = "would restore later or in another process, not into the {part} that is being trained"
    hint = "Call the task directly, in the process of the flow."
