"""Runs of tasks and flows, what the server knows of them, and checkpoints for them, whole and damaged."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from prefect import flow, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, State, TaskRun
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


def artifacts(state: State[Any]) -> dict[str, Any]:
    """Content of everything the flow run published, by kind and experiment: the key without its digest."""
    return {key: artifact.data for key, artifact in found_artifacts(state).items()}


def descriptions(state: State[Any]) -> dict[str, str]:
    """The titles of the same."""
    return {key: str(artifact.description) for key, artifact in found_artifacts(state).items()}


def found_artifacts(state: State[Any]) -> dict[str, Artifact]:
    """What the flow run published, by kind and experiment."""
    assert state.state_details.flow_run_id is not None
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=chosen)
    return {str(artifact.key).rpartition("-")[0]: artifact for artifact in found}


def saved(
    config: CheckpointConfig, experiment: str = EXPERIMENT, losses: tuple[float, ...] = (3.0, 1.0, 2.0)
) -> list[str]:
    """Save some checkpoints without Prefect, in epochs from 1 on."""
    manager = CheckpointManager(config, experiment)
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": loss})
        for epoch, loss in enumerate(losses, start=1)
    ]
    return [checkpoint_id for checkpoint_id in ids if checkpoint_id]


def saved_ids(config: CheckpointConfig) -> list[str]:
    return CheckpointManager(config, EXPERIMENT).checkpoint_ids()


def payload_file(config: CheckpointConfig, checkpoint_id: str, folder: str = "") -> Path:
    return Path(config.checkpoint_dir, EXPERIMENT, folder, f"{checkpoint_id}.pt")


def damage(config: CheckpointConfig, checkpoint_id: str, folder: str = "") -> None:
    """Damage a checkpoint, or its copy in the folder of that name."""
    flip_a_byte(payload_file(config, checkpoint_id, folder))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
