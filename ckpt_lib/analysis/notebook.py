"""What notebooks show of an experiment, of a comparison and of a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from ckpt_lib.core import html
from ckpt_lib.core.metadata import CheckpointMetadata, marks_of
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import count_of, size_text

BYTES_PER_MB = 2**20
_NEWEST_SHOWN = 10
_READABLE: dict[str, Callable[[Any], Any]] = {"file_size": size_text, "timestamp": datetime.fromisoformat}


class Comparison(dict[str, Any]):
    """A ``CheckpointComparison``: a dictionary, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        # Keys may have been taken out: it is the user's dictionary.
        ids = self.get("checkpoint_ids", [])
        rows, before = [], ""
        for part, name, values in comparison_rows(self):
            rows.append(("" if part == before else part, name, *_readable(part, name, values)))
            before = part
        return html.block("Comparison", html.table(("", "", *ids), rows), detail=count_of(len(ids), "checkpoint"))


def _readable(part: str, name: str, values: list[Any]) -> list[Any]:
    readable = _READABLE.get(name) if part == "checkpoint" else None
    return values if readable is None else [readable(value) for value in values]


def comparison_rows(comparison: dict[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Yield the rows of a comparison: the part they belong to, a name, and a value for each checkpoint.

    Tensors are compared with those of the first checkpoint: their relative distance, or their shapes if these differ.
    """
    parts = (
        ("checkpoint", "metadata_comparison"),
        ("metric", "metrics_comparison"),
        ("config", "config_comparison"),
        ("tag", "tags_comparison"),
    )
    for part, key in parts:
        for name, values in comparison.get(key, {}).items():
            yield part, name, values
    others: dict[str, dict[str, Any]] = comparison.get("tensors_comparison", {})
    for name in dict.fromkeys(name for tensors in others.values() for name in tensors):
        yield "tensor", name, [None, *(_distance(tensors.get(name)) for tensors in others.values())]


def _distance(difference: Any) -> Any:
    if difference is None:
        return None
    return difference.get("relative_l2", f"shapes {difference.get('shapes')}")


class Summary(dict[str, Any]):
    """An ``ExperimentSummary``: a dictionary, which notebooks show as tables."""

    def _repr_html_(self) -> str:
        monitor = self.get("monitor") or {}
        found = {
            "best": self.get("best_checkpoint"),
            "best by": f"{monitor.get('metric', '')} ({monitor.get('mode', '')})",
            "latest": self.get("latest_checkpoint"),
            "epochs": f"{self['first_epoch']} to {self['last_epoch']}" if self.get("last_epoch") is not None else None,
            "pinned": self.get("pinned_checkpoints"),
            "tags": self.get("tags"),
            "unreadable": self.get("unreadable_checkpoints"),
        }
        columns = ("first", "last", "min", "max", "mean", "std", "count")
        rows = [
            (name, *(numbers.get(column) for column in columns)) for name, numbers in self.get("statistics", {}).items()
        ]
        held = (
            f"{count_of(self.get('total_checkpoints', 0), 'checkpoint')}, "
            f"{size_text(round(self.get('total_size_mb', 0) * BYTES_PER_MB))}, "
            f"{count_of(self.get('total_backups', 0), 'backup')}"
        )
        return html.block(
            str(self.get("experiment_name", "")),
            html.paragraph(self.get("monitor_warning") or ""),
            html.facts(found),
            html.table(("metric", *columns), rows, numeric=columns),
            detail=held,
        )


def experiment_html(
    name: str,
    place: str,
    checkpoints: Sequence[CheckpointMetadata],
    monitor: Monitor,
    warning: str | None,
) -> str:
    """Return an experiment in a few numbers, its best checkpoint, and its newest ones, the newest first."""
    best = next((item for item in checkpoints if item.is_best), None)
    header = ("checkpoint", "epoch", monitor.metric, "saved", "size", "marks")
    rows = [
        (
            item.checkpoint_id,
            item.epoch,
            item.metrics.get(monitor.metric),
            item.timestamp,
            size_text(item.file_size),
            (*marks_of(item), *item.tags),
        )
        for item in reversed(checkpoints[-_NEWEST_SHOWN:])
    ]
    held = f"{count_of(len(checkpoints), 'checkpoint')}, {size_text(sum(item.file_size for item in checkpoints))}"
    best_is = (
        None
        if best is None
        else f"{best.checkpoint_id}, {monitor.metric} {html.value_text(best.metrics.get(monitor.metric))}"
    )
    older = len(checkpoints) - len(rows)
    return html.block(
        name,
        html.facts({"store": place, "best": best_is}),
        html.paragraph(warning or ""),
        html.table(header, rows, numeric=("epoch", monitor.metric, "size")),
        html.paragraph(f"{older:,} older: list_checkpoints has all of them." if older else ""),
        detail=held,
    )
