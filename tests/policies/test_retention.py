"""Retention: what is kept come what may, each with its reason."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.retention import (
    KeepAllOf,
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
    RetentionPolicy,
)
from tests.policies.plans import NOW, kept, plan_of, reasons_of, record

# --- examples of what the disasters of others look like ---


@pytest.mark.parametrize(
    "policy",
    [
        KeepAtMost(count=0),
        KeepNewest(count=0),
        KeepBest(count=0),
        KeepTagged(tags=("x",)),
        KeepWithin(budget_bytes=0),
        KeepNewerThan(seconds=1),
        KeepPinned(),
        KeepNot(policy=KeepNot(policy=KeepPinned())),
        KeepAllOf(policies=(KeepNewest(count=5), KeepPinned())),
    ],
)
def test_no_policy_deletes_everything(policy: RetentionPolicy) -> None:
    """A limit of nothing keeps the newest and the best valid one."""
    later = NOW + timedelta(days=1)
    assert kept([record(1, 5.0), record(2, 1.0), record(3, 3.0)], policy, now=later) == {"c2", "c3"}


def test_a_damaged_checkpoint_counts_for_nothing() -> None:
    """It takes no place in the limit, is not the newest and not the best; and it waits for repair."""
    damaged = [record(n, 0.0, status="damaged") for n in (4, 5, 6)]
    assert kept([record(1, 9.0), record(2, 2.0), record(3, 3.0), *damaged], KeepAtMost(count=2)) == {
        "c2",
        "c3",
        "c4",
        "c5",
        "c6",
    }


def test_damaged_ones_take_no_place_of_whole_ones() -> None:
    """Two are to stay, and three newer ones are damaged: the two newest whole ones do, and the best."""
    damaged = [record(n, 0.0, status="damaged") for n in (5, 6, 7)]
    whole = [record(1, 1.0), record(2, 9.0), record(3, 5.0), record(4, 3.0)]
    assert kept([*whole, *damaged], KeepNewest(count=2)) == {"c1", "c3", "c4", "c5", "c6", "c7"}


def test_an_unverified_newest_does_not_cost_the_newest_valid_one() -> None:
    """It may turn out damaged, and then the valid one is all there is."""
    records = [record(1, 1.0), record(2, 5.0), record(3, 0.5, status="unverified")]
    assert kept(records, KeepAtMost(count=1)) == {"c1", "c2", "c3"}


def test_reasons_say_why() -> None:
    """The strongest reason is shown, and deletion has one as well."""
    records = [
        record(1, 9.0),
        record(2, 1.0),
        record(3, 3.0, pinned=True),
        record(4, 4.0, status="damaged"),
        record(5, 5.0),
        record(6, 6.0),
        record(7, 7.0),
    ]
    assert reasons_of(records, KeepAtMost(count=2), protected={"c5": "in use"}) == {
        "c1": "no rule keeps it",
        "c2": "best valid by val_loss",
        "c3": "pinned",
        "c4": "damaged: waits for repair",
        "c5": "in use",
        "c6": "no rule keeps it",
        "c7": "newest valid",
    }


def test_the_best_beside_a_better_pinned_one_is_called_that_of_the_others() -> None:
    """No two checkpoints are called the best."""
    records = [record(1, 1.0, pinned=True), record(2, 2.0), record(3, 9.0), record(4, 8.0)]
    assert reasons_of(records, KeepAtMost(count=2)) == {
        "c1": "pinned, best valid by val_loss",
        "c2": "best by val_loss of those not pinned",
        "c3": "no rule keeps it",
        "c4": "newest valid",
    }


# --- health ---


def test_a_diverged_run_takes_no_healthy_ones_place() -> None:
    """However long it saves NaN: the healthy ones stay, and as many of the others as the rule allows."""
    healthy = [record(n, float(n)) for n in range(1, 5)]
    diverged = [record(n, math.nan, healthy=False) for n in range(5, 30)]
    assert kept(healthy + diverged, KeepAtMost(count=3)) == {"c1", "c3", "c4", "c27", "c28", "c29"}
    reasons = reasons_of(healthy + diverged, KeepAtMost(count=3))
    assert reasons["c4"] == "newest valid"
    assert reasons["c29"] == "unhealthy: among the 3 to keep"
    assert reasons["c5"] == "unhealthy: no rule keeps it"


def test_the_last_valid_one_stays_even_unhealthy() -> None:
    """When no healthy one is left, it is better than nothing; one that is not verified yet changes nothing."""
    only = [record(n, healthy=False) for n in (1, 2)]
    assert kept(only, KeepNewest(count=0)) == {"c2"}
    assert reasons_of(only, KeepNewest(count=0))["c2"] == "unhealthy: newest valid"
    assert kept([*only, record(3, status="unverified")], KeepNewest(count=0)) == {"c2", "c3"}
    assert kept([*only, record(3)], KeepNewest(count=0)) == {"c3"}


# --- at the door ---


def test_now_has_a_time_zone() -> None:
    """A naive time would be taken for UTC or for local time, whoever guesses."""
    with pytest.raises(ConfigError, match="time zone"):
        plan_of([], KeepNewest(), now=datetime(2024, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
@pytest.mark.parametrize("hours", [-14, 0, 14])
def test_time_stamps_from_the_ends_of_time(moment: datetime, hours: int) -> None:
    """A manifest may hold any; nothing overflows."""
    odd = record(1, timestamp=moment.replace(tzinfo=timezone(timedelta(hours=hours))))
    for policy in (
        KeepEvery(hours=10**15),
        KeepPeriods(hourly=1, daily=1, weekly=1, monthly=1, yearly=1),
        KeepNewerThan(days=2**63 - 1),
    ):
        assert plan_of([odd, record(2)], policy).decisions
