"""``validate_store``: read every byte in a store, report damage and, if asked, repair it from the other copy."""

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from typing import Any
from zlib import crc32

from prefect import flow, get_run_logger

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.maintenance.quarantine import QuarantineReport
from ckpt_lib.maintenance.repair import Remedy
from ckpt_lib.maintenance.validate import can_repair
from ckpt_lib.reports import ValidationReport
from prefect_checkpoints.flows._form import ConfigForValidation
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed
from prefect_checkpoints.flows._runner import thread_runner
from prefect_checkpoints.flows._store import experiments_of
from prefect_checkpoints.tasks import (
    examine_checkpoints,
    quarantine_backup,
    quarantine_checkpoint,
    repair_backup,
    repair_checkpoint,
    report_doctor,
    report_validation,
    scrub_checkpoints,
    validate_checkpoints,
)
from prefect_checkpoints.tasks._progress import progress_artifact
from prefect_checkpoints.tasks.report import artifact_key, count_findings

REPAIRED = "repaired from the other copy"
REPAIRABLE = "the other copy can repair it: run validate_store with repair"
LOST = "no other copy can repair it"
CHANGED = "imported in place, and changed since; its files are never written over: delete it and import it again"
UNKNOWN_FORMAT = "install the package that provides its format"
QUARANTINED = f"{LOST}; quarantined"
_ADVICE: dict[Remedy, str] = {
    "repair": REPAIRABLE,
    "quarantine": f"{LOST}: `ckpt quarantine` isolates it",
}

MAX_BATCHES = 16
"""Few task runs for thousands of checkpoints, but small batches: a new checkpoint makes its whole batch read again."""

Reports = list[ValidationReport]
Copy = tuple[str, str]
"""Experiment name and id: two experiments may have checkpoints with the same id."""


@flow(
    name="validate_store", flow_run_name="validate {config.checkpoint_dir}", task_runner=thread_runner(), **KEPT_RESULT
)
def validate_store(
    config: ConfigForValidation = CheckpointConfig(),  # noqa: B008  frozen
    repair: bool = False,
    max_bytes_per_second: float | None = None,
    allow_missing: bool = False,
) -> Reports:
    """Validate every checkpoint and backup of every experiment in a store.

    All bytes are read; the next run continues one that was cancelled or killed. With ``repair``, damaged bytes are
    repaired from the other copy, and a copy that cannot be repaired is quarantined; without it, the report says what
    can be done. Then the doctor checks each experiment and, with ``repair``, fixes what it can. The run fails if there
    is damage that was not repaired, or if the store is missing. Copies in quarantine are not read, so the next run
    fails only on new damage.

    Args:
        config: The store and its options.
        repair: Repair damage from the other copy, quarantine what cannot be repaired, and let the doctor fix problems.
        max_bytes_per_second: Read each experiment no faster than this.
        allow_missing: Complete without doing anything if there is no store.
    """
    names = experiments_of(config, allow_missing=allow_missing)
    stored, backups = _scrub_each(config, names, max_bytes_per_second)

    def repair_one(name: str, checkpoint_id: str) -> None:
        repair_checkpoint(config, name, checkpoint_id)

    def repair_one_backup(name: str, checkpoint_id: str) -> None:
        repair_backup(config, name, checkpoint_id)

    advice = _repair(stored, backups, repair_one if repair else None, in_place=_in_place(config, stored))
    backup_advice = _repair(backups, stored, repair_one_backup if repair else None)
    if repair:
        _quarantine(config, stored, advice, quarantine_checkpoint)
        _quarantine(config, backups, backup_advice, quarantine_backup)
    for name in names:
        report_doctor(config, name, examine_checkpoints(config, name, fix=repair))
    report_validation(config, None, stored, advice)
    report_validation(config, None, backups, backup_advice, backups=True)
    fail_on_damage(
        [report for report in stored if advice.get(_copy(report)) != REPAIRED],
        [report for report in backups if backup_advice.get(_copy(report)) != REPAIRED],
    )
    found = f"checkpoints: {count_findings(stored)}; backups: {count_findings(backups)}"
    return completed(stored + backups, found + (", repaired" if any(advice | backup_advice) else ""))


def _scrub_each(
    config: CheckpointConfig, names: Sequence[str], max_bytes_per_second: float | None
) -> tuple[Reports, Reports]:
    """Read all that the experiments hold; the reports of their checkpoints, and those of their backups."""
    managers = [CheckpointManager(config, name) for name in names]
    held = [manager.experiment_name for manager in managers if manager.checkpoint_ids() or manager.backup_ids()]
    if not held:
        get_run_logger().info("Nothing to validate: no checkpoints in the store")
    scrubs = [scrub_checkpoints.submit(config, name, max_bytes_per_second) for name in held]
    reports = [scrub.result() for scrub in scrubs]
    return (
        [found for report in reports for found in report.checkpoints],
        [found for report in reports for found in report.backups],
    )


def validate_batches(config: CheckpointConfig, experiment_name: str, ids: Sequence[str]) -> Reports:
    """Validate checkpoints in a few tasks with a progress bar; return the reports in the order of ids.

    The id alone decides in which task a checkpoint is validated, so that a new checkpoint leaves the cached results of
    most others valid.
    """
    if not ids:
        get_run_logger().info("Nothing to validate: no checkpoints in %s", experiment_name)
        return []
    batches: dict[int, list[str]] = {}
    for checkpoint_id in ids:
        batches.setdefault(crc32(checkpoint_id.encode()) % MAX_BATCHES, []).append(checkpoint_id)
    futures = [validate_checkpoints.submit(config, experiment_name, batch) for batch in batches.values()]
    key = artifact_key("validating", config, experiment_name)
    with progress_artifact(key, f"Validating {experiment_name}", len(ids)) as advance:
        for future, batch in zip(futures, batches.values(), strict=True):
            future.wait()
            advance(len(batch))
    found = {report.checkpoint_id: report for future in futures for report in future.result()}
    return [found[checkpoint_id] for checkpoint_id in ids if checkpoint_id in found]


def fail_on_damage(reports: Sequence[ValidationReport], backups: Sequence[ValidationReport] = ()) -> None:
    """Raise :class:`CorruptCheckpointError` if a report about a checkpoint or backup has found damage."""
    damaged = [report for report in (*reports, *backups) if not report]
    if damaged:
        findings = [f"{item.experiment_name}/{item.checkpoint_id}: {item.message}" for item in reports if not item]
        findings += [
            f"the backup of {item.experiment_name}/{item.checkpoint_id}: {item.message}" for item in backups if not item
        ]
        raise CorruptCheckpointError(
            f"{len(damaged)} of {len(reports) + len(backups)} are damaged or cannot be loaded: {'; '.join(findings)}",
            damages=[damage for report in damaged for damage in report.damages],
            hint="The validation report in the artifacts says what can be done, as `ckpt validate --all` does.",
        )


def advise(manager: CheckpointManager, reports: Reports) -> dict[Copy, str]:
    """Return what can be done about each damaged checkpoint, as far as its backup can be read."""
    advice = {}
    for report in (report for report in reports if not report):
        with suppress(CheckpointError):
            of_remedy = UNKNOWN_FORMAT if report.has_unknown_format else _ADVICE[manager.remedy(report)]
            advice[_copy(report)] = of_remedy
    return advice


def _in_place(config: CheckpointConfig, reports: Reports) -> set[Copy]:
    """Return which of the damaged checkpoints were imported in place."""
    found = set()
    for report in (report for report in reports if not report):
        with suppress(CheckpointError):
            manager = CheckpointManager(config, report.experiment_name)
            if manager.get_checkpoint(report.checkpoint_id).original:
                found.add(_copy(report))
    return found


def _repair(
    reports: Reports,
    other_copies: Reports,
    repair: Callable[[str, str], Any] | None,
    *,
    in_place: Set[Copy] = frozenset(),
) -> dict[Copy, str]:
    """Repair damaged copies from the other ones, if ``repair`` is given; return what was or can be done about each.

    What was imported ``in_place`` is never repaired: the files belong to the program that wrote them. A failed repair
    is reported and does not stop the others.
    """
    others = {_copy(report): report for report in other_copies}
    advice = {}
    for report in (report for report in reports if not report):
        copy = _copy(report)
        if report.has_unknown_format:
            advice[copy] = UNKNOWN_FORMAT
        elif copy in in_place:
            advice[copy] = CHANGED
        elif not can_repair(others.get(copy), report):
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


def _quarantine(
    config: CheckpointConfig,
    reports: Reports,
    advice: dict[Copy, str],
    quarantine: Callable[[CheckpointConfig, str, str], QuarantineReport],
) -> None:
    """Quarantine the copies that cannot be repaired, and note it in ``advice``."""
    for copy in [_copy(report) for report in reports if advice.get(_copy(report)) == LOST]:
        try:
            outcome = quarantine(config, *copy)
            advice[copy] = QUARANTINED if outcome.is_quarantined else REPAIRED
        except CheckpointError as error:
            advice[copy] = f"{LOST}; not quarantined: {error.message}"


def _copy(report: ValidationReport) -> Copy:
    return report.experiment_name, report.checkpoint_id
