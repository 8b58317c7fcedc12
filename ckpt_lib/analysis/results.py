"""What comparisons and summaries return: plain dictionaries with typed keys, which JSON takes as they are."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ckpt_lib.core.metadata import StoredMetric
from ckpt_lib.core.monitor import Mode


class TensorDifference(TypedDict):
    """The difference of a tensor from that of the first checkpoint: two distances, or the shapes where these differ.

    ``relative_l2`` is the Euclidean norm of the difference over that of the first tensor. In ``shapes``, ``None``
    stands for a tensor that is missing.
    """

    max_abs_difference: NotRequired[float]
    relative_l2: NotRequired[float]
    shapes: NotRequired[list[list[int] | None]]


class ComparedFacts(TypedDict):
    """The facts of the compared checkpoints, each a list in the order of their ids; times are in ISO 8601."""

    epoch: list[int]
    step: list[int]
    timestamp: list[str]
    file_size: list[int]
    model_name: list[str]
    is_best: list[bool]
    is_latest: list[bool]


class CheckpointComparison(TypedDict):
    """Checkpoints side by side. Lists are in the order of ``checkpoint_ids``, with ``None`` for what was not recorded.

    Ids of another experiment have its name before them, as in ``run-7/checkpoint_…``. ``config_comparison`` holds only
    options that differ; dots join the names of nested ones. ``tensors_comparison``
    maps each further id to the differences of its tensors; it is there if it was asked for.
    """

    checkpoint_ids: list[str]
    metrics_comparison: dict[str, list[StoredMetric]]
    config_comparison: dict[str, list[Any]]
    tags_comparison: dict[str, list[bool]]
    metadata_comparison: ComparedFacts
    tensors_comparison: NotRequired[dict[str, dict[str, TensorDifference]]]


class MetricStatistics(TypedDict):
    """Statistics of a metric's finite values in the order of saving; without such a value, the counts alone.

    ``not_comparable`` counts the values that are NaN, infinite, text or ``None``.
    """

    count: int
    not_comparable: int
    min: NotRequired[float]
    max: NotRequired[float]
    mean: NotRequired[float]
    std: NotRequired[float]
    first: NotRequired[float]
    last: NotRequired[float]


class MonitorFacts(TypedDict):
    """The metric that decides which checkpoint is the best, and whether its minimum or maximum is."""

    metric: str
    mode: Mode


class ExperimentSummary(TypedDict):
    """The content of an experiment in numbers. A megabyte is 1,048,576 bytes.

    ``unreadable_checkpoints`` are those whose manifest cannot be read; they count nowhere else. ``monitor_warning``
    says why no checkpoint is the best.
    """

    experiment_name: str
    total_checkpoints: int
    total_size_mb: float
    total_backups: int
    unreadable_checkpoints: list[str]
    best_checkpoint: str | None
    latest_checkpoint: str | None
    first_epoch: int | None
    last_epoch: int | None
    pinned_checkpoints: list[str]
    tags: list[str]
    monitor: MonitorFacts
    monitor_warning: str | None
    statistics: dict[str, MetricStatistics]
