"""The task that deletes old checkpoints."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.reports import CleanupReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("clean up {experiment_name}")
def cleanup_checkpoints(
    config: CheckpointConfig, experiment_name: str, policy: RetentionPolicy | None = None, dry_run: bool = False
) -> CleanupReport:
    """Delete checkpoints that the retention policy does not keep, and leftovers; the report gives the reasons.

    See :meth:`ckpt_lib.CheckpointManager.cleanup_checkpoints`.
    """
    return manager_for(config, experiment_name).cleanup_checkpoints(policy=policy, dry_run=dry_run)
