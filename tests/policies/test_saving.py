"""Save policies: each answers one question, combinations are what they say, and NaN never counts as progress."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.errors import ConfigError, UnknownMetricError
from ckpt_lib.policies.saving import (
    AllOf,
    AnyOf,
    EveryEpochs,
    EverySeconds,
    EverySteps,
    OnImprovement,
    SaveContext,
    SavedRecord,
    SavePolicy,
    When,
    policy_of,
    reasons_against,
)

YES, NO = When(lambda _: True), When(lambda _: False)


def context(epoch: int = 0, step: int = 0, past: list[Any] | None = None, **facts: Any) -> SaveContext:
    saved = tuple(SavedRecord(n, n, 0, {"val_loss": value}) for n, value in enumerate(past or [], start=1))
    return SaveContext(epoch, step, facts.pop("metrics", {}), saved, **facts)


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_intervals_are_multiples(now: int, every: int) -> None:
    """In a run that has saved nothing, intervals fire on their multiples, zero included, and when one has passed."""
    wanted = now % every == 0 or now >= every
    assert EveryEpochs(every).should_save(context(epoch=now, step=1)) == wanted
    assert EverySteps(every).should_save(context(epoch=1, step=now)) == wanted


@given(st.integers(0, 500), st.integers(1, 60), st.lists(st.integers(0, 500), max_size=1))
def test_a_refusal_names_the_first_count_that_is_due(now: int, every: int, last: list[int]) -> None:
    """Before the named epoch or step the policy goes on to refuse, and at it, it saves."""
    saved = tuple(SavedRecord(1, count, count, {}) for count in last)
    (reason,) = EveryEpochs(every).why_not(SaveContext(now, 0, {}, saved))
    due = reason.next_epoch
    assert due is not None
    assert not any(EveryEpochs(every).should_save(SaveContext(item, 0, {}, saved)) for item in range(now + 1, due))
    assert EveryEpochs(every).should_save(SaveContext(due, 0, {}, saved))
    (of_step,) = EverySteps(every).why_not(SaveContext(0, now, {}, saved))
    assert of_step.next_step == due


@given(st.integers(0, 20), st.sampled_from([0.1, 0.5, 0.9, math.nan]), st.booleans())
def test_whatever_refuses_has_reasons(epoch: int, loss: float, is_any: bool) -> None:
    """A combination that refuses names at least one reason, and only policies that refuse give one."""
    parts = (EveryEpochs(5), OnImprovement("val_loss"), When(lambda context: context.epoch % 2 == 0))
    policy = AnyOf(*parts) if is_any else AllOf(*parts)
    asked = context(epoch=epoch, past=[0.5], metrics={"val_loss": loss})
    if not policy.should_save(asked):
        kinds = [reason.kind for reason in reasons_against(policy, asked)]
        refusing = [not part.should_save(asked) for part in parts]
        named = zip(("interval", "not_better", "policy"), refusing, strict=True)
        assert kinds == [kind for kind, refuses in named if refuses]


@pytest.mark.parametrize(("elapsed", "wanted"), [(None, True), (0.0, False), (9.9, False), (10.0, True), (1e9, True)])
def test_time_since_the_last_save(elapsed: float | None, wanted: bool) -> None:
    """The first chance of a process counts; then the interval must have passed."""
    assert EverySeconds(10).should_save(context(seconds_since_last_save=elapsed)) == wanted


@pytest.mark.parametrize(
    "number", [0, -1, -0.5, math.nan, 2**63, 10**5000], ids=["zero", "negative", "fraction", "nan", "large", "huge"]
)
@pytest.mark.parametrize("policy", [EveryEpochs, EverySteps, EverySeconds])
def test_an_interval_is_positive(policy: Callable[[Any], object], number: float) -> None:
    """Zero would divide, NaN would never fire, and the warning of long silence could not show a huge one."""
    with pytest.raises(ConfigError):
        policy(number)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_improvement_over_everything_saved(mode: Any) -> None:
    """All orders of pasts and presents: finite and strictly better than every finite value before."""
    values = [1.0, 2.0, math.nan, math.inf, -math.inf, None, "text"]
    for past in itertools.chain.from_iterable(itertools.permutations(values, n) for n in range(5)):
        finite = [value for value in past if value in (1.0, 2.0)]
        best = min(finite, default=None) if mode == "min" else max(finite, default=None)
        for now in values:
            wanted = now in (1.0, 2.0) and (best is None or (now < best if mode == "min" else now > best))
            asked = context(past=list(past), metrics={"val_loss": now})
            assert OnImprovement("val_loss", mode).should_save(asked) == wanted


def test_a_metric_that_was_not_given_is_an_error() -> None:
    """A misspelt name must not mean that nothing is ever saved; the error lists what was given."""
    with pytest.raises(UnknownMetricError, match="val_loss") as raised:
        OnImprovement("val_loss").should_save(context(metrics={"val_los": 1.0}))
    assert raised.value.got == ["val_los"]


def test_checkpoints_without_the_metric_do_not_matter() -> None:
    """Those saved before the metric existed are no competition."""
    saved = (SavedRecord(1, 1, 0, {}), SavedRecord(2, 2, 0, {"acc": 0.1}))
    assert OnImprovement("val_loss").should_save(SaveContext(3, 0, {"val_loss": 9.0}, saved))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_combinations_are_all_and_any(length: int) -> None:
    """The whole truth table, nested as well."""
    for policies in itertools.product([YES, NO], repeat=length):
        truth = [policy is YES for policy in policies]
        assert AllOf(*policies).should_save(context()) == all(truth)
        assert AnyOf(*policies).should_save(context()) == any(truth)
        assert AllOf(AnyOf(*policies), YES).should_save(context()) == any(truth)


@pytest.mark.parametrize("combination", [AllOf, AnyOf])
def test_a_combination_of_nothing_is_refused(combination: Callable[[], object]) -> None:
    """``all([])`` is true and ``any([])`` is false: neither is what anyone meant."""
    with pytest.raises(ConfigError):
        combination()


def test_a_predicate_sees_the_moment_and_answers_yes_or_no() -> None:
    """Whatever truthy thing it returns, such as a NumPy bool, becomes a bool."""
    seen: list[SaveContext] = []

    def predicate(moment: SaveContext) -> Any:
        seen.append(moment)
        return [moment.epoch] if moment.metrics else []

    moment = context(epoch=3, metrics={"a": 1.0})
    assert When(predicate).should_save(moment) is True
    assert When(predicate).should_save(context()) is False
    assert seen[0] is moment


@pytest.mark.parametrize(
    "policy",
    [
        EveryEpochs(2),
        EverySteps(3),
        EverySeconds(1.5),
        OnImprovement("a", "max"),
        AllOf(EveryEpochs(2)),
        AnyOf(EverySteps(1)),
    ],
)
def test_a_policy_is_a_frozen_value(policy: Any) -> None:
    """Equal by content, hashable, picklable into workers, and unchangeable."""
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(pickle.loads(pickle.dumps(policy))) == hash(policy)
    with pytest.raises(FrozenInstanceError):
        policy.epochs = 1


@given(st.integers(0, 100), st.floats(), st.lists(st.floats(), max_size=4), st.booleans(), st.integers(1, 12))
def test_a_policy_is_a_pure_function(epoch: int, now: float, past: list[float], best_only: bool, every: int) -> None:
    """What the configuration spells is the interval and, if asked for, improvement; asked twice, the same."""
    config = CheckpointConfig(save_interval=every, save_best_only=best_only)
    moment = context(epoch=epoch, past=past, metrics={"val_loss": now})
    is_due = epoch % every == 0 or epoch - (len(past) and moment.saved[-1].epoch) >= every
    wanted = is_due and (not best_only or OnImprovement().should_save(moment))
    policy: SavePolicy = policy_of(config)
    assert policy.should_save(moment) == policy.should_save(replace(moment)) == wanted


def test_best_only_asks_for_the_metric_only_when_the_interval_is_due() -> None:
    """Epochs between validations have no validation loss to give."""
    policy = policy_of(CheckpointConfig(save_interval=5, save_best_only=True))
    assert not policy.should_save(context(epoch=3))
    with pytest.raises(UnknownMetricError):
        policy.should_save(context(epoch=5))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EveryEpochs("3"),  # type: ignore[arg-type]
        lambda: EveryEpochs(2.5),  # type: ignore[arg-type]
        lambda: EverySteps(True),
        lambda: EverySeconds(None),  # type: ignore[arg-type]
        lambda: AllOf([EveryEpochs(1)]),  # type: ignore[arg-type]
        lambda: AnyOf("often"),  # type: ignore[arg-type]
        lambda: When(None),  # type: ignore[arg-type]
    ],
)
def test_policies_of_wrong_types_are_refused_when_they_are_made(make: Callable[[], Any]) -> None:
    """Not at the first save, hours into a run."""
    with pytest.raises(ConfigError):
        make()
