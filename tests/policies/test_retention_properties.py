"""Retention: random histories and policies against an independent model."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

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
    KeepWithin,
    RetentionPlan,
    RetentionPolicy,
    RetentionRecord,
    plan_retention,
)
from tests.policies.histories import (
    METRICS,
    MODES,
    MONITORS,
    SOUND,
    STATUSES,
    TAGS,
    histories,
    metrics_of_one,
    one_of_units,
    opposites,
    policies,
    shifts,
)
from tests.policies.plans import ADAPTER, NOW, plan_of
from tests.torture import retention_model as model
from tests.torture.retention import ROWS, History, has_clock, plan_violations, precious
from tests.torture.rows import Row


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
