"""Tasks that find and isolate problems."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.maintenance.quarantine import QuarantineReport
from ckpt_lib.reports import DoctorReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("examine {experiment_name}")
def examine_checkpoints(config: CheckpointConfig, experiment_name: str, fix: bool = False) -> DoctorReport:
    """Check an experiment for leftovers, damage, missing backups and unknown files; ``fix`` fixes what can be fixed.

    See :meth:`ckpt_lib.CheckpointManager.doctor`.
    """
    return manager_for(config, experiment_name).doctor(fix=fix)


@checkpoint_task("quarantine {experiment_name} {checkpoint_id}")
def quarantine_checkpoint(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> QuarantineReport:
    """Quarantine a damaged checkpoint, or repair it if its backup can.

    See :meth:`ckpt_lib.CheckpointManager.quarantine_checkpoint`.
    """
    return manager_for(config, experiment_name).quarantine_checkpoint(checkpoint_id)
