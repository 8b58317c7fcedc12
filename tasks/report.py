"""Reports a person reads: every one becomes an artifact, whose key is a timeline over all runs."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_image_artifact, create_table_artifact

from ckpt_lib import CheckpointConfig, CheckpointMetadata, CleanupReport, DoctorReport, ValidationReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for

Row = dict[str, Any]


def artifact_key(kind: str, name: str) -> str:
    """``kind`` and an experiment's name in the letters an artifact key may have."""
    return re.sub(r"[^a-z0-9]+", "-", f"{kind}-{name}".lower()).strip("-")


@checkpoint_task("report checkpoints of {experiment_name}")
def report_checkpoints(config: CheckpointConfig, experiment_name: str) -> None:
    """Publish the table of an experiment's checkpoints, newest first."""
    checkpoints = manager_for(config, experiment_name).list_checkpoints(descending=True)
    metrics = dict.fromkeys(name for item in checkpoints for name in item.metrics)
    rows: list[Row] = []
    for item in checkpoints:
        row: Row = {
            "checkpoint": item.checkpoint_id,
            "mark": " ".join(_marks(item)),
            "epoch": item.epoch,
            "step": item.step,
            "size": size_text(item.file_size),
            "tags": ", ".join(item.tags),
            "sha256": item.checksum[:12],
        }
        # Every row has every metric, under a name that hides no other column.
        values = {f"metric {name}" if name in row else name: _cell(item.metrics.get(name)) for name in metrics}
        rows.append({"checkpoint": row.pop("checkpoint"), "mark": row.pop("mark"), **values, **row})
    _publish(rows, "checkpoints", experiment_name, f"Checkpoints of {experiment_name}, newest first")


@checkpoint_task("plot metrics of {experiment_name}")
def report_metrics(config: CheckpointConfig, experiment_name: str) -> None:
    """Publish a plot of every metric over the epochs."""
    from ckpt_lib.plots import metrics_figure

    checkpoints = manager_for(config, experiment_name).list_checkpoints()
    picture = io.BytesIO()
    metrics_figure(checkpoints).savefig(picture, format="svg")
    create_image_artifact(
        # Inside the artifact itself, so that the page shows it without reaching for another server.
        image_url="data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode(),
        key=artifact_key("metrics", experiment_name),
        description=f"Metrics of {experiment_name}; the star is the best checkpoint",
    )


@checkpoint_task("report validation of {name}")
def report_validation(
    name: str, reports: Sequence[ValidationReport], advice: Mapping[tuple[str, str], str] | None = None
) -> None:
    """Publish the outcome of validating some checkpoints, damaged ones first.

    ``name`` names the timeline; ``advice`` tells, by experiment and id, what was done or can be done about the
    damaged ones.
    """
    rows: list[Row] = [
        {
            "result": "intact" if report else "DAMAGED",
            "experiment": report.experiment_name,
            "checkpoint": report.checkpoint_id,
            "size": size_text(report.size_bytes),
            "finding": report.message,
            "repair": "" if report else (advice or {}).get((report.experiment_name, report.checkpoint_id), ""),
        }
        for report in sorted(reports, key=bool)
    ]
    damaged = sum(not report for report in reports)
    summary = f"{damaged} of {len(reports)} damaged" if damaged else f"all {len(reports)} intact"
    _publish(rows, "validation", name, f"Validation of {name}: {summary}")


@checkpoint_task("report comparison in {experiment_name}")
def report_comparison(experiment_name: str, comparison: dict[str, Any]) -> None:
    """Publish metrics and differing configuration side by side, a column for each checkpoint."""
    ids = comparison["checkpoint_ids"]
    rows: list[Row] = [
        {
            "kind": kind,
            "name": name,
            **{checkpoint_id: _cell(value) for checkpoint_id, value in zip(ids, values, strict=True)},
        }
        for kind in ("metrics", "config")
        for name, values in comparison[f"{kind}_comparison"].items()
    ]
    _publish(rows, "comparison", experiment_name, f"Comparison in {experiment_name}")


@checkpoint_task("report doctor of {experiment_name}")
def report_doctor(experiment_name: str, report: DoctorReport) -> None:
    """Publish what the doctor did and what is left, problems first."""
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
    _publish(left + done, "doctor", experiment_name, f"Doctor of {experiment_name}: {summary}")


@checkpoint_task("report cleanup of {experiment_name}")
def report_cleanup(experiment_name: str, report: CleanupReport) -> None:
    """Publish the retention plan, a reason for each line, and what became of it."""
    rows: list[Row] = [
        {
            "decision": _outcome(decision.keep, decision.checkpoint_id, report),
            "checkpoint": decision.checkpoint_id,
            "reason": report.spared.get(decision.checkpoint_id, decision.reason),
            "status": decision.status,
            "epoch": decision.epoch,
            "size": size_text(decision.size_bytes),
        }
        for decision in report.plan.decisions
    ]
    if report.dry_run:
        summary = f"would free {size_text(report.plan.freed_bytes)}"
    elif report.trashed_bytes:
        summary = f"moved {size_text(report.trashed_bytes)} to the trash"
    else:
        summary = f"freed {size_text(report.freed_bytes)}"
    leftovers = f"; leftovers of dead processes removed: {len(report.swept)}" if report.swept else ""
    _publish(rows, "cleanup", experiment_name, f"Retention of {experiment_name}: {summary}{leftovers}")


def _outcome(keep: bool, checkpoint_id: str, report: CleanupReport) -> str:
    if keep:
        return "keep"
    if report.dry_run:
        return "would delete"
    return "deleted" if checkpoint_id in report.deleted_ids else "spared"


def _publish(rows: list[Row], kind: str, name: str, description: str) -> None:
    create_table_artifact(table=rows, key=artifact_key(kind, name), description=description)


def _marks(item: CheckpointMetadata) -> list[str]:
    flags = {
        "best": item.is_best,
        "latest": item.is_latest,
        "pinned": item.pinned,
        "unhealthy": not item.healthy,
    }
    return [name for name, is_set in flags.items() if is_set]


def _cell(value: Any) -> Any:
    """A value that the artifact's page can show: an infinity would break the whole table."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return float(f"{value:.6g}") if abs(value) < 1 else round(value, 6)  # 3e-07 is not 0
    return value if isinstance(value, int | None) else str(value)


def size_text(size_bytes: float) -> str:
    """A size as people read it, in steps of 1,024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"
