"""The task that moves checkpoints from the fallback folder to the store."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.reports import ReconcileReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("reconcile {experiment_name}")
def reconcile_checkpoints(config: CheckpointConfig, experiment_name: str) -> ReconcileReport:
    """Move the checkpoints in ``fallback_dir`` to the store; the report says what moved and why others did not.

    See :meth:`ckpt_lib.CheckpointManager.reconcile`.
    """
    return manager_for(config, experiment_name).reconcile()
