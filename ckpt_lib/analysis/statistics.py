"""Tables and statistics of an experiment's checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from ckpt_lib.analysis.notebook import BYTES_PER_MB, Summary
from ckpt_lib.analysis.results import ExperimentSummary, MetricStatistics
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.policies.ranking import is_rankable


def checkpoint_frame(checkpoints: Sequence[CheckpointMetadata]) -> pd.DataFrame:
    """Return a row for each checkpoint, indexed by id: its facts, and a column ``metrics.<name>`` for each metric."""
    rows = [
        {
            **checkpoint.model_dump(exclude={"metrics", "added_metrics", "config"}),
            **{f"metrics.{name}": value for name, value in checkpoint.metrics.items()},
        }
        for checkpoint in checkpoints
    ]
    return pd.DataFrame(rows).set_index("checkpoint_id") if rows else pd.DataFrame()


def metric_statistics(checkpoints: Sequence[CheckpointMetadata]) -> dict[str, MetricStatistics]:
    """Return the statistics of each metric; ``checkpoints`` are in the order of saving."""
    names = sorted({name for checkpoint in checkpoints for name in checkpoint.metrics})
    return {name: _statistics([item.metrics[name] for item in checkpoints if name in item.metrics]) for name in names}


def _statistics(values: Sequence[Any]) -> MetricStatistics:
    series = pd.Series([value for value in values if is_rankable(value)], dtype="float64")
    counts: MetricStatistics = {"count": len(series), "not_comparable": len(values) - len(series)}
    if series.empty:
        return counts
    with np.errstate(over="ignore", invalid="ignore"):  # the statistics of huge values may be infinite
        return {
            **counts,
            "min": float(series.min()),
            "max": float(series.max()),
            "mean": float(series.mean()),
            "std": float(series.std(ddof=0)),
            "first": float(series.iloc[0]),
            "last": float(series.iloc[-1]),
        }


def summarize(
    checkpoints: Sequence[CheckpointMetadata],
    experiment_name: str,
    *,
    total_backups: int,
    unreadable: Sequence[str],
    monitor: Monitor,
    monitor_warning: str | None,
) -> ExperimentSummary:
    """Summarise what an experiment holds; ``unreadable`` are the ids whose manifest cannot be read."""
    summary: ExperimentSummary = {
        "experiment_name": experiment_name,
        "total_checkpoints": len(checkpoints),
        "total_size_mb": sum(checkpoint.file_size for checkpoint in checkpoints) / BYTES_PER_MB,
        "total_backups": total_backups,
        "unreadable_checkpoints": list(unreadable),
        "best_checkpoint": next((item.checkpoint_id for item in checkpoints if item.is_best), None),
        "latest_checkpoint": next((item.checkpoint_id for item in checkpoints if item.is_latest), None),
        "first_epoch": min((item.epoch for item in checkpoints), default=None),
        "last_epoch": max((item.epoch for item in checkpoints), default=None),
        "pinned_checkpoints": [item.checkpoint_id for item in checkpoints if item.pinned],
        "tags": sorted({tag for item in checkpoints for tag in item.tags}),
        "monitor": {"metric": monitor.metric, "mode": monitor.mode},
        "monitor_warning": monitor_warning,
        "statistics": metric_statistics(checkpoints),
    }
    return cast(ExperimentSummary, Summary(summary))
