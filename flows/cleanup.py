"""``cleanup_store``: delete old checkpoints of every experiment in a store."""

from collections.abc import Collection

from prefect import flow, unmapped

from ckpt_lib import CheckpointConfig, CheckpointError
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.reports import CleanupReport
from prefect_checkpoints.flows._form import ConfigForCleanup
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed, fail_on_backups
from prefect_checkpoints.flows._runner import thread_runner
from prefect_checkpoints.flows._store import experiments_of
from prefect_checkpoints.tasks import cleanup_checkpoints, report_cleanup


@flow(
    name="cleanup_store", flow_run_name="clean up {config.checkpoint_dir}", task_runner=thread_runner(), **KEPT_RESULT
)
def cleanup_store(
    config: ConfigForCleanup = CheckpointConfig(),  # noqa: B008  frozen
    retention: RetentionPolicy | None = None,
    dry_run: bool = False,
    allow_missing: bool = False,
) -> dict[str, CleanupReport]:
    """Delete checkpoints that the retention policy does not keep, and leftovers, in every experiment of a store.

    Every decision is published with its reason; with ``dry_run``, nothing else happens. If an experiment or its
    backups cannot be cleaned up, the others still are, and the run fails at its end. A missing store fails the run.
    Returns the reports by experiment.

    Args:
        config: The store and its options.
        retention: Replaces max_checkpoints.
        dry_run: Only plan.
        allow_missing: Complete without doing anything if there is no store.
    """
    names = experiments_of(config, allow_missing=allow_missing)
    if not names:
        return completed({}, f"Nothing to clean up: no experiments in {config.checkpoint_dir}")
    futures = cleanup_checkpoints.map(unmapped(config), names, policy=unmapped(retention), dry_run=unmapped(dry_run))
    reports: dict[str, CleanupReport] = {}
    failures: list[CheckpointError] = []
    for name, future in zip(names, futures, strict=True):
        try:
            reports[name] = future.result()
        except CheckpointError as error:
            failures.append(error)
        else:
            report_cleanup(config, name, reports[name])
    if failures:
        raise failures[0]
    fail_on_backups(reports)
    return completed(reports, _found(reports.values()))


def _found(reports: Collection[CleanupReport]) -> str:
    """Return how many checkpoints stay and how many were, or would be, deleted."""
    kept = sum(len(report.plan.decisions) - len(report.plan.deleted_ids) for report in reports)
    if any(report.dry_run for report in reports):
        return f"{kept} to keep, {sum(len(report.plan.deleted_ids) for report in reports)} to delete"
    return f"{kept} kept, {sum(len(report.deleted_ids) for report in reports)} deleted"
