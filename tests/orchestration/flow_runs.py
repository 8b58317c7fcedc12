"""What flow runs published, and checkpoints for them, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, State
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager


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


def saved(config: CheckpointConfig, experiment: str = "run", losses: tuple[float, ...] = (3.0, 1.0, 2.0)) -> list[str]:
    manager = CheckpointManager(config, experiment)
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": loss})
        for epoch, loss in enumerate(losses, start=1)
    ]
    return [checkpoint_id for checkpoint_id in ids if checkpoint_id]


def saved_ids(config: CheckpointConfig) -> list[str]:
    return CheckpointManager(config, "run").checkpoint_ids()


def damage(config: CheckpointConfig, checkpoint_id: str, folder: str = "") -> None:
    path = Path(config.checkpoint_dir, "run", folder, f"{checkpoint_id}.pt")
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)
