"""Prefect tasks, one for each step of a checkpoint's life.

Installed, this package is ``prefect_checkpoints.tasks``::

    from prefect_checkpoints.tasks import save_checkpoint

Every task takes a ``CheckpointConfig`` and an experiment name, and makes one call of ``CheckpointManager``. Tasks are
idempotent: running one again changes nothing more. They are retried only if the store did not answer, and never after
damage or bad input.
"""

from prefect_checkpoints.tasks.backup import (
    backup_checkpoint,
    cleanup_backups,
    delete_backup,
    list_backups,
    quarantine_backup,
    restore_checkpoint,
)
from prefect_checkpoints.tasks.checkpointing import checkpointing
from prefect_checkpoints.tasks.cleanup import cleanup_checkpoints
from prefect_checkpoints.tasks.compare import compare_checkpoints
from prefect_checkpoints.tasks.doctor import examine_checkpoints, quarantine_checkpoint
from prefect_checkpoints.tasks.edit import add_metrics, tag_checkpoint
from prefect_checkpoints.tasks.export import export_checkpoint, import_checkpoint, import_checkpoints
from prefect_checkpoints.tasks.load import load_checkpoint, resume_training
from prefect_checkpoints.tasks.reconcile import reconcile_checkpoints
from prefect_checkpoints.tasks.repair import repair_backup, repair_checkpoint
from prefect_checkpoints.tasks.report import (
    report_backups,
    report_checkpoints,
    report_cleanup,
    report_comparison,
    report_doctor,
    report_evaluation,
    report_launch,
    report_metrics,
    report_rollback,
    report_validation,
)
from prefect_checkpoints.tasks.save import save_checkpoint
from prefect_checkpoints.tasks.scrub import scrub_checkpoints
from prefect_checkpoints.tasks.summarize import summarize_checkpoints
from prefect_checkpoints.tasks.thin import thin_checkpoint
from prefect_checkpoints.tasks.validate import validate_backup, validate_checkpoint, validate_checkpoints

__all__ = [
    "add_metrics",
    "backup_checkpoint",
    "checkpointing",
    "cleanup_backups",
    "cleanup_checkpoints",
    "compare_checkpoints",
    "delete_backup",
    "examine_checkpoints",
    "export_checkpoint",
    "import_checkpoint",
    "import_checkpoints",
    "list_backups",
    "load_checkpoint",
    "quarantine_backup",
    "quarantine_checkpoint",
    "reconcile_checkpoints",
    "repair_backup",
    "repair_checkpoint",
    "report_backups",
    "report_checkpoints",
    "report_cleanup",
    "report_comparison",
    "report_doctor",
    "report_evaluation",
    "report_launch",
    "report_metrics",
    "report_rollback",
    "report_validation",
    "restore_checkpoint",
    "resume_training",
    "save_checkpoint",
    "scrub_checkpoints",
    "summarize_checkpoints",
    "tag_checkpoint",
    "thin_checkpoint",
    "validate_backup",
    "validate_checkpoint",
    "validate_checkpoints",
]
