"""Tasks that publish reports as Prefect artifacts, with a key that makes a timeline over all runs.

A report never fails the run that it reports on: if it cannot be published, a warning is logged.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

from prefect import Task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from ckpt_lib import CheckpointConfig, CheckpointMetadata, open_store
from ckpt_lib.analysis.results import CheckpointComparison
from ckpt_lib.core.metadata import marks_of
from ckpt_lib.core.wording import duration, size_text
from ckpt_lib.launch.report import LaunchReport
from ckpt_lib.policies.retention import Decision
from ckpt_lib.reports import CleanupReport, DoctorReport, ValidationReport
from ckpt_lib.store import location
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for

Row = dict[str, Any]
P = ParamSpec("P")


def artifact_key(kind: str, config: CheckpointConfig, experiment_name: str | None = None) -> str:
    """Return an artifact key for a kind of report about an experiment or, without a name, about a whole store.

    Artifact keys allow few characters, so a digest makes the key unique.
    """
    what = json.dumps([kind, store_of(config), experiment_name])
    readable = re.sub(r"[^a-z0-9]+", "-", f"{kind}-{experiment_name or 'store'}".lower()).strip("-")
    return f"{readable}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


def store_of(config: CheckpointConfig) -> str:
    """Return the store of a configuration as an absolute path or a URL."""
    return location(open_store(config.checkpoint_dir))


def report_task(run_name: str) -> Callable[[Callable[P, None]], Task[P, None]]:
    """Return a decorator for tasks that publish a report, and log a warning instead of failing."""

    def decorate(function: Callable[P, None]) -> Task[P, None]:
        @wraps(function)
        def published(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:
                get_run_logger().warning("No report was published by %s: %r", function.__name__, error)

        return checkpoint_task(run_name)(published)

    return decorate


@report_task("report checkpoints of {experiment_name}")
def report_checkpoints(config: CheckpointConfig, experiment_name: str) -> None:
    """Publish the table of an experiment's checkpoints, newest first."""
    checkpoints = manager_for(config, experiment_name).list_checkpoints(descending=True)
    title = f"Checkpoints of {experiment_name} in {store_of(config)}, newest first"
    _publish(_rows(checkpoints), artifact_key("checkpoints", config, experiment_name), title)


@report_task("report backups of {experiment_name}")
def report_backups(config: CheckpointConfig, experiment_name: str) -> None:
    """Publish the table of an experiment's backups, newest first."""
    backups = manager_for(config, experiment_name).list_backups()[::-1]
    title = f"Backups of {experiment_name} in {store_of(config)}, newest first"
    _publish(_rows(backups), artifact_key("backups", config, experiment_name), title)


def _rows(checkpoints: Sequence[CheckpointMetadata]) -> list[Row]:
    metrics = dict.fromkeys(name for item in checkpoints for name in item.metrics)
    rows: list[Row] = []
    for item in checkpoints:
        row: Row = {
            "checkpoint": item.checkpoint_id,
            "mark": " ".join(marks_of(item)),
            "epoch": item.epoch,
            "step": item.step,
            "size": size_text(item.file_size),
            "tags": ", ".join(item.tags),
            "sha256": item.checksum[:12],
        }
        # Every row has every metric, under a name that differs from the other columns.
        values = {f"metric {name}" if name in row else name: _cell(item.metrics.get(name)) for name in metrics}
        rows.append({"checkpoint": row.pop("checkpoint"), "mark": row.pop("mark"), **values, **row})
    return rows


@report_task("plot metrics of {experiment_name}")
def report_metrics(config: CheckpointConfig, experiment_name: str) -> None:
    """Publish a plot of the metrics over the epochs."""
    from ckpt_lib.analysis.plots import metrics_figure

    checkpoints = manager_for(config, experiment_name).list_checkpoints()
    picture = io.BytesIO()
    metrics_figure(checkpoints).savefig(picture, format="svg")
    create_image_artifact(
        # A data URL, so that the page needs no other server to show it.
        image_url="data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode(),
        key=artifact_key("metrics", config, experiment_name),
        description=f"Metrics of {experiment_name} in {store_of(config)}; the star is the best checkpoint",
    )


@report_task("report validation")
def report_validation(
    config: CheckpointConfig,
    experiment_name: str | None,
    reports: Sequence[ValidationReport],
    advice: Mapping[tuple[str, str], str] | None = None,
    backups: bool = False,
) -> None:
    """Publish validation reports of checkpoints or backups, damaged ones first.

    ``experiment_name`` is ``None`` for those of a whole store. ``advice`` says, by experiment and id, what was done or
    can be done about damaged ones.
    """
    rows: list[Row] = [
        {
            "result": _result(report),
            "experiment": report.experiment_name,
            "checkpoint": report.checkpoint_id,
            "size": size_text(report.size_bytes),
            "finding": report.message,
            "repair": "" if report else (advice or {}).get((report.experiment_name, report.checkpoint_id), ""),
        }
        for report in sorted(reports, key=bool)
    ]
    what = f"{'backups' if backups else 'checkpoints'} of {experiment_name or 'every experiment'}"
    key = artifact_key("validation-of-backups" if backups else "validation", config, experiment_name)
    _publish(rows, key, f"Validation of the {what} in {store_of(config)}: {count_findings(reports)}")


def count_findings(reports: Sequence[ValidationReport]) -> str:
    """Return how many of ``reports`` are intact, and how many are not."""
    unknown = sum(report.has_unknown_format for report in reports)
    damaged = sum(not report for report in reports) - unknown
    of_unknown_format = f", {unknown} of a format that is not installed" if unknown else ""
    return f"{len(reports) - damaged - unknown} intact, {damaged} damaged{of_unknown_format}"


def _result(report: ValidationReport) -> str:
    if report:
        return "intact"
    return "format not installed" if report.has_unknown_format else "DAMAGED"


@report_task("report comparison in {experiment_name}")
def report_comparison(config: CheckpointConfig, experiment_name: str, comparison: CheckpointComparison) -> None:
    """Publish metrics and differing configuration side by side, a column for each checkpoint."""
    ids = comparison["checkpoint_ids"]
    tables = {"metrics": comparison["metrics_comparison"], "config": comparison["config_comparison"]}
    rows: list[Row] = [
        {
            "kind": kind,
            "name": name,
            **{checkpoint_id: _cell(value) for checkpoint_id, value in zip(ids, values, strict=True)},
        }
        for kind, table in tables.items()
        for name, values in table.items()
    ]
    title = f"Comparison in {experiment_name} of {store_of(config)}"
    _publish(rows, artifact_key("comparison", config, experiment_name), title)


@report_task("report rollback of {experiment_name}")
def report_rollback(config: CheckpointConfig, experiment_name: str, checkpoint_id: str, reason: str, step: int) -> None:
    """Publish why a training went back to a checkpoint."""
    title = f"Rollback of {experiment_name} in {store_of(config)}"
    text = f"At step {step}, the training went back to `{checkpoint_id}`.\n\n    {reason}\n"
    key = artifact_key("rollback", config, experiment_name)
    create_markdown_artifact(markdown=text, key=key, description=title)


@report_task("report evaluation of {experiment_name}")
def report_evaluation(
    config: CheckpointConfig, experiment_name: str, checkpoint: CheckpointMetadata, outcome: str
) -> None:
    """Publish the metrics of a checkpoint, each with what measured it and when; ``outcome`` says what it led to."""
    added = {item.name: item for item in checkpoint.added_metrics}
    rows: list[Row] = [
        {
            "metric": name,
            "value": _cell(value),
            "source": (added[name].source if name in added else None) or "the save",
            "recorded": (added[name].at if name in added else checkpoint.timestamp).isoformat(),
        }
        for name, value in sorted(checkpoint.metrics.items(), key=lambda item: item[0] not in added)
    ]
    title = f"Evaluation of {checkpoint.checkpoint_id} of {experiment_name} in {store_of(config)}: {outcome}"
    _publish(rows, artifact_key("evaluation", config, experiment_name), title)


@report_task("report doctor of {experiment_name}")
def report_doctor(config: CheckpointConfig, experiment_name: str, report: DoctorReport) -> None:
    """Publish what the doctor fixed and what is left, problems first."""
    done: list[Row] = [
        {
            "state": "done" if item.succeeded else "NOT DONE",
            "kind": item.finding.kind,
            "place": item.finding.place,
            "name": item.finding.name,
            "finding": item.finding.message,
            "fix": item.outcome,
        }
        for item in report.done
    ]
    left: list[Row] = [
        {
            "state": "PROBLEM" if item.is_problem else "worth knowing",
            "kind": item.kind,
            "place": item.place,
            "name": item.name,
            "finding": item.message,
            "fix": item.fix or "",
        }
        for item in sorted(report.findings, key=lambda item: not item.is_problem)
    ]
    summary = "healthy" if report else f"problems left: {len(report.problems)}"
    title = f"Doctor of {experiment_name} in {store_of(config)}: {summary}"
    _publish(left + done, artifact_key("doctor", config, experiment_name), title)


@report_task("report launch of {experiment_name}")
def report_launch(config: CheckpointConfig, experiment_name: str, report: LaunchReport) -> None:
    """Publish how each attempt of a launched command ended, newest first."""
    rows: list[Row] = [
        {
            "attempt": attempt.number,
            "outcome": attempt.outcome,
            "evidence": attempt.evidence,
            "exit code": attempt.exit_code,
            "time": duration(attempt.seconds),
            "new checkpoints": len(attempt.checkpoint_ids),
            "newest checkpoint": next(reversed(attempt.checkpoint_ids), ""),
            "last lines": "\n".join(attempt.last_lines),
        }
        for attempt in reversed(report.attempts)
    ]
    title = f"Launch of {shlex.join(report.command)} for {experiment_name} in {store_of(config)}: {report}"
    _publish(rows, artifact_key("launch", config, experiment_name), title)


@report_task("report cleanup of {experiment_name}")
def report_cleanup(
    config: CheckpointConfig, experiment_name: str, report: CleanupReport, backups: bool = False
) -> None:
    """Publish a retention plan with a reason for each decision, and what was deleted.

    ``backups`` marks a report about backups. A report about checkpoints that includes backups becomes two tables.
    """
    _publish_cleanup(config, experiment_name, report, backups)
    if report.backups and report.backups.plan.decisions:
        _publish_cleanup(config, experiment_name, report.backups, True)


def _publish_cleanup(config: CheckpointConfig, experiment_name: str, report: CleanupReport, backups: bool) -> None:
    rows: list[Row] = [
        {
            "decision": _outcome(decision, report),
            "checkpoint": decision.checkpoint_id,
            "reason": report.spared.get(decision.checkpoint_id, decision.reason),
            "status": decision.status,
            "epoch": decision.epoch,
            "size": size_text(decision.size_bytes),
        }
        for decision in report.plan.decisions
    ]
    if report.dry_run:
        summary = f"would delete {size_text(report.plan.freed_bytes)}"
    elif report.trashed_bytes:
        summary = f"moved {size_text(report.trashed_bytes)} to the trash"
    else:
        summary = f"freed {size_text(report.freed_bytes)}"
    summary += f"; {report.plan.warning}" if report.plan.warning else ""
    summary += f"; THE BACKUPS WERE NOT CLEANED UP: {report.backups_error}" if report.backups_error else ""
    leftovers = ""
    if report.expired_ids:
        leftovers += f"; deleted from the trash: {len(report.expired_ids)} ({size_text(report.expired_bytes)})"
    if report.swept:
        leftovers += f"; leftovers of dead processes removed: {len(report.swept)}"
    what = f"Retention of {'the backups of ' if backups else ''}{experiment_name}"
    title = f"{what} in {store_of(config)}: {summary}{leftovers}"
    _publish(rows, artifact_key("cleanup-of-backups" if backups else "cleanup", config, experiment_name), title)


def _outcome(decision: Decision, report: CleanupReport) -> str:
    if decision.keep and not decision.thin:
        return "keep"
    if report.dry_run:
        return "would thin" if decision.thin else "would delete"
    if decision.checkpoint_id in report.thinned_ids:
        return "thinned"
    return "deleted" if decision.checkpoint_id in report.deleted_ids else "spared"


def _publish(rows: list[Row], key: str, description: str) -> None:
    create_table_artifact(table=rows, key=key, description=description)


def _cell(value: Any) -> Any:
    """Return a value that the page can show: an infinity would break the whole table."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return float(f"{value:.6g}") if abs(value) < 1 else round(value, 6)  # 3e-07 is not 0
    return value if isinstance(value, int | None) else str(value)
