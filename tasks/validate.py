"""Tasks that validate. Results are cached for a day, as long as the files do not change."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ckpt_lib import CheckpointConfig, CheckpointError
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.reports import ValidationReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for, remembered


def _content(parameters: dict[str, Any]) -> str | None:
    """Return a key of digests *and* file versions: by digest alone, a changed file would count as validated.

    Return ``None``, which disables the cache, if something cannot be read.
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
    """Read every byte of a checkpoint and report damage; the report is true if the checkpoint is intact.

    The result is cached for a day by id, digest and file version. Bit rot changes none of these: to read the file
    again, call ``validate_checkpoint.with_options(refresh_cache=True)``.
    """
    return manager_for(config, experiment_name).validate_checkpoint(checkpoint_id)


@checkpoint_task("validate checkpoints of {experiment_name}", **remembered("validate-each", _content))
def validate_checkpoints(
    config: CheckpointConfig, experiment_name: str, checkpoint_ids: Sequence[str]
) -> list[ValidationReport]:
    """Read every byte of several checkpoints; those deleted meanwhile are left out.

    The result is cached as by :func:`validate_checkpoint`, as long as no file of the batch changes.
    """
    manager = manager_for(config, experiment_name)
    reports = []
    for checkpoint_id in checkpoint_ids:
        with suppress(CheckpointNotFoundError):
            reports.append(manager.validate_checkpoint(checkpoint_id))
    return reports


@checkpoint_task("validate backup {experiment_name} {checkpoint_id}")
def validate_backup(config: CheckpointConfig, experiment_name: str, checkpoint_id: str) -> ValidationReport:
    """Read every byte of a backup and report damage; the result is not cached."""
    return manager_for(config, experiment_name).validate_backup(checkpoint_id)
