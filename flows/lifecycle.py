"""``checkpoint_lifecycle``: validate, back up, compare, export and clean up the checkpoints of an experiment."""

from contextlib import suppress
from typing import Any

from prefect import flow, get_run_logger, unmapped
from prefect.futures import PrefectFuture, wait

from ckpt_lib import CheckpointConfig, CheckpointManager, open_store
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.policies.retention import RetentionPolicy
from prefect_checkpoints.flows._form import ConfigForLifecycle
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed, fail_on_backups
from prefect_checkpoints.flows._runner import thread_runner
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.flows.validate import advise, fail_on_damage, validate_batches
from prefect_checkpoints.tasks import (
    backup_checkpoint,
    cleanup_checkpoints,
    compare_checkpoints,
    export_checkpoint,
    report_checkpoints,
    report_cleanup,
    report_comparison,
    report_metrics,
    report_validation,
    summarize_checkpoints,
)
from prefect_checkpoints.tasks.report import count_findings

MAX_COMPARED = 4


@flow(
    name="checkpoint_lifecycle",
    flow_run_name="lifecycle of {experiment_name}",
    task_runner=thread_runner(),
    **KEPT_RESULT,
)
def checkpoint_lifecycle(
    config: ConfigForLifecycle = CheckpointConfig(),  # noqa: B008  frozen
    experiment_name: str = "digits",
    export_dir: str = "exports",
    retention: RetentionPolicy | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Validate, back up, compare, export the best, clean up and summarise one experiment.

    If a checkpoint is damaged, all steps are still done for the others, and the run fails at its end. A damaged best
    checkpoint is not exported. Returns the summary with the additional keys ``comparison``, ``exported`` (the path of
    the exported payload) and ``cleanup`` (a report).

    Args:
        config: The store and its options.
        experiment_name: An existing experiment.
        export_dir: The folder to export the best checkpoint to.
        retention: Replaces max_checkpoints.
        dry_run: Only plan the cleanup.
    """
    require_absolute(config, export_dir=export_dir)
    check_experiment_exists(open_store(config.checkpoint_dir), experiment_name)
    manager = CheckpointManager(config, experiment_name)
    reports = validate_batches(config, experiment_name, manager.checkpoint_ids())
    report_validation(config, experiment_name, reports, advise(manager, reports))
    intact = [report.checkpoint_id for report in reports if report]

    best = manager.get_best_checkpoint() or manager.get_latest_checkpoint()
    best_id = best.checkpoint_id if best and best.checkpoint_id in intact else None
    backups = backup_checkpoint.map(
        unmapped(config), unmapped(experiment_name), _worth_a_backup(manager, best_id, intact)
    )
    comparison = _compare(config, experiment_name, best_id, intact)
    exports = [export_checkpoint.submit(config, experiment_name, best_id, export_dir)] if best_id else []

    copies: list[PrefectFuture[Any]] = [*backups, *exports]
    wait(copies)  # delete nothing before the backups are made
    cleanup = cleanup_checkpoints(config, experiment_name, retention, dry_run)
    report_cleanup(config, experiment_name, cleanup)
    report_checkpoints(config, experiment_name)
    report_metrics(config, experiment_name)
    summary = summarize_checkpoints(config, experiment_name)
    fail_on_damage(reports)
    # Last, so that a failed copy fails the run but not the steps that do not depend on it.
    for backup in backups:
        with suppress(CheckpointNotFoundError):  # deleted meanwhile by a running training
            backup.result()
    exported = next((export.result() for export in exports), None)
    fail_on_backups({experiment_name: cleanup})
    outcome: dict[str, Any] = {**summary, "comparison": comparison, "exported": exported, "cleanup": cleanup}
    return completed(outcome, f"{count_findings(reports)}; {summary['total_checkpoints']} kept")


def _worth_a_backup(manager: CheckpointManager, best_id: str | None, intact: list[str]) -> list[str]:
    """Return the ids that backup retention keeps: it would delete other backups at once, after each run."""
    always = {item.checkpoint_id for item in manager.list_checkpoints() if item.pinned} | {best_id}
    others = [checkpoint_id for checkpoint_id in intact if checkpoint_id not in always]
    if manager.config.backup_only_best:
        newest = []
    else:
        newest = others[-max(1, manager.config.max_backups - (best_id is not None)) :]
    return [checkpoint_id for checkpoint_id in intact if checkpoint_id in always or checkpoint_id in newest]


def _compare(config: CheckpointConfig, experiment_name: str, best_id: str | None, intact: list[str]) -> Any:
    """Compare the best checkpoint with the newest others; return ``None`` if there are fewer than two."""
    compared = list(dict.fromkeys([*([best_id] if best_id else []), *intact[::-1]]))[:MAX_COMPARED]
    if len(compared) < 2:
        get_run_logger().info("Nothing to compare: intact checkpoints: %d", len(compared))
        return None
    comparison = compare_checkpoints(config, experiment_name, compared)
    report_comparison(config, experiment_name, comparison)
    return comparison
