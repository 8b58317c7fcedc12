"""Whether the best that a training has seen was saved, and can still be loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ckpt_lib.advice.results import BestValue
from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.policies.ranking import is_better, is_rankable


@dataclass(frozen=True)
class Seen:
    """A moment of a training whose metrics are known."""

    metrics: Mapping[str, Metric]
    epoch: int | None = None
    step: int | None = None
    name: str = ""
    """The checkpoint, or the log."""
    remark: str = ""
    """Where the checkpoint is, and what brings it back; empty for a moment that a log tells of."""


def best_value(
    monitor: Monitor, saved: Iterable[Seen], elsewhere: Iterable[Seen], *, has_log: bool
) -> BestValue | None:
    """Compare what can be loaded with what is known from ``elsewhere``; ``None`` where nobody has such a value.

    With ``has_log``, all that the training has measured is known.
    """
    metric, mode = monitor.metric, monitor.mode
    best, better = _best(monitor, saved), _best(monitor, elsewhere)
    if best is None and better is None:
        return None
    saved_value = None if best is None else _number(best, metric)
    is_saved: bool | None
    if better is not None and is_better(better.metrics[metric], saved_value, mode):
        known, is_saved = better, bool(better.remark)
        message = _of_better(metric, _number(better, metric), better, best)
    else:
        assert best is not None
        known, is_saved = best, True if has_log else None
        message = f"The best {metric}, {saved_value:.6g}, is that of {best.name}"
        message += "." if has_log else "; without a log, a better one that was never saved cannot be told."
    return BestValue(
        metric=metric,
        mode=mode,
        saved_value=saved_value,
        saved_name=best.name if best else None,
        value=_number(known, metric),
        step=known.step,
        epoch=known.epoch,
        is_saved=is_saved,
        message=message,
    )


def _of_better(metric: str, value: float, better: Seen, best: Seen | None) -> str:
    found = "no other one has a value" if best is None else f"the best saved has {_number(best, metric):.6g}"
    if better.remark:
        return f"The best {metric}, {value:.6g}, is that of {better.name}, {better.remark}; {found}."
    place = " ".join(f"{name} {at}" for name, at in (("epoch", better.epoch), ("step", better.step)) if at is not None)
    where = f" at {place}" if place else ""
    return f"The best {metric}, {value:.6g}{where}, was never saved: {found} ({better.name} tells)."


def _best(monitor: Monitor, moments: Iterable[Seen]) -> Seen | None:
    best: Seen | None = None
    for moment in moments:
        value = moment.metrics.get(monitor.metric)
        if is_rankable(value) and (best is None or is_better(value, best.metrics[monitor.metric], monitor.mode)):
            best = moment
    return best


def _number(moment: Seen, metric: str) -> float:
    value = moment.metrics[metric]
    assert is_rankable(value)
    return float(value)
