"""Retention: random histories and policies against an independent model, and what is kept come what may."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ckpt_lib.config import Monitor
from ckpt_lib.errors import ConfigError
from ckpt_lib.policies.retention import (
    KeepAnyOf,
    KeepAtMost,
    KeepBest,
    KeepNewest,
    KeepTagged,
    RetentionPlan,
    RetentionPolicy,
    RetentionRecord,
    plan_retention,
)

LOSS = Monitor(metric="val_loss", mode="min")
BOUNDED = settings(derandomize=True, database=None, deadline=None, max_examples=120)
NOW = datetime(2024, 1, 1, tzinfo=UTC)
MODES: Any = st.sampled_from(["min", "max"])
METRICS = st.sampled_from(["val_loss", "acc", "absent"])
MONITORS = st.lists(st.builds(Monitor, metric=METRICS, mode=MODES), max_size=3)
TAGS = st.lists(st.sampled_from(["keep", "release", "x"]), max_size=2, unique=True).map(tuple)

values = st.one_of(
    st.sampled_from([0.0, 1.0, 1.0, 2.0, math.nan, math.inf, -math.inf]), st.none(), st.just("text"), st.integers(-3, 3)
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
            epoch=draw(st.integers(0, 3)),
            step=0,
            timestamp=NOW + timedelta(days=draw(st.integers(-400, 400))),
            size_bytes=draw(st.integers(0, 100)),
            metrics=draw(st.dictionaries(st.sampled_from(["val_loss", "acc"]), values)),
            tags=draw(TAGS),
            pinned=draw(st.integers(0, 4)) == 0,
            status=draw(st.sampled_from(["valid", "valid", "unverified", "damaged"])),
        )
        for sequence in sequences
    ]


simple = st.one_of(
    st.builds(KeepNewest, count=st.integers(0, 5)),
    st.builds(KeepBest, metric=METRICS, mode=MODES, count=st.integers(0, 3)),
    st.builds(KeepTagged, tags=st.lists(st.sampled_from(["keep", "release"]), min_size=1).map(tuple)),
    st.builds(KeepAtMost, count=st.integers(0, 5), metric=METRICS, mode=MODES),
)
policies: Any = st.recursive(
    simple,
    lambda inner: st.lists(inner, min_size=1, max_size=3).map(lambda found: KeepAnyOf(policies=tuple(found))),
    max_leaves=4,
)


# --- an independent model: sets and loops, no shared code ---


def _finite(record: RetentionRecord, metric: str) -> bool:
    value = record.metrics.get(metric)
    return isinstance(value, int | float) and math.isfinite(value)


def _best(records: list[RetentionRecord], metric: str, mode: str, count: int) -> set[str]:
    left, chosen = [record for record in records if _finite(record, metric)], set()
    for _ in range(count):
        winner: RetentionRecord | None = None
        for record in left:
            if winner is None:
                winner = record
                continue
            new, old = record.metrics[metric], winner.metrics[metric]
            assert isinstance(new, int | float)
            assert isinstance(old, int | float)
            better = new < old if mode == "min" else new > old
            if better or (new == old and record.sequence < winner.sequence):
                winner = record
        if winner is None:
            break
        left.remove(winner)
        chosen.add(winner.checkpoint_id)
    return chosen


def _newest(records: list[RetentionRecord], count: int) -> set[str]:
    return {record.checkpoint_id for record in sorted(records, key=lambda record: -record.sequence)[:count]}


def _wanted_by(policy: Any, records: list[RetentionRecord]) -> set[str]:
    if policy.kind == "any_of":
        return set().union(*(_wanted_by(inner, records) for inner in policy.policies))
    if policy.kind == "newest":
        return _newest(records, policy.count)
    if policy.kind == "best":
        return _best(records, policy.metric, policy.mode, policy.count)
    if policy.kind == "tagged":
        return {record.checkpoint_id for record in records if set(record.tags) & set(policy.tags)}
    rolling = [record for record in records if not record.pinned]
    best = _best(rolling, policy.metric, policy.mode, 1) if policy.count else set()
    return best | _newest([r for r in rolling if r.checkpoint_id not in best], policy.count - len(best))


def _always(records: list[RetentionRecord], monitors: list[Monitor]) -> set[str]:
    whole = [record for record in records if record.status != "damaged"]
    valid = [record for record in whole if record.status == "valid"]
    kept = {record.checkpoint_id for record in records if record.pinned or record.status == "damaged"}
    for group in (whole, valid):
        kept |= _newest(group, 1)
        for monitor in monitors:
            kept |= _best(group, monitor.metric, monitor.mode, 1)
    return kept


# --- properties ---


@BOUNDED
@given(histories(), policies, MONITORS, st.sets(st.integers(1, 50), max_size=3))
def test_a_plan_is_what_the_model_says(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor], in_use: set[int]
) -> None:
    """Kept is exactly what the policy wants, what is in use, and what is always kept; each with a reason."""
    protected = {f"c{number}": "in use" for number in in_use}
    plan = plan_retention(records, policy, monitors=monitors, protected=protected)
    whole = [record for record in records if record.status != "damaged"]
    present = {record.checkpoint_id for record in records}
    wanted = (_wanted_by(policy, whole) | set(protected) | _always(records, monitors)) & present
    assert set(plan.kept_ids) == wanted
    assert set(plan.deleted_ids) == present - wanted
    assert all(decision.reason for decision in plan.decisions)
    assert plan.freed_bytes == sum(r.size_bytes for r in records if r.checkpoint_id not in wanted)


@BOUNDED
@given(histories(), policies, MONITORS)
def test_the_precious_ones_are_never_given_up(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor]
) -> None:
    """Newest valid, best valid, pinned and damaged stay, whatever the policy; and a protected one too."""
    protected = {records[0].checkpoint_id: "resumed from"} if records else {}
    deleted = set(plan_retention(records, policy, monitors=monitors, protected=protected).deleted_ids)
    valid = [record for record in records if record.status == "valid"]
    assert not deleted & {record.checkpoint_id for record in records if record.pinned or record.status == "damaged"}
    assert not deleted & set(protected)
    assert not deleted & _newest(valid, 1)
    for monitor in monitors:
        assert not deleted & _best(valid, monitor.metric, monitor.mode, 1)


@BOUNDED
@given(histories(), st.integers(0, 5), MONITORS, st.builds(Monitor, metric=METRICS, mode=MODES))
def test_keep_at_most_keeps_at_most_that_many(
    records: list[RetentionRecord], count: int, monitors: list[Monitor], by: Monitor
) -> None:
    """Rolling checkpoints beyond the number stay only when they are among those always kept."""
    policy = KeepAtMost(count=count, metric=by.metric, mode=by.mode)
    kept = set(plan_retention(records, policy, monitors=monitors).kept_ids)
    rolling = {record.checkpoint_id for record in records if record.status != "damaged" and not record.pinned}
    always = _always(records, monitors)
    assert len((kept & rolling) - always) <= count
    assert min(count, len(rolling)) <= len(kept & rolling) <= count + len(always & rolling)


@BOUNDED
@given(histories(), policies, MONITORS, st.randoms(use_true_random=False))
def test_neither_order_nor_clock_has_a_say(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor], shuffler: random.Random
) -> None:
    """The same records shuffled, and with other time stamps, make the same plan, newest first."""
    plan = plan_retention(records, policy, monitors=monitors)
    shuffled = [record.model_copy(update={"timestamp": NOW}) for record in records]
    shuffler.shuffle(shuffled)
    assert plan_retention(shuffled, policy, monitors=monitors) == plan
    order = [int(decision.checkpoint_id[1:]) for decision in plan.decisions]
    assert order == sorted(order, reverse=True)


@BOUNDED
@given(histories(), policies, MONITORS)
def test_carrying_a_plan_out_settles_it(
    records: list[RetentionRecord], policy: RetentionPolicy, monitors: list[Monitor]
) -> None:
    """A cleanup straight after a cleanup finds nothing to do."""
    kept = set(plan_retention(records, policy, monitors=monitors).kept_ids)
    left = [record for record in records if record.checkpoint_id in kept]
    assert plan_retention(left, policy, monitors=monitors).deleted_ids == ()


@BOUNDED
@given(policies)
def test_a_policy_survives_json(policy: RetentionPolicy) -> None:
    """Policies travel as parameters of deployments; they come back equal and of the same kind."""
    adapter: TypeAdapter[RetentionPolicy] = TypeAdapter(RetentionPolicy)
    found = adapter.validate_json(adapter.dump_json(policy))
    assert found == policy
    assert type(found) is type(policy)
    assert adapter.validate_python(policy.model_dump()) == policy


@BOUNDED
@given(histories(), policies)
def test_a_plan_survives_json(records: list[RetentionRecord], policy: RetentionPolicy) -> None:
    """It is shown, stored and sent as an artifact, NaN metrics or not."""
    plan = plan_retention(records, policy, monitors=[LOSS])
    assert RetentionPlan.model_validate_json(plan.model_dump_json()) == plan


# --- examples of what the disasters of others look like ---


def record(sequence: int, loss: Any = None, **facts: Any) -> RetentionRecord:
    fields: dict[str, Any] = {"epoch": sequence, "step": 0, "timestamp": NOW, "size_bytes": 10, "status": "valid"}
    metrics = {} if loss is None else {"val_loss": loss}
    return RetentionRecord(
        **(fields | {"checkpoint_id": f"c{sequence}", "sequence": sequence, "metrics": metrics} | facts)
    )


def kept(records: list[RetentionRecord], policy: RetentionPolicy) -> set[str]:
    return set(plan_retention(records, policy, monitors=[LOSS]).kept_ids)


@pytest.mark.parametrize(
    "policy", [KeepAtMost(count=0), KeepNewest(count=0), KeepBest(count=0), KeepTagged(tags=("x",))]
)
def test_no_policy_deletes_everything(policy: RetentionPolicy) -> None:
    """A limit of nothing keeps the newest and the best valid one."""
    assert kept([record(1, 5.0), record(2, 1.0), record(3, 3.0)], policy) == {"c2", "c3"}


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
    plan = plan_retention(records, KeepAtMost(count=2), monitors=[LOSS], protected={"c5": "in use"})
    assert {decision.checkpoint_id: decision.reason for decision in plan.decisions} == {
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
    assert plan_retention([], KeepAtMost(), monitors=[LOSS]).decisions == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "newest", "count": -1},
        {"kind": "best", "mode": "average"},
        {"kind": "tagged", "tags": []},
        {"kind": "any_of", "policies": []},
        {"kind": "unknown"},
        {"kind": "newest", "cuont": 3},
        {"count": 3},
    ],
)
def test_a_wrong_policy_is_refused(wrong: dict[str, Any]) -> None:
    """A typo must not become a policy that keeps something else."""
    adapter: TypeAdapter[RetentionPolicy] = TypeAdapter(RetentionPolicy)
    with pytest.raises(ValidationError):
        adapter.validate_python(wrong)


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
