"""Each rule of retention by itself, and their combinations."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from ckpt_lib.errors import ConfigError
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
from tests.policies.plans import NOW, kept, reasons_of, record


def at(sequence: int, when: str, **facts: Any) -> RetentionRecord:
    return record(sequence, timestamp=datetime.fromisoformat(when), **facts)


def test_one_of_each_interval_stays() -> None:
    """The first saved; a run that begins again from an earlier epoch does not take its place."""
    records = [record(n, epoch=epoch, step=100 * epoch) for n, epoch in enumerate([3, 5, 9, 10, 25, 11, 30, 31], 1)]
    assert kept(records, KeepEvery(epochs=10)) == {"c1", "c4", "c5", "c7", "c8"}
    assert kept(records, KeepEvery(steps=1500)) == {"c1", "c5", "c7", "c8"}
    assert reasons_of(records, KeepEvery(epochs=10))["c5"] == "first of its 10 epochs"
    assert reasons_of(records, KeepEvery(steps=1))["c5"] == "first of its step"


def test_hours_are_those_of_the_time_stamps() -> None:
    """Whatever zone they are written in, and in whatever order the clock gave them."""
    records = [
        at(1, "2024-03-31T01:30:00+01:00"),  # 00:30 in UTC, before daylight saving begins
        at(2, "2024-03-31T03:10:00+02:00"),  # 01:10
        at(3, "2024-03-31T00:59:59+00:00"),
        at(4, "2023-03-31T00:59:59+00:00"),  # the clock was put back a year
        at(5, "2024-03-31T01:20:00+00:00"),
    ]
    assert kept(records, KeepEvery(hours=1)) == {"c1", "c2", "c4", "c5"}
    assert kept(records, KeepPeriods(hourly=2)) == {"c4", "c5"}
    assert kept(records, KeepPeriods(yearly=2)) == {"c4", "c5"}
    assert kept(records, KeepPeriods(hourly=3)) == {"c3", "c4", "c5"}


def test_periods_skip_gaps() -> None:
    """The newest of each of the last days, weeks and months that have one."""
    days = ["2024-01-30", "2024-01-31", "2024-02-04", "2024-02-05", "2024-02-05", "2024-03-20"]
    records = [at(n, f"{day}T12:00:0{n}+00:00") for n, day in enumerate(days, 1)]
    assert kept(records, KeepPeriods(daily=3)) == {"c6", "c5", "c3"}
    assert kept(records, KeepPeriods(weekly=3)) == {"c6", "c5", "c3"}
    assert kept(records, KeepPeriods(monthly=3)) == {"c6", "c5", "c2"}
    reasons = reasons_of(records, KeepPeriods(daily=2, monthly=3))
    assert reasons["c5"] == "daily 2 of 2, monthly 2 of 3"
    assert reasons["c2"] == "monthly 3 of 3"


def test_age_is_that_of_the_time_stamp() -> None:
    """Just as old as said is kept; a checkpoint from the future is new."""
    ages = {"c1": 86401, "c2": 86400, "c3": -500_000, "c4": 200_000, "c5": 0}
    records = [record(int(name[1:]), timestamp=NOW - timedelta(seconds=age)) for name, age in ages.items()]
    for policy in (KeepNewerThan(days=1), KeepNewerThan(hours=24), KeepNewerThan(seconds=86400)):
        assert kept(records, policy, monitors=[]) == {"c2", "c3", "c5"}
    assert reasons_of(records, KeepNewerThan(days=1))["c3"] == "newer than 1 day"
    assert reasons_of(records, KeepNewerThan(hours=24))["c3"] == "newer than 24 hours"


def test_a_budget_holds_the_newest() -> None:
    """One larger than all of it is passed over, pinned ones stay besides, and the first that does not fit ends it."""
    sizes = [10, 30, 30, 500, 30, 20]
    records = [record(n, size_bytes=size, pinned=n == 5) for n, size in enumerate(sizes, 1)]
    assert kept(records, KeepWithin(budget_bytes=60)) == {"c3", "c5", "c6"}
    assert kept(records, KeepWithin(budget_bytes=80)) == {"c2", "c3", "c5", "c6"}
    assert reasons_of(records, KeepWithin(budget_bytes=1000))["c1"] == "newest within 1,000 bytes"


def test_reasons_of_combinations() -> None:
    """They name what decided."""
    records = [record(1, tags=("a",)), record(2, tags=("a", "b")), record(3, tags=("b",)), record(4)]
    tagged_a, tagged_b = KeepTagged(tags=("a",)), KeepTagged(tags=("b",))
    assert reasons_of(records, KeepAnyOf(policies=(tagged_b, tagged_a)))["c2"] == "tagged 'b'"
    assert reasons_of(records, KeepAllOf(policies=(tagged_b, tagged_a)))["c2"] == "tagged 'b' and tagged 'a'"
    assert reasons_of(records, KeepNot(policy=tagged_b))["c1"] == "not tagged 'b'"
    neither = KeepNot(policy=KeepAnyOf(policies=(KeepTagged(tags=("b", "c")), KeepNewerThan(days=1))))
    reasons = reasons_of(records, neither, now=NOW + timedelta(days=2))
    assert reasons["c1"] == "not (tagged 'b' or 'c' or newer than 1 day)"
    assert reasons["c3"] == "no rule keeps it"
    every = KeepAllOf(policies=(KeepNewest(count=3), KeepNot(policy=tagged_b)))
    assert str(every) == "(newest 3 and not tagged 'b')"
    assert reasons_of([*records, record(5)], every)["c4"] == "newest 2 of 3 and not tagged 'b'"


def test_not_is_refused_where_it_would_eat_away() -> None:
    """All but the newest two: after each cleanup two others are the newest. The policy cannot be made."""
    for pick in (KeepNewest(), KeepBest(), KeepAtMost(), KeepWithin(budget_bytes=1), KeepEvery(hours=1)):
        for inner in (pick, KeepAnyOf(policies=(KeepPinned(), pick)), KeepAllOf(policies=(pick, KeepPinned()))):
            with pytest.raises(ConfigError, match="each cleanup would delete more"):
                KeepNot(policy=inner)
