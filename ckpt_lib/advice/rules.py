"""Which of some checkpoints another one makes superfluous. Pure: what protects a checkpoint is decided before."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ckpt_lib.advice.directions import Directions
from ckpt_lib.core.metadata import Metric
from ckpt_lib.policies.ranking import is_rankable

if TYPE_CHECKING:
    import numpy as np

WHOLE_COUNT = 3
"""How many of the newest checkpoints keep all of their state, unless ``thin_after`` says otherwise."""


@dataclass(frozen=True)
class Candidate:
    """A sound checkpoint, as far as it is compared with others."""

    name: str
    order: int
    """Later checkpoints have larger ones."""
    epoch: int
    step: int
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    content: str | None = None
    """A digest that only checkpoints of the same content share; ``None`` when not known."""
    is_full: bool = True
    """Whether a run could go on from it."""
    healthy: bool = True
    group: str = ""
    """Only checkpoints of one group are compared by their metrics."""


def duplicates(candidates: Iterable[Candidate], protected: Collection[str]) -> dict[str, str]:
    """Map each checkpoint that another one stands for to that other one.

    The one that stays is protected if any is, holds all of the state if any does, and is the newest of those. It has
    each metric of those that go. What is protected never goes.
    """
    alike: dict[str, list[Candidate]] = {}
    for item in candidates:
        if item.content is not None:
            alike.setdefault(item.content, []).append(item)
    found: dict[str, str] = {}
    for group in alike.values():
        best = max(group, key=lambda item: (item.is_full, item.name in protected, item.order))
        for item in group:
            if item is not best and item.name not in protected and _has_metrics_of(best, item):
                found[item.name] = best.name
    return found


def _has_metrics_of(kept: Candidate, item: Candidate) -> bool:
    return all(name in kept.metrics and _is_same(kept.metrics[name], value) for name, value in item.metrics.items())


def _is_same(one: Metric, other: Metric) -> bool:
    are_nan = isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other)
    return one == other or are_nan


def dominated(
    candidates: Sequence[Candidate], protected: Collection[str], directions: Directions
) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Map each checkpoint that is worse than another in every metric to that one, and the metrics compared.

    The other is healthy, of the same group and of no lesser epoch and step, and is itself dominated by none. A metric
    counts when it is a finite number and its direction is known; one whose direction is not known has to be the same
    in both. A checkpoint without any metric that counts stays, and so does what is protected.
    """
    groups: dict[str, list[Candidate]] = {}
    for item in candidates:
        groups.setdefault(item.group, []).append(item)
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for group in groups.values():
        columns = _Columns([item for item in group if item.healthy], directions)
        for item in group:
            if item.name not in protected and (better := columns.better_than(item)):
                found[item.name] = better
    return found


class _Columns:
    """The metrics of checkpoints, one array for each metric: the smaller, the better."""

    def __init__(self, others: Sequence[Candidate], directions: Directions) -> None:
        import numpy as np  # only where there is something to compare

        self._others = others
        self._directions = directions
        self._epochs = np.array([item.epoch for item in others], dtype=np.int64)
        self._steps = np.array([item.step for item in others], dtype=np.int64)
        self._values: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self._codes: dict[frozenset[tuple[str, Metric]], int] = {}
        self._incomparable = np.array([self._code(item) for item in others], dtype=np.int64)

    def better_than(self, item: Candidate) -> tuple[str, tuple[str, ...]] | None:
        import numpy as np

        compared = self._compared(item)
        if not compared:
            return None
        is_later = (self._epochs >= item.epoch) & (self._steps >= item.step)
        left = np.flatnonzero(is_later & (self._incomparable == self._code(item)))
        for name, sign in compared.items():
            # NaN, which stands for a missing value too, is never smaller.
            left = left[self._column(name, sign)[left] < self._signed(item, name, sign)]
        if not left.size:
            return None
        name, sign = next(iter(compared.items()))
        # The best by one of the metrics: whatever dominates this one would dominate the item, and be better still.
        best = left[np.argmin(self._column(name, sign)[left])]
        return self._others[best].name, tuple(compared)

    def _compared(self, item: Candidate) -> dict[str, int]:
        """Return the metrics that count, each with the sign that makes smaller values better."""
        modes = {name: self._directions.mode(name) for name, value in item.metrics.items() if is_rankable(value)}
        return {name: 1 if mode == "min" else -1 for name, mode in modes.items() if mode}

    def _column(self, name: str, sign: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        import numpy as np

        if name not in self._values:
            self._values[name] = np.array([self._signed(item, name, sign) for item in self._others], np.float64)
        return self._values[name]

    @staticmethod
    def _signed(item: Candidate, name: str, sign: int) -> float:
        value = item.metrics.get(name)
        return float(sign * value) if is_rankable(value) else math.nan

    def _code(self, item: Candidate) -> int:
        """Return a number that those share which are the same in what cannot be said to be better or worse."""
        values = frozenset(
            (name, "NaN" if isinstance(value, float) and math.isnan(value) else value)
            for name, value in item.metrics.items()
            if self._directions.mode(name) is None and self._directions.is_quality(name)
        )
        return self._codes.setdefault(values, len(self._codes))
