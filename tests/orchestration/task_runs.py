"""Runs of tasks in a flow, what the server knows of them, and checkpoints for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from prefect import flow, get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import ObjectNotFound
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager

EXPERIMENT = "run"
SECONDS_TO_WAIT = 30.0


class ByReference(nn.Linear):
    """A model that cannot be copied or pickled without this test failing."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise AssertionError("a model was copied or pickled")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        raise AssertionError("a model was copied")


def task_run(state: State[Any]) -> TaskRun:
    """What the server knows of the task run that ended in this state."""
    assert state.state_details.task_run_id is not None
    return read_task_run(state.state_details.task_run_id)


def read_task_run(task_run_id: UUID) -> TaskRun:
    """The server records task runs from events, a moment after they have ended."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            with suppress(ObjectNotFound):
                run = client.read_task_run(task_run_id)
                if run.state and run.state.is_final():
                    return run
            time.sleep(0.1)
    raise AssertionError(f"the server has not recorded the end of task run {task_run_id}")


def in_flow(call: Callable[[], State[Any]]) -> State[Any]:
    """Run ``call`` in a flow run of its own and return the task's state, which may be a failure."""
    states: list[State[Any]] = []

    @flow
    def around() -> None:
        states.append(call())

    around()
    return states[0]


def payload_file(config: CheckpointConfig, checkpoint_id: str) -> Path:
    return Path(config.checkpoint_dir) / EXPERIMENT / f"{checkpoint_id}.pt"


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def saved(config: CheckpointConfig, epochs: int = 2, *, name: str = EXPERIMENT, **options: Any) -> list[str]:
    """Save some checkpoints without Prefect."""
    manager = CheckpointManager(config, name)
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": 1 / epoch}, **options)
        for epoch in range(1, epochs + 1)
    ]
    return [checkpoint_id for checkpoint_id in ids if checkpoint_id]
