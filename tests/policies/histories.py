"""Arbitrary histories of checkpoints, and arbitrary policies."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from ckpt_lib.core.monitor import Monitor
from ckpt_lib.policies.retention import (
    KeepAllOf,
    KeepAnyOf,
    KeepAtMost,
    KeepBest,
    KeepEvery,
    KeepNewerThan,
    KeepNewest,
    KeepNot,
    KeepPeriods,
    KeepPinned,
    KeepTagged,
    KeepWithin,
    RetentionRecord,
)
from tests.policies.plans import NOW
from tests.torture.retention import ZONES

MODES: Any = st.sampled_from(["min", "max"])
METRICS = st.sampled_from(["val_loss", "acc", "absent"])
MONITORS = st.lists(st.builds(Monitor, metric=METRICS, mode=MODES), max_size=3)
TAGS = st.lists(st.sampled_from(["keep", "release", "x"]), max_size=2, unique=True).map(tuple)
STATUSES: Any = st.sampled_from(["valid", "valid", "unverified", "damaged"])
SOUND = st.sampled_from([True, True, True, False])

values = st.one_of(
    st.sampled_from([0.0, 1.0, 1.0, 2.0, math.nan, math.inf, -math.inf]), st.none(), st.just("text"), st.integers(-3, 3)
)
metrics_of_one = st.dictionaries(st.sampled_from(["val_loss", "acc"]), values)
shifts = st.one_of(
    st.integers(-400, 400).map(lambda days: timedelta(days=days)),
    st.integers(-90, 90).map(lambda minutes: timedelta(minutes=minutes)),
)


@st.composite
def histories(draw: st.DrawFn) -> list[RetentionRecord]:
    """Up to nine checkpoints in any order, with clocks that jump and sequences with gaps."""
    count = draw(st.integers(0, 9))
    sequences = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count, unique=True))
    return [
        RetentionRecord(
            checkpoint_id=f"c{sequence}",
            sequence=sequence,
            epoch=draw(st.integers(0, 12)),
            step=draw(st.integers(0, 30)),
            timestamp=(NOW + draw(shifts)).astimezone(draw(st.sampled_from(ZONES))),
            size_bytes=draw(st.integers(0, 100)),
            metrics=draw(metrics_of_one),
            tags=draw(TAGS),
            pinned=draw(st.integers(0, 4)) == 0,
            status=draw(STATUSES),
            healthy=draw(SOUND),
        )
        for sequence in sequences
    ]


def one_of_units(*units: str) -> Any:
    return st.tuples(st.sampled_from(units), st.integers(1, 30)).map(lambda pair: dict([pair]))


PERIODS = ("hourly", "daily", "weekly", "monthly", "yearly")
counts_by_period: Any = st.dictionaries(st.sampled_from(PERIODS), st.integers(1, 3), min_size=1)
verdicts: Any = st.one_of(
    one_of_units("seconds", "hours", "days").map(lambda length: KeepNewerThan(**length)),
    st.builds(KeepTagged, tags=st.lists(st.sampled_from(["keep", "release"]), min_size=1).map(tuple)),
    st.builds(KeepPinned),
)
picks: Any = st.one_of(
    st.builds(KeepNewest, count=st.integers(0, 5)),
    st.builds(KeepBest, metric=METRICS, mode=MODES, count=st.integers(0, 3)),
    st.builds(KeepAtMost, count=st.integers(0, 5), metric=METRICS, mode=MODES),
    st.builds(KeepWithin, budget_bytes=st.integers(0, 250)),
    one_of_units("epochs", "steps", "hours").map(lambda length: KeepEvery(**length)),
    counts_by_period.map(lambda counts: KeepPeriods(**counts)),
)


def combined(inner: Any) -> Any:
    some = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(st.builds(KeepAnyOf, policies=some), st.builds(KeepAllOf, policies=some))


opposites: Any = st.recursive(verdicts, lambda inner: combined(inner) | st.builds(KeepNot, policy=inner), max_leaves=3)
policies: Any = st.recursive(
    st.one_of(picks, picks, opposites, st.builds(KeepNot, policy=opposites)), combined, max_leaves=4
)
