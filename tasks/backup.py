"""Tasks for backups: make, list, restore, quarantine and delete them."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig, CheckpointMetadata
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.maintenance.quarantine import QuarantineReport
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.reports import CleanupReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("back up {experiment_name} {checkpoint_id}")
def backup_checkpoint(
    config: CheckpointConfig, experiment_name: str, checkpoint_id: str = "latest", verify_existing: bool = False
) -> bool:
    """Copy a checkpoint to the backup location and verify the copy; return ``False`` if there is one already.

    See :meth:`ckpt_lib.CheckpointManager.backup_checkpoint`.
    """
    return manager_for(config, experiment_name).backup_checkpoint(checkpoint_id, verify_existing=verify_existing)


@checkpoint_task("restore {experiment_name} {checkpoint_id}")
def restore_checkpoint(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> CheckpointMetadata:
    """Restore a checkpoint from its backup, which is verified.

    See :meth:`ckpt_lib.CheckpointManager.restore_checkpoint`.
    """
    return manager_for(config, experiment_name).restore_checkpoint(checkpoint_id)


@checkpoint_task("list backups of {experiment_name}")
def list_backups(config: CheckpointConfig, experiment_name: str) -> list[CheckpointMetadata]:
    """Return the backups, oldest first.

    See :meth:`ckpt_lib.CheckpointManager.list_backups`.
    """
    return manager_for(config, experiment_name).list_backups()


@checkpoint_task("quarantine backup {experiment_name} {checkpoint_id}")
def quarantine_backup(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> QuarantineReport:
    """Quarantine a damaged backup, or repair it if its checkpoint can.

    See :meth:`ckpt_lib.CheckpointManager.quarantine_backup`.
    """
    return manager_for(config, experiment_name).quarantine_backup(checkpoint_id)


@checkpoint_task("delete backup {experiment_name} {checkpoint_id}")
def delete_backup(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> int:
    """Delete the backup of a checkpoint for good; return the freed bytes, 0 if there is no such backup.

    See :meth:`ckpt_lib.CheckpointManager.delete_backup`.
    """
    try:
        return manager_for(config, experiment_name).delete_backup(checkpoint_id)
    except CheckpointNotFoundError:
        return 0


@checkpoint_task("clean up backups of {experiment_name}")
def cleanup_backups(
    config: CheckpointConfig, experiment_name: str, policy: RetentionPolicy | None = None, dry_run: bool = False
) -> CleanupReport:
    """Delete backups beyond ``max_backups``, or those that ``policy`` does not keep; the report gives the reasons.

    See :meth:`ckpt_lib.CheckpointManager.cleanup_backups`.
    """
    return manager_for(config, experiment_name).cleanup_backups(policy=policy, dry_run=dry_run)
