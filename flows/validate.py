"""``validate_store``: read every byte of every checkpoint, report damage, and repair it from backups when asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prefect import Task, flow, get_run_logger, unmapped
from prefect.futures import as_completed

from ckpt_lib import CheckpointConfig, CheckpointManager, ValidationReport, list_experiments, open_store
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from prefect_checkpoints.flows._runner import thread_runner
from prefect_checkpoints.tasks import (
    backup_checkpoint,
    report_validation,
    restore_checkpoint,
    validate_backup,
    validate_checkpoint,
)
from prefect_checkpoints.tasks._progress import progress_artifact
from prefect_checkpoints.tasks.report import artifact_key

REPAIRED = "repaired from the other copy"
REPAIRABLE = "the other copy is intact: run again with repair"
LOST = "no intact copy is left"

Reports = list[ValidationReport]
Copy = tuple[str, str]
"""Experiment and id: checkpoints of two experiments may share an id."""


@flow(name="validate_store", flow_run_name="validate {checkpoints.checkpoint_dir}", task_runner=thread_runner())
def validate_store(
    checkpoints: CheckpointConfig = CheckpointConfig(),  # noqa: B008  frozen
    repair: bool = False,
) -> Reports:
    """Validate every checkpoint and every backup of every experiment in a store.

    Nothing remembered is trusted: all bytes are read. With ``repair``, a damaged checkpoint is replaced by its backup
    and a damaged backup by its checkpoint, if that one is intact; without it, the report says which could be. The run
    fails when damage is left, so that whoever watches the schedule hears of it.

    Args:
        checkpoints: The store and its options.
        repair: Replace damaged copies by intact ones.
    """
    names = list_experiments(open_store(checkpoints.checkpoint_dir), missing_ok=True)
    managers = {name: CheckpointManager(checkpoints, name) for name in names}
    stored = validate_mapped(
        validate_checkpoint.with_options(refresh_cache=True),
        checkpoints,
        {name: manager.checkpoint_ids() for name, manager in managers.items()},
        "store",
    )
    backups = validate_mapped(
        validate_backup,
        checkpoints,
        {name: manager.backup_ids() for name, manager in managers.items()},
        "backups",
    )

    def restore(name: str, checkpoint_id: str) -> None:
        restore_checkpoint(checkpoints, name, checkpoint_id)

    def back_up_anew(name: str, checkpoint_id: str) -> None:
        backup_checkpoint(checkpoints, name, checkpoint_id, verify_existing=True)

    advice = _mend(stored, backups, restore if repair else None)
    backup_advice = _mend(backups, stored, back_up_anew if repair else None)
    report_validation("store", stored, advice)
    report_validation("backups", backups, backup_advice)
    fail_on_damage(
        [report for report in stored if advice.get(_copy(report)) != REPAIRED]
        + [report for report in backups if backup_advice.get(_copy(report)) != REPAIRED]
    )
    return stored + backups


def validate_mapped(
    task: Task[..., ValidationReport],
    checkpoints: CheckpointConfig,
    ids: Mapping[str, Sequence[str]],
    what: str,
) -> Reports:
    """Run a validation task for every id of every experiment, a few at a time, behind a progress bar.

    What was retired before its turn came is left out: a training may go on meanwhile.
    """
    pairs = [(name, checkpoint_id) for name in ids for checkpoint_id in ids[name]]
    if not pairs:
        get_run_logger().info("Nothing to validate: no checkpoints in the %s", what)
        return []
    futures = task.map(
        unmapped(checkpoints), [name for name, _ in pairs], [checkpoint_id for _, checkpoint_id in pairs]
    )
    with progress_artifact(artifact_key("validating", what), f"Validating {what}", len(futures)) as advance:
        for _ in as_completed(list(futures)):
            advance(1)
    reports = []
    for future in futures:
        with suppress(CheckpointNotFoundError):
            reports.append(future.result())
    return reports


def fail_on_damage(reports: Sequence[ValidationReport]) -> None:
    """Raise :class:`CorruptCheckpointError` when one of ``reports`` tells of damage."""
    damaged = [report for report in reports if not report]
    if damaged:
        findings = "; ".join(f"{item.experiment_name}/{item.checkpoint_id}: {item.message}" for item in damaged)
        raise CorruptCheckpointError(
            f"{len(damaged)} of {len(reports)} are damaged: {findings}",
            damages=[damage for report in damaged for damage in report.damages],
            hint="The validation report in the artifacts says what can be repaired.",
        )


def _mend(reports: Reports, other_copies: Reports, repair: Callable[[str, str], Any] | None) -> dict[Copy, str]:
    """Replace damaged copies by intact ones, or say that one could; returns what to say about each.

    A repair that fails stops no other one, and is told of.
    """
    intact = {_copy(report) for report in other_copies if report}
    advice = {}
    for copy in (_copy(report) for report in reports if not report):
        if copy not in intact:
            advice[copy] = LOST
        elif repair is None:
            advice[copy] = REPAIRABLE
        else:
            try:
                repair(*copy)
                advice[copy] = REPAIRED
            except CheckpointError as error:
                advice[copy] = f"repair failed: {error.message}"
    return advice


def _copy(report: ValidationReport) -> Copy:
    return report.experiment_name, report.checkpoint_id
