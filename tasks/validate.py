"""Validation, whose outcome is remembered for as long as the file does not change."""

from __future__ import annotations

from typing import Any

from ckpt_lib import CheckpointConfig, CheckpointError, ValidationReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for, remembered


def _content(parameters: dict[str, Any]) -> str | None:
    """A key of digest *and* file version: by the digest alone, a file that has rotted would still count as checked.

    ``None``, which means no cache, for anything that cannot be looked at.
    """
    manager = manager_for(parameters["config"], parameters["experiment_name"])
    try:
        checkpoint = manager.get_checkpoint(parameters["checkpoint_id"])
        version = manager.payload_version(checkpoint.checkpoint_id)
    except CheckpointError:
        return None
    if version is None:
        return None
    return f"{checkpoint.experiment_name}/{checkpoint.checkpoint_id}/{checkpoint.checksum}/{version}"


@checkpoint_task(
    "validate {experiment_name} {checkpoint_id}",
    **remembered("validate", _content),
)
def validate_checkpoint(
    config: CheckpointConfig, experiment_name: str, checkpoint_id: str = "latest"
) -> ValidationReport:
    """Read every byte of a checkpoint and report what is wrong and where; the report is true when it is intact.

    The outcome is remembered for a day by id, digest and file version. Bits that rot change none of these: a scrub
    must look again, with ``validate_checkpoint.with_options(refresh_cache=True)``.
    """
    return manager_for(config, experiment_name).validate_checkpoint(checkpoint_id)


@checkpoint_task("validate backup {experiment_name} {checkpoint_id}")
def validate_backup(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> ValidationReport:
    """Read every byte of a backup; nothing is remembered."""
    return manager_for(config, experiment_name).validate_backup(checkpoint_id)
