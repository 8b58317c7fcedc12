"""Retention: random histories and policies against an independent model, and what is kept come what may."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from pydantic import TypeAdapter, ValidationError

from ckpt_lib.core.monitor import Monitor
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
    RetentionPlan,
    RetentionPolicy,
    RetentionRecord,
    plan_retention,
    policy_from_yaml,
)
from ckpt_lib.policies.rules import MAX_POLICY_LEVELS, MAX_POLICY_PARTS
from tests.torture import retention_model as model
from tests.torture.retention import ROWS, ZONES, History, has_clock, plan_violations, precious
from tests.torture.rows import Row

ADAPTER: TypeAdapter[RetentionPolicy] = TypeAdapter(RetentionPolicy)
LOSS = Monitor(metric="val_loss", mode="min")
NOW = datetime(2024, 1, 1, tzinfo=UTC)
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


def plan_of(records: list[RetentionRecord], policy: RetentionPolicy, **options: Any) -> RetentionPlan:
    return plan_retention(records, policy, **{"now": NOW, "monitors": [LOSS], **options})


# --- properties ---


@given(histories(), policies, MONITORS, st.sets(st.integers(1, 50), max_size=3), shifts)
def test_a_plan_is_what_the_model_says(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor], in_use: set[int], shift: timedelta
) -> None:
    """Kept is exactly what the policy wants, what is in use, and what is always kept; each with a reason."""
    protected = {f"c{number}": "in use" for number in in_use}
    plan = plan_retention(records, policy, now=NOW + shift, monitors=monitors, protected=protected)
    wanted = model.kept_ids(records, policy, now=NOW + shift, monitors=monitors, protected=protected)
    assert set(plan.kept_ids) == wanted
    assert set(plan.deleted_ids) == {record.checkpoint_id for record in records} - wanted
    assert all(decision.reason for decision in plan.decisions)
    assert plan.freed_bytes == sum(record.size_bytes for record in records if record.checkpoint_id not in wanted)


@given(histories(), policies, MONITORS, shifts)
def test_the_precious_ones_are_never_given_up(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor], shift: timedelta
) -> None:
    """Newest valid, best valid, pinned, protected and damaged stay, whatever the policy and whatever the clock says."""
    protected = {records[0].checkpoint_id: "resumed from"} if records else {}
    plan = plan_of(records, policy, now=NOW + shift, monitors=monitors, protected=protected)
    in_order = sorted(records, key=lambda record: record.sequence)
    assert not set(plan.deleted_ids) & precious(in_order, monitors, protected)


@given(histories(), st.integers(0, 5), MONITORS, st.builds(Monitor, metric=METRICS, mode=MODES))
def test_keep_at_most_keeps_at_most_that_many(
    records: list[RetentionRecord], count: int, monitors: list[Monitor], by: Monitor
) -> None:
    """Rolling checkpoints beyond the number stay only when they are among those always kept."""
    policy = KeepAtMost(count=count, metric=by.metric, mode=by.mode)
    kept = set(plan_of(records, policy, monitors=monitors).kept_ids)
    always = model.always_kept(records, monitors)
    for healthy in (True, False):
        rolling = {
            record.checkpoint_id
            for record in records
            if record.status != "damaged" and not record.pinned and record.healthy is healthy
        }
        assert len((kept & rolling) - always) <= count
        assert min(count, len(rolling)) <= len(kept & rolling) <= count + len(always & rolling)


@given(histories(), policies, MONITORS, st.randoms(use_true_random=False), shifts)
def test_neither_order_nor_clock_has_a_say(
    records: list[RetentionRecord],
    policy: RetentionPolicy,
    monitors: list[Monitor],
    shuffler: random.Random,
    shift: timedelta,
) -> None:
    """The same records shuffled make the same plan, newest first; and at any time, unless a rule asks for the time."""
    plan = plan_of(records, policy, monitors=monitors)
    shuffled = shuffler.sample(records, len(records))
    assert plan_of(shuffled, policy, monitors=monitors) == plan
    if not has_clock(policy):
        elsewhen = [record.model_copy(update={"timestamp": NOW + shift}) for record in shuffled]
        assert plan_of(elsewhen, policy, now=NOW - shift, monitors=monitors) == plan
    order = [int(decision.checkpoint_id[1:]) for decision in plan.decisions]
    assert order == sorted(order, reverse=True)


@given(histories(), policies, MONITORS)
def test_carrying_a_plan_out_settles_it(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor]
) -> None:
    """A cleanup straight after a cleanup finds nothing to do."""
    plan = plan_of(records, policy, monitors=monitors)
    left = [record for record in records if record.checkpoint_id in plan.kept_ids]
    assert plan_of(left, policy, monitors=monitors).deleted_ids == ()


@given(histories(), policies, st.sets(st.integers(1, 50)))
def test_what_a_policy_keeps_it_keeps_when_others_have_gone(
    records: list[RetentionRecord], policy: RetentionPolicy, gone: set[int]
) -> None:
    """Whoever deletes what: nothing that was to stay is given up because of it."""
    kept = set(plan_of(records, policy).kept_ids)
    left = [record for record in records if record.sequence not in gone]
    assert kept & {record.checkpoint_id for record in left} <= set(plan_of(left, policy).kept_ids)


@given(histories(), st.lists(policies, min_size=2, max_size=3), opposites)
def test_combinations_are_what_they_say(
    records: list[RetentionRecord], parts: list[RetentionPolicy], opposite: Any
) -> None:
    """Any is the union, all the intersection and not the complement, as far as the policy itself decides."""
    newest_first = sorted(records, key=lambda record: -record.sequence)
    found = [set(part.reasons(newest_first, NOW)) for part in parts]
    assert set(KeepAnyOf(policies=tuple(parts)).reasons(newest_first, NOW)) == set.union(*found)
    assert set(KeepAllOf(policies=tuple(parts)).reasons(newest_first, NOW)) == set.intersection(*found)
    excluded = set(opposite.reasons(newest_first, NOW))
    everything = {record.checkpoint_id for record in records}
    assert set(KeepNot(policy=opposite).reasons(newest_first, NOW)) == everything - excluded
    assert set(KeepNot(policy=KeepNot(policy=opposite)).reasons(newest_first, NOW)) == excluded


def _by_count(make: Callable[[int], RetentionPolicy]) -> Any:
    return st.integers(1, 6).map(lambda count: (make(count), make(count + 1)))


@given(
    histories(),
    st.one_of(
        _by_count(lambda count: KeepNewest(count=count - 1)),
        _by_count(lambda count: KeepBest(count=count - 1)),
        _by_count(lambda count: KeepAtMost(count=count - 1)),
        _by_count(lambda count: KeepPeriods(hourly=count, weekly=1)),
        _by_count(lambda count: KeepNewerThan(days=10 * count)),
        _by_count(lambda count: KeepWithin(budget_bytes=100 * count)),  # none is larger
        _by_count(lambda count: KeepEvery(epochs=2 ** (7 - count))),
    ),
)
def test_a_larger_limit_keeps_no_less(
    records: list[RetentionRecord], pair: tuple[RetentionPolicy, RetentionPolicy]
) -> None:
    """What a rule keeps, the same rule with more room keeps as well."""
    less, more = pair
    assert set(plan_of(records, less).kept_ids) <= set(plan_of(records, more).kept_ids)


@given(histories(), policies, MONITORS)
def test_unhealthy_ones_cost_no_healthy_one(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor]
) -> None:
    """Of the healthy ones stays what would stay without the others; and the other way round, but for the last one."""
    kept = set(plan_of(records, policy, monitors=monitors).kept_ids)
    for healthy in (True, False):
        alike = [record for record in records if record.healthy is healthy]
        alone = set(plan_of(alike, policy, monitors=monitors).kept_ids)
        here = kept & {record.checkpoint_id for record in alike}
        if healthy:
            assert here == alone
        else:
            assert here <= alone
            assert len(alone - here) <= 2  # the newest and the newest valid, which is needed only without healthy ones


@given(histories(), one_of_units("epochs", "steps", "hours"), st.integers(1, 40))
def test_an_interval_keeps_its_checkpoint(records: list[RetentionRecord], length: Any, cut: int) -> None:
    """Newer checkpoints change nothing about which one stands for an interval, nor does the time of the cleanup."""
    policy = KeepEvery(**length)
    newest_first = sorted(records, key=lambda record: -record.sequence)
    older = [record for record in newest_first if record.sequence <= cut]
    before = policy.reasons(older, NOW)
    after = policy.reasons(newest_first, NOW + timedelta(days=4000))
    assert set(before) == set(after) & {record.checkpoint_id for record in older}


@given(policies)
def test_a_policy_survives_json(policy: RetentionPolicy) -> None:
    """Policies travel as parameters of deployments; they come back equal and of the same kind."""
    found = ADAPTER.validate_json(ADAPTER.dump_json(policy))
    assert found == policy
    assert type(found) is type(policy)
    assert ADAPTER.validate_python(policy.model_dump()) == policy
    assert hash(found) == hash(policy)
    assert str(found) == str(policy)


@given(histories(), policies)
def test_a_plan_survives_json(records: list[RetentionRecord], policy: RetentionPolicy) -> None:
    """It is shown, stored and sent as an artifact, NaN metrics or not."""
    plan = plan_of(records, policy)
    assert RetentionPlan.model_validate_json(plan.model_dump_json()) == plan


class Experiment(RuleBasedStateMachine):
    """An experiment's life: saves, damage and repair, pins, clocks that jump, and cleanups by changing policies."""

    monitors: list[Monitor]

    def __init__(self) -> None:
        super().__init__()
        self.history = History()

    @initialize(monitors=MONITORS)
    def begin(self, monitors: list[Monitor]) -> None:
        self.monitors = monitors

    @rule(seed=st.integers(0, 2**16), healthy=SOUND, facts=metrics_of_one)
    def save(self, seed: int, healthy: bool, facts: dict[str, Any]) -> None:
        self.history.save(random.Random(seed), healthy=healthy)
        self.history.change(-1, metrics=facts)

    @rule(step=shifts)
    def move_clock(self, step: timedelta) -> None:
        self.history.move_clock(step)

    @rule(
        where=st.integers(0, 99),
        facts=st.one_of(
            st.fixed_dictionaries({"status": STATUSES}),
            st.fixed_dictionaries({"pinned": st.booleans()}),
            st.fixed_dictionaries({"tags": TAGS}),
        ),
    )
    def change(self, where: int, facts: dict[str, Any]) -> None:
        if self.history.records:
            self.history.change(where % len(self.history.records), **facts)

    @rule(where=st.integers(0, 99))
    def resume(self, where: int) -> None:
        if self.history.records:
            chosen = self.history.records[where % len(self.history.records)]
            self.history.protected = {chosen.checkpoint_id: "in use"}

    @rule(policy=policies)
    def clean_up(self, policy: RetentionPolicy) -> None:
        plan = self.plan(policy)
        assert list(plan_violations(self.history, policy, self.monitors, plan)) == []
        self.history.execute(plan)
        assert self.plan(policy).deleted_ids == ()

    def plan(self, policy: RetentionPolicy) -> RetentionPlan:
        return plan_retention(
            self.history.records,
            policy,
            now=self.history.now,
            monitors=self.monitors,
            protected=self.history.protected,
        )


TestExperiment = Experiment.TestCase
TestExperiment.settings = settings(stateful_step_count=25)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row {row.number}")
def test_rows_see_what_they_look_for(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a planner that gives up whatever no rule keeps, each row complains."""
    monkeypatch.setattr("ckpt_lib.policies.retention._always_kept", lambda *_: {})
    assert row.run(row.sample, "sample", tmp_path).violations


# --- examples of what the disasters of others look like ---


def record(sequence: int, loss: Any = None, **facts: Any) -> RetentionRecord:
    fields: dict[str, Any] = {"epoch": sequence, "step": 0, "timestamp": NOW, "size_bytes": 10, "status": "valid"}
    metrics = {} if loss is None else {"val_loss": loss}
    return RetentionRecord(
        **(fields | {"checkpoint_id": f"c{sequence}", "sequence": sequence, "metrics": metrics} | facts)
    )


def kept(records: list[RetentionRecord], policy: RetentionPolicy, **options: Any) -> set[str]:
    return set(plan_of(records, policy, **options).kept_ids)


def reasons_of(records: list[RetentionRecord], policy: RetentionPolicy, **options: Any) -> dict[str, str]:
    """The reason for each, without what a plan always keeps: a pinned newest one hides it."""
    return {decision.checkpoint_id: decision.reason for decision in plan_of(records, policy, **options).decisions}


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


def test_a_limit_of_one_keeps_the_best_and_the_newest() -> None:
    """The one in the limit is the best; the newest stays because it always does."""
    assert kept([record(1, 1.0), record(2, 5.0), record(3, 3.0)], KeepAtMost(count=1)) == {"c1", "c3"}


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


def test_pinned_checkpoints_stay_besides_the_limit() -> None:
    """Pinning does not push others out."""
    records = [record(1, pinned=True), record(2, pinned=True), record(3), record(4), record(5)]
    assert kept(records, KeepAtMost(count=2)) == {"c1", "c2", "c4", "c5"}


def test_nan_is_never_the_best() -> None:
    """First or last, alone or not."""
    assert kept([record(1, math.nan), record(2, 2.0), record(3, math.nan)], KeepBest(count=2)) == {"c2", "c3"}
    assert kept([record(1, math.nan), record(2, math.nan)], KeepBest(count=2)) == {"c2"}


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


def test_nothing_is_planned_for_nothing() -> None:
    """An empty experiment has an empty plan."""
    assert plan_of([], KeepAtMost()).decisions == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "newest", "count": -1},
        {"kind": "best", "mode": "average"},
        {"kind": "tagged", "tags": []},
        {"kind": "any_of", "policies": []},
        {"kind": "all_of", "policies": []},
        {"kind": "any_of", "policies": [{"kind": "newest", "count": -1}]},
        {"kind": "any_of", "policies": 5},
        {"kind": "within", "budget_bytes": -1},
        {"kind": "within"},
        {"kind": "every"},
        {"kind": "every", "epochs": 0},
        {"kind": "every", "epochs": 1, "steps": 1},
        {"kind": "newer_than"},
        {"kind": "newer_than", "days": 1, "hours": 1},
        {"kind": "newer_than", "days": 0},
        {"kind": "periods"},
        {"kind": "periods", "daily": 0},
        {"kind": "periods", "daily": -1, "weekly": 1},
        {"kind": "not"},
        {"kind": "not", "policy": {"kind": "newest"}},
        {"kind": "unknown"},
        {"kind": "newest", "cuont": 3},
        {"count": 3},
    ],
)
def test_a_wrong_policy_is_refused(wrong: dict[str, Any]) -> None:
    """A typo must not become a policy that keeps something else."""
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)
    kinds = {kind.model_fields["kind"].default: kind for kind in get_args(get_args(RetentionPolicy)[0])}
    if wrong.get("kind") in kinds:
        with pytest.raises(ConfigError):
            kinds[wrong["kind"]](**wrong)


def test_policies_are_frozen() -> None:
    """Values, not objects with a life of their own."""
    policy = KeepNewest(count=3)
    with pytest.raises(ValidationError):
        policy.count = 0
    assert hash(policy) == hash(KeepNewest(count=3))


@pytest.mark.parametrize("options", [{"count": -1}, {"mode": "lowest"}, {"number": 3}])
def test_a_wrong_option_of_a_policy_is_our_error(options: dict[str, Any]) -> None:
    """As everywhere else: one typed error that names the option."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        KeepAtMost(**options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (KeepNewest, ["count"]),
        (KeepBest, ["count"]),
        (KeepAtMost, ["count"]),
        (KeepWithin, ["budget_bytes"]),
        (KeepEvery, ["epochs", "steps", "hours"]),
        (KeepPeriods, ["hourly", "daily", "weekly", "monthly", "yearly"]),
        (KeepNewerThan, ["seconds", "hours", "days"]),
    ],
)
def test_a_number_that_cannot_be_written_is_refused(kind: Any, options: list[str]) -> None:
    """A policy says what it does in words and in reports, so its numbers are ones that can be shown."""
    for option in options:
        for number in (2**63, 10**5000):
            with pytest.raises(ConfigError, match=option):
                kind(**{option: number})
        assert str(2**63 - 1) in str(kind(**{option: 2**63 - 1})).replace(",", "")


# --- each rule ---


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


def test_an_unhealthy_one_is_never_the_best() -> None:
    """Its metric may look fine; it neither counts as best nor stays for it."""
    records = [record(1, 2.0), record(2, 0.1, healthy=False), record(3, 0.2, healthy=False), record(4, 3.0)]
    assert kept(records, KeepBest(count=2)) == {"c1", "c4"}
    assert reasons_of(records, KeepBest(count=1))["c1"] == "best valid by val_loss"


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


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "pinned"}
    for _ in range(levels - 1):
        found = {"kind": "not", "policy": found}
    return found


def test_nesting_is_bounded() -> None:
    """Deep, wide and endless policies are refused before they are looked at."""
    deepest = ADAPTER.validate_python(nested(MAX_POLICY_LEVELS))
    assert isinstance(deepest, KeepNot)
    widest = KeepAnyOf(policies=(KeepPinned(),) * MAX_POLICY_PARTS)
    wrong: Any
    for wrong in (deepest, nested(MAX_POLICY_LEVELS), nested(5000)):
        with pytest.raises(ConfigError, match="levels deep"):
            KeepNot(policy=wrong)
    with pytest.raises(ConfigError, match="at most"):
        KeepAnyOf(policies=(*widest.policies, KeepPinned()))
    with pytest.raises(ConfigError, match="at most"):
        KeepNot(policy=widest)


def test_a_policy_from_a_file(tmp_path: Path) -> None:
    """Every kind can be written down; what a file says is what stays."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "kind: all_of\npolicies:\n  - {kind: every, epochs: 10}\n  - kind: not\n    policy: {kind: pinned}\n"
    )
    assert policy_from_yaml(file) == KeepAllOf(policies=(KeepEvery(epochs=10), KeepNot(policy=KeepPinned())))


LAUGHS = "\n".join(f"x{n}: &x{n} {{kind: any_of, policies: [{', '.join([f'*x{n - 1}'] * 9)}]}}" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("\0", "cannot be read"),
        ("[" * 1000, "cannot be read"),
        ("", "no retention policy"),
        ("- kind: newest", "no retention policy"),
        ("count: 3", "kind"),
        ("kind: latest", "latest"),
        ("kind: newest\ncount: -3", "count=-3: Input should be greater"),
        ("kind: every", "exactly one of epochs, steps, hours"),
        ("&a {kind: not, policy: *a}", "aliases"),
        (f"x0: &x0 {{kind: pinned}}\n{LAUGHS}\nkind: any_of\npolicies: [*x11]", "aliases"),
        ("{kind: not, policy: " * 60 + "{kind: pinned}" + "}" * 60, "levels deep"),
    ],
)
def test_a_wrong_policy_file_is_our_error(text: str | None, problem: str, tmp_path: Path) -> None:
    """One clear error that names the file, at once."""
    file = tmp_path / "policy.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        policy_from_yaml(file)
    assert caught.value.path == str(file)
    assert len(str(caught.value)) < 2000
