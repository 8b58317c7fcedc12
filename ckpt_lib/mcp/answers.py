"""What tools answer: few facts, in models whose size is bounded whatever a store holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, Field

from ckpt_lib.advice.results import Advice
from ckpt_lib.analysis.results import CheckpointComparison, ExperimentSummary
from ckpt_lib.core.metadata import CheckpointMetadata, StoredMetric, marks_of
from ckpt_lib.core.monitor import Mode
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.maintenance.validate import ValidationReport

MOST_CHARACTERS = 12_000
"""Of each list in an answer, as JSON; what is left out is counted."""
_MOST_TEXT = 300
_MOST_CONFIG = 4_000
_MOST_METRICS = 20
_MOST_NAMES = 20
_MOST_DAMAGES = 10

Kept = TypeVar("Kept")


def fitting(items: Sequence[Kept], most_characters: int = MOST_CHARACTERS) -> list[Kept]:
    """Return the first items that fit together; at least one, each of which is bounded by itself."""
    kept: list[Kept] = []
    for item in items:
        most_characters -= len(item.model_dump_json() if isinstance(item, BaseModel) else json.dumps(item, default=str))
        if kept and most_characters < 0:
            break
        kept.append(item)
    return kept


def short(text: str, most: int = _MOST_TEXT) -> str:
    """Return a text, cut where it is long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first(names: Iterable[str], most: int = _MOST_NAMES) -> list[str]:
    """Return the first names, and in a last one how many there are besides."""
    every = list(names)
    more = [f"… {len(every) - most} more"] if len(every) > most else []
    return [short(name) for name in every[:most]] + more


def _first_metrics(metrics: Mapping[str, Any], most: int = _MOST_METRICS) -> dict[str, Any]:
    return {name: short(value) if isinstance(value, str) else value for name, value in list(metrics.items())[:most]}


class CheckpointAnswer(BaseModel):
    """A checkpoint in a list."""

    experiment_name: str
    checkpoint_id: str
    epoch: int
    step: int
    timestamp: AwareDatetime
    file_size: int = Field(description="In bytes.")
    marks: list[str] = Field(description="Of best, latest, pinned, unhealthy, incomplete and weights only.")
    tags: list[str]
    metrics: dict[str, StoredMetric]
    metrics_left_out: int = 0

    @classmethod
    def of(cls, checkpoint: CheckpointMetadata, **more: Any) -> Self:
        """Return what is said of a checkpoint."""
        return cls(
            experiment_name=checkpoint.experiment_name,
            checkpoint_id=checkpoint.checkpoint_id,
            epoch=checkpoint.epoch,
            step=checkpoint.step,
            timestamp=checkpoint.timestamp,
            file_size=checkpoint.file_size,
            marks=marks_of(checkpoint),
            tags=first(checkpoint.tags),
            metrics=_first_metrics(checkpoint.metrics),
            metrics_left_out=max(0, len(checkpoint.metrics) - _MOST_METRICS),
            **more,
        )


class DetailedCheckpoint(CheckpointAnswer):
    """One checkpoint."""

    model_name: str
    description: str
    checksum: str = Field(description="SHA-256 of the payload.")
    unhealthy: str | None
    parent_id: str | None = Field(description="The checkpoint it was trained on from.")
    run_id: str | None
    config_json: str = Field(description="The configuration of the run, as JSON; its end is cut off if it is long.")

    @classmethod
    def about(cls, checkpoint: CheckpointMetadata) -> Self:
        """Return all that is said of a checkpoint."""
        return cls.of(
            checkpoint,
            model_name=short(checkpoint.model_name),
            description=short(checkpoint.description, 2_000),
            checksum=checkpoint.checksum,
            unhealthy=None if checkpoint.unhealthy is None else short(checkpoint.unhealthy),
            parent_id=checkpoint.parent_id,
            run_id=checkpoint.run_id,
            config_json=short(json.dumps(checkpoint.config, ensure_ascii=False, default=str), _MOST_CONFIG),
        )


class CheckpointList(BaseModel):
    """Checkpoints, and how to go on."""

    items: list[CheckpointAnswer]
    next: str | None = Field(
        default=None, description="What `after` is to be for the next ones; null if there are none."
    )


class ExperimentAnswer(BaseModel):
    """An experiment in a list."""

    experiment_name: str
    total_checkpoints: int
    total_size_bytes: int
    best_checkpoint: str | None
    monitor_metric: str | None
    best_value: float | None
    latest_checkpoint: str | None
    latest_timestamp: AwareDatetime | None
    unreadable_checkpoints: int
    quarantined_checkpoints: int


class ExperimentList(BaseModel):
    """The experiments of the store."""

    items: list[ExperimentAnswer]
    left_out: int = Field(default=0, description="How many more there are; `search` narrows them down.")


class ValidationAnswer(BaseModel):
    """Whether every byte of a checkpoint is the one that was saved, and can be loaded."""

    experiment_name: str
    checkpoint_id: str
    is_valid: bool
    size_bytes: int = Field(description="How many bytes were read.")
    sha256: str
    findings: list[str] = Field(description="What is damaged, and which tensors lie there.")
    what_helps: Literal["repair", "quarantine"] | None = Field(
        default=None,
        description="`repair` if its backup has the damaged bytes; `quarantine` if nothing brings them back.",
    )

    @classmethod
    def of(cls, report: ValidationReport, what_helps: Literal["repair", "quarantine"] | None = None) -> Self:
        """Return what is said of a validation."""
        return cls(
            experiment_name=report.experiment_name,
            checkpoint_id=report.checkpoint_id,
            is_valid=report.is_valid,
            size_bytes=report.size_bytes,
            sha256=report.sha256,
            findings=first((damage.message for damage in report.damages), _MOST_DAMAGES),
            what_helps=what_helps,
        )


class BestAnswer(BaseModel):
    """The best checkpoint by a metric."""

    metric: str
    mode: Mode = Field(description="Whether the smallest or the largest value is the best.")
    checkpoint: CheckpointAnswer | None
    remark: str | None = Field(default=None, description="Why there is none.")
    validation: ValidationAnswer | None = Field(default=None, description="There if it was asked for.")


class ComparisonRow(BaseModel):
    """One thing compared: a value for each checkpoint, null where nothing was recorded."""

    part: Literal["metric", "config", "tag", "fact"]
    name: str
    values: list[StoredMetric | bool | str]


class ComparisonAnswer(BaseModel):
    """Checkpoints side by side; values are in the order of their ids."""

    checkpoint_ids: list[str]
    rows: list[ComparisonRow] = Field(description="Of the configuration, only what differs.")
    rows_left_out: int = 0

    @classmethod
    def of(cls, comparison: CheckpointComparison) -> Self:
        """Return what is said of a comparison."""
        parts: tuple[tuple[Any, Mapping[str, Any]], ...] = (
            ("metric", comparison["metrics_comparison"]),
            ("config", comparison["config_comparison"]),
            ("tag", comparison["tags_comparison"]),
            ("fact", comparison["metadata_comparison"]),
        )
        rows = [
            ComparisonRow(part=part, name=short(name), values=[_plain(value) for value in values])
            for part, named in parts
            for name, values in named.items()
        ]
        kept = fitting(rows)
        return cls(checkpoint_ids=comparison["checkpoint_ids"], rows=kept, rows_left_out=len(rows) - len(kept))


def _plain(value: Any) -> Any:
    if isinstance(value, dict | list | str):
        return short(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return value


class MetricAnswer(BaseModel):
    """The finite values of a metric, in the order of saving."""

    name: str
    count: int
    not_comparable: int = Field(description="How many other values there are, such as NaN.")
    first: float | None = None
    last: float | None = None
    min: float | None = None
    max: float | None = None


class SummaryAnswer(BaseModel):
    """An experiment in numbers."""

    experiment_name: str
    total_checkpoints: int
    total_size_mb: float = Field(description="In units of 1,048,576 bytes.")
    total_backups: int
    best_checkpoint: str | None
    latest_checkpoint: str | None
    first_epoch: int | None
    last_epoch: int | None
    monitor_metric: str
    mode: Mode
    monitor_warning: str | None
    pinned_checkpoints: list[str]
    tags: list[str]
    unreadable_checkpoints: list[str]
    statistics: list[MetricAnswer]
    statistics_left_out: int = 0

    @classmethod
    def of(cls, summary: ExperimentSummary) -> Self:
        """Return what is said of a summary."""
        metrics = [MetricAnswer(name=name, **_known(found)) for name, found in summary["statistics"].items()]
        kept = fitting(metrics)
        return cls(
            experiment_name=summary["experiment_name"],
            total_checkpoints=summary["total_checkpoints"],
            total_size_mb=round(summary["total_size_mb"], 3),
            total_backups=summary["total_backups"],
            monitor_metric=summary["monitor"]["metric"],
            mode=summary["monitor"]["mode"],
            monitor_warning=summary["monitor_warning"],
            pinned_checkpoints=first(summary["pinned_checkpoints"]),
            tags=first(summary["tags"]),
            unreadable_checkpoints=first(summary["unreadable_checkpoints"]),
            statistics=kept,
            statistics_left_out=len(metrics) - len(kept),
            best_checkpoint=summary["best_checkpoint"],
            latest_checkpoint=summary["latest_checkpoint"],
            first_epoch=summary["first_epoch"],
            last_epoch=summary["last_epoch"],
        )


def _known(statistics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in statistics.items() if name in MetricAnswer.model_fields}


class DecisionAnswer(BaseModel):
    """What a cleanup would do with a checkpoint, and why."""

    checkpoint_id: str
    outcome: Literal["stays", "loses all but its weights", "goes"]
    reason: str
    epoch: int
    size_bytes: int


class PlanAnswer(BaseModel):
    """What a cleanup would do. Nothing was changed."""

    policy: str
    stay: int
    go: int
    freed_bytes: int
    warning: str | None
    decisions: list[DecisionAnswer] = Field(description="What goes first, then what stays; the newest first.")
    decisions_left_out: int = 0

    @classmethod
    def of(cls, report: CleanupReport, policy: str) -> Self:
        """Return what is said of the plan of a cleanup."""
        plan = report.plan
        decisions = [
            DecisionAnswer(
                checkpoint_id=item.checkpoint_id,
                outcome="goes" if not item.keep else "loses all but its weights" if item.thin else "stays",
                reason=short(item.reason),
                epoch=item.epoch,
                size_bytes=item.size_bytes,
            )
            for item in sorted(plan.decisions, key=lambda item: (item.keep, not item.thin))
        ]
        kept = fitting(decisions)
        return cls(
            policy=short(policy),
            stay=len(plan.kept_ids),
            go=len(plan.deleted_ids),
            freed_bytes=plan.freed_bytes,
            warning=plan.warning,
            decisions=kept,
            decisions_left_out=len(decisions) - len(kept),
        )


class SuggestionAnswer(BaseModel):
    """One thing that can go."""

    kind: str
    name: str
    why: str
    freed_bytes: int
    certainty: str
    command: str | None = Field(description="The command that does it, without the options that name the store.")


class AdviceAnswer(BaseModel):
    """What can go from an experiment, and what that frees. Nothing was changed."""

    experiment_name: str
    total_bytes: int
    freed_bytes: int
    suggestions: list[SuggestionAnswer]
    suggestions_left_out: int = 0
    remarks: list[str]

    @classmethod
    def of(cls, advice: Advice) -> Self:
        """Return what is said of an advice."""
        suggestions = [
            SuggestionAnswer(
                kind=item.kind,
                name=short(item.name),
                why=short(item.why),
                freed_bytes=item.freed_bytes,
                certainty=item.certainty,
                command=item.command and short(item.command),
            )
            for item in advice.suggestions
        ]
        kept = fitting(suggestions)
        return cls(
            experiment_name=advice.place,
            total_bytes=advice.total_bytes,
            freed_bytes=advice.freed_bytes,
            suggestions=kept,
            suggestions_left_out=len(suggestions) - len(kept),
            remarks=first([*(item.message for item in advice.best), *advice.remarks]),
        )
