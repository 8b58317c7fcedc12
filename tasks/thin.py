"""The task that drops all but the weights of a checkpoint."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig, CheckpointMetadata
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("thin {experiment_name} {checkpoint_id}")
def thin_checkpoint(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> CheckpointMetadata:
    """Keep the weights of a checkpoint, and drop what only resuming from it needs.

    See :meth:`ckpt_lib.CheckpointManager.thin_checkpoint`.
    """
    return manager_for(config, experiment_name).thin_checkpoint(checkpoint_id)
