"""Which value of a metric is better. Only finite numbers compete: NaN, infinities, text and ``None`` are never best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeGuard, TypeVar

from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.wording import did_you_mean


class Ranked(Protocol):
    """What ranking needs to know of a checkpoint."""

    @property
    def sequence(self) -> int: ...

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    @property
    def healthy(self) -> bool: ...


class HasMetrics(Protocol):
    """Anything that has recorded metrics."""

    @property
    def metrics(self) -> Mapping[str, Metric]: ...


R = TypeVar("R", bound=Ranked)

AFTER_FIRST_SAVE = "`ckpt monitor` and set_monitor() change what is monitored."
BEFORE_FIRST_SAVE = (
    "Nothing has been saved yet, so monitor_metric of the configuration changes what is monitored; after the first "
    "save, `ckpt monitor` and set_monitor() do."
)


def is_rankable(value: Metric) -> TypeGuard[float]:
    """Whether ``value`` can be compared at all."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def is_better(value: Metric, than: Metric, mode: Mode) -> bool:
    """Whether ``value`` beats ``than``; any finite number beats one that does not compete, and a tie beats nothing."""
    if not is_rankable(value):
        return False
    if not is_rankable(than):
        return True
    return value < than if mode == "min" else value > than


def ranked(records: Iterable[R], monitor: Monitor) -> list[R]:
    """The records that compete, best first; of equals, the earlier saved comes first. Unhealthy ones do not compete."""
    sign = 1 if monitor.mode == "min" else -1
    healthy = (record for record in records if record.healthy)
    competing = [(value, record) for record in healthy if is_rankable(value := record.metrics.get(monitor.metric))]
    return [record for value, record in sorted(competing, key=lambda pair: (sign * pair[0], pair[1].sequence))]


def missing_metric(monitor: Monitor, checkpoints: Iterable[HasMetrics], *, is_recorded: bool = True) -> str | None:
    """Return what to say if ``checkpoints`` have recorded metrics, but none the monitored one; else ``None``.

    ``is_recorded`` says whether an experiment records the monitor already.
    """
    logged = {name for checkpoint in checkpoints for name in checkpoint.metrics}
    if not logged or monitor.metric in logged:
        return None
    hint = did_you_mean(monitor.metric, logged, otherwise=f"The metrics are {', '.join(sorted(logged)[:10])}.")
    return (
        f"no checkpoint is the best: the monitored metric {monitor.metric!r} was never logged. {hint} "
        f"{AFTER_FIRST_SAVE if is_recorded else BEFORE_FIRST_SAVE}"
    )
