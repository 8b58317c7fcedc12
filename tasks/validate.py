"""Validation, whose outcome is remembered for as long as the files do not change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ckpt_lib import CheckpointConfig, CheckpointError, ValidationReport
from ckpt_lib.errors import CheckpointNotFoundError
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for, remembered


def _content(parameters: dict[str, Any]) -> str | None:
    """A key of digest *and* file version: by the digest alone, a file that has rotted would still count as checked.

    ``None``, which means no cache, for anything that cannot be looked at.
    """
    manager = manager_for(parameters["config"], parameters["experiment_name"])
    ids = parameters.get("checkpoint_ids") or [parameters["checkpoint_id"]]
    try:
        versions = [manager.payload_version(checkpoint_id) for checkpoint_id in ids]
    except CheckpointError:
        return None
    if None in versions:
        return None
    return "/".join(
        [manager.experiment_name, *(f"{name}/{version}" for name, version in zip(ids, versions, strict=True))]
    )


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


@checkpoint_task("validate checkpoints of {experiment_name}", **remembered("validate-each", _content))
def validate_checkpoints(
    config: CheckpointConfig, experiment_name: str, checkpoint_ids: Sequence[str]
) -> list[ValidationReport]:
    """Read every byte of some checkpoints, in one task; a checkpoint that is deleted before its turn is left out.

    The outcome is remembered as by :func:`validate_checkpoint`, for as long as no file of the batch changes.
    """
    manager = manager_for(config, experiment_name)
    reports = []
    for checkpoint_id in checkpoint_ids:
        with suppress(CheckpointNotFoundError):
            reports.append(manager.validate_checkpoint(checkpoint_id))
    return reports


@checkpoint_task("validate backup {experiment_name} {checkpoint_id}")
def validate_backup(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> ValidationReport:
    """Read every byte of a backup; nothing is remembered."""
    return manager_for(config, experiment_name).validate_backup(checkpoint_id)
