"""Tasks that repair damaged bytes of one copy from the other."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.reports import RepairReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("repair {experiment_name} {checkpoint_id}")
def repair_checkpoint(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> RepairReport:
    """Repair the damaged bytes of a checkpoint from its backup.

    See :meth:`ckpt_lib.CheckpointManager.repair_checkpoint`.
    """
    return manager_for(config, experiment_name).repair_checkpoint(checkpoint_id)


@checkpoint_task("repair backup {experiment_name} {checkpoint_id}")
def repair_backup(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> RepairReport:
    """Repair the damaged bytes of a backup from its checkpoint.

    See :meth:`ckpt_lib.CheckpointManager.repair_backup`.
    """
    return manager_for(config, experiment_name).repair_backup(checkpoint_id)
