"""Ranking of checkpoints by a metric. Only finite numbers compete, so NaN, text and ``None`` are never the best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeGuard, TypeVar

from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.wording import did_you_mean


class Ranked(Protocol):
    """A checkpoint as far as ranking needs it."""

    @property
    def sequence(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    @property
    def healthy(self) -> bool: ...


class HasMetrics(Protocol):
    """Anything with metrics."""

    @property
    def metrics(self) -> Mapping[str, Metric]: ...


R = TypeVar("R", bound=Ranked)

AFTER_FIRST_SAVE = "`ckpt monitor METRIC --mode min` (or max) or set_monitor() chooses another one."
BEFORE_FIRST_SAVE = (
    "Nothing has been saved yet: set monitor_metric in the configuration. After the first save, use "
    "`ckpt monitor METRIC --mode min` (or max) or set_monitor()."
)


def is_rankable(value: Metric) -> TypeGuard[float]:
    """Return whether ``value`` competes: whether it is a finite number."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def is_better(value: Metric, than: Metric, mode: Mode) -> bool:
    """Return whether ``value`` beats ``than``. A tie does not; a finite number beats what does not compete."""
    if not is_rankable(value):
        return False
    if not is_rankable(than):
        return True
    return value < than if mode == "min" else value > than


def ranked(records: Iterable[R], monitor: Monitor) -> list[R]:
    """Return the healthy records with a finite value, best first, and earlier ones first among equals."""
    sign = 1 if monitor.mode == "min" else -1
    healthy = (record for record in records if record.healthy)
    competing = [(value, record) for record in healthy if is_rankable(value := record.metrics.get(monitor.metric))]
    return [record for value, record in sorted(competing, key=lambda pair: (sign * pair[0], pair[1].sequence))]


def missing_metric(monitor: Monitor, checkpoints: Iterable[HasMetrics], *, is_recorded: bool = True) -> str | None:
    """Return a warning if ``checkpoints`` have metrics, but none has the monitored one; else ``None``.

    ``is_recorded`` says whether a save has recorded the monitor already.
    """
    logged = {name for checkpoint in checkpoints for name in checkpoint.metrics}
    if not logged or monitor.metric in logged:
        return None
    hint = did_you_mean(monitor.metric, logged, otherwise=f"The metrics are {', '.join(sorted(logged)[:10])}.")
    return (
        f"no checkpoint is the best: the monitored metric {monitor.metric!r} was never logged. {hint} "
        f"{AFTER_FIRST_SAVE if is_recorded else BEFORE_FIRST_SAVE}"
    )
