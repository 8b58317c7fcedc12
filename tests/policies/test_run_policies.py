"""Save policies within a run: every so often whatever steps are hit, the best of the run, and never silent for ever."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.policies.saving import (
    AllOf,
    AnyOf,
    EverySteps,
    OnImprovement,
    SaveContext,
    SavedRecord,
    When,
    improvements_in,
)
from ckpt_lib.saving import policy_check
from tests.helpers import MakeManager


def save(manager: CheckpointManager, epoch: int, loss: float, **more: object) -> str | None:
    return manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": loss}, **more)  # type: ignore[arg-type]


@given(interval=st.integers(1, 200), stride=st.integers(1, 300), first=st.integers(0, 500), calls=st.integers(1, 300))
def test_steps_that_skip_multiples_are_saved(interval: int, stride: int, first: int, calls: int) -> None:
    """Whatever the stride, no two saves of a run are further apart than the interval and one stride."""
    saved: list[SavedRecord] = []
    for step in range(first, first + stride * calls, stride):
        if EverySteps(interval).should_save(SaveContext(1, step, {}, tuple(saved))):
            saved.append(SavedRecord(len(saved), 1, step, {}))
        last = saved[-1].step if saved else 0
        assert step - last < interval
    gaps = [after.step - before.step for before, after in itertools.pairwise(saved)]
    assert all(gap < interval + stride for gap in gaps)


@given(interval=st.integers(1, 50), calls=st.integers(1, 300))
def test_an_ordinary_loop_saves_on_multiples(interval: int, calls: int) -> None:
    """With a step of one, saves fall on the multiples and on nothing else."""
    saved: list[SavedRecord] = []
    for step in range(1, calls + 1):
        if EverySteps(interval).should_save(SaveContext(1, step, {}, tuple(saved))):
            saved.append(SavedRecord(len(saved), 1, step, {}))
    assert [item.step for item in saved] == list(range(interval, calls + 1, interval))


def test_a_new_run_under_an_old_name_has_its_own_best(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """Best-only compares with the run's own checkpoints, and says once which older best stands."""
    first, second = make_manager(save_best_only=True), make_manager(save_best_only=True)
    assert all(save(first, epoch, 1 / epoch) for epoch in range(1, 5))
    caplog.clear()
    assert [save(second, epoch, 2 / epoch) is not None for epoch in (1, 2, 3)] == [True, True, True]
    assert save(second, 4, 3.0) is None
    told = [record.message for record in caplog.records if "earlier runs" in record.message]
    assert len(told) == 1
    assert str(first.get_best_checkpoint().checkpoint_id) in told[0]  # type: ignore[union-attr]


def test_a_run_goes_on_from_what_it_loads(make_manager: MakeManager) -> None:
    """Resumed or loaded, a run is measured by what it descends from, also when checkpoints in between are gone."""
    first = make_manager(save_best_only=True, max_checkpoints=2)
    for epoch in range(1, 5):
        save(first, epoch, 1 / epoch)
    resumed = make_manager(save_best_only=True)
    resumed.resume(nn.Linear(1, 1))
    assert save(resumed, 5, 0.3) is None
    assert save(resumed, 6, 0.2) is not None
    manifests = {item.epoch: item for item in resumed.list_checkpoints()}
    assert manifests[6].run_id == manifests[4].run_id
    assert manifests[6].parent_id == manifests[4].checkpoint_id


def test_the_first_save_of_a_run_has_no_parent(make_manager: MakeManager) -> None:
    """A new run does not descend from the newest checkpoint of an old one."""
    save(make_manager(), 1, 1.0)
    new = make_manager()
    save(new, 1, 1.0)
    save(new, 2, 1.0)
    old, begun, went_on = new.list_checkpoints()
    assert (begun.parent_id, went_on.parent_id) == (None, begun.checkpoint_id)
    assert old.run_id != begun.run_id == went_on.run_id


def test_the_last_state_can_always_be_saved(make_manager: MakeManager) -> None:
    """With force, in a final call and in the background, whatever the policy says."""
    manager = make_manager(save_interval=10)
    assert save(manager, 1, 1.0) is None
    assert save(manager, 1, 1.0, force=True) is not None
    handle = manager.save_checkpoint_async(model=nn.Linear(1, 1), epoch=2, force=True)
    assert handle.result() is not None
    manager.close(final={"model": nn.Linear(1, 1), "epoch": 3})
    assert [item.epoch for item in manager.list_checkpoints()] == [1, 2, 3]


def test_a_run_that_saves_nothing_says_so_once(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many refusals in a row, one warning names the policy, the best so far and the way out."""
    monkeypatch.setattr(policy_check, "REFUSALS_TO_WARN", 5)
    manager = make_manager(save_best_only=True)
    save(manager, 1, 0.1)
    for epoch in range(2, 20):
        save(manager, epoch, 1.0)
    told = [record.message for record in caplog.records if "nothing has been saved" in record.message]
    assert len(told) == 1
    assert "OnImprovement" in told[0]
    assert "0.1" in told[0]
    assert "force=True" in told[0]


def test_a_metric_is_asked_for_when_a_save_is_due_alone(make_manager: MakeManager) -> None:
    """A loop that validates in the epochs that are saved may leave the metric out in the others."""
    manager = make_manager(save_best_only=True, save_interval=2)
    assert save(manager, 2, 0.5)
    assert manager.save_checkpoint(model=nn.Linear(1, 1), epoch=3) is None
    assert save(manager, 4, 0.25)


def test_combined_policies_are_looked_into() -> None:
    """What measures improvement is found in any combination."""
    rule = OnImprovement("a")
    assert list(improvements_in(AnyOf(EverySteps(5), AllOf(rule, When(bool))))) == [rule]
    assert list(improvements_in(AnyOf(EverySteps(5), When(bool)))) == []
