"""Backups and their restoration."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig, CheckpointMetadata
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("back up {experiment_name} {checkpoint_id}")
def backup_checkpoint(
    config: CheckpointConfig, experiment_name: str, checkpoint_id: str = "latest", verify_existing: bool = False
) -> bool:
    """Make a verified copy in the backup location; ``False`` when there is one already.

    See :meth:`ckpt_lib.CheckpointManager.backup_checkpoint`.
    """
    return manager_for(config, experiment_name).backup_checkpoint(checkpoint_id, verify_existing=verify_existing)


@checkpoint_task("restore {experiment_name} {checkpoint_id}")
def restore_checkpoint(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> CheckpointMetadata:
    """Put the verified backup of a checkpoint in its place.

    See :meth:`ckpt_lib.CheckpointManager.restore_checkpoint`.
    """
    return manager_for(config, experiment_name).restore_checkpoint(checkpoint_id)
