"""``run_step``: any function as a task run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect_checkpoints.tasks._kinds import ImmediateTask
from prefect_checkpoints.tasks._options import checkpoint_task


class StepTask(ImmediateTask[..., Any]):
    """A task whose function belongs to its caller, on whose thread it has to run."""

    parts = ("call",)
    refusal = "would run later or in another process, where the {part} cannot follow"
    hint = "Call the task directly."


@checkpoint_task("{description}", kind=StepTask)
def run_step(description: str, call: Callable[[], Any]) -> Any:  # noqa: ARG001  it is the name of the run
    """Call a function, again if the store did not answer, and return what it returns."""
    return call()
