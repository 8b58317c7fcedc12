"""Settings of schedulers on a resume: each that differs is listed, and what is kept is in force."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from ckpt_lib.errors import ConfigError, StateMismatchError
from tests.helpers import MakeManager
from tests.state.builds import Run

STEPS = 4
NEXT_STEPS = 5


def half(epoch: int) -> float:
    return 0.5**epoch


def slower(epoch: int) -> float:
    return 0.9**epoch


def steady(position: float) -> float:
    return 1.0


def falling(position: float) -> float:
    return 0.5


THRESHOLD = {"threshold": 0.5, "threshold_mode": "abs"}
PLATEAU = {"mode": "max", "factor": 0.3, "patience": 2, **THRESHOLD, "cooldown": 2, "min_lr": 0.03, "eps": 0.2}
MOMENTUM = {"cycle_momentum": False, "base_momentum": 0.5, "max_momentum": 0.99}
CYCLIC_RATES = {"base_lr": 0.2, "max_lr": 2.0, "step_size_up": 4, "step_size_down": 2, "gamma": 0.5}
CYCLIC = {**CYCLIC_RATES, "mode": "exp_range", "scale_fn": falling, "scale_mode": "iterations", **MOMENTUM}
ONE_CYCLE_RATES = {"max_lr": 2.0, "total_steps": 40, "pct_start": 0.5, "div_factor": 5.0, "final_div_factor": 10.0}
ONE_CYCLE = {**ONE_CYCLE_RATES, "anneal_strategy": "linear", "three_phase": True, **MOMENTUM}
STEPPED = {"step_size": 2, "gamma": 0.5}
SCHEDULERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LambdaLR": ({"lr_lambda": half}, {"lr_lambda": slower}),
    "MultiplicativeLR": ({"lr_lambda": half}, {"lr_lambda": slower}),
    "StepLR": (STEPPED, {"step_size": 3, "gamma": 0.9}),
    "MultiStepLR": ({"milestones": [2, 6]}, {"milestones": [5, 7], "gamma": 0.7}),
    "ConstantLR": ({"total_iters": 6}, {"factor": 0.5, "total_iters": 8}),
    "LinearLR": ({"total_iters": 6}, {"start_factor": 0.5, "end_factor": 0.8, "total_iters": 8}),
    "ExponentialLR": ({"gamma": 0.9}, {"gamma": 0.5}),
    "PolynomialLR": ({"total_iters": 10}, {"total_iters": 20, "power": 2.0}),
    "CosineAnnealingLR": ({"T_max": 10}, {"T_max": 20, "eta_min": 0.01}),
    "CosineAnnealingWarmRestarts": ({"T_0": 3, "T_mult": 2}, {"T_0": 5, "T_mult": 3, "eta_min": 0.01}),
    "ReduceLROnPlateau": ({"patience": 1, "factor": 0.5}, PLATEAU),
    "CyclicLR": ({"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 3, "step_size_down": 5, "scale_fn": steady}, CYCLIC),
    "OneCycleLR": ({"max_lr": 1.0, "total_steps": 20}, ONE_CYCLE),
    "SWALR": ({"swa_lr": 0.05}, {"swa_lr": 0.5, "anneal_epochs": 5, "anneal_strategy": "linear"}),
}
OTHERWISE_TESTED = {"SequentialLR", "ChainedScheduler", "LRScheduler"}
FUNCTIONS = {"lr_lambda", "scale_fn"}
"""Functions are in no state: the caller's is in force with and without keep."""
ALTERNATIVES = {"epochs", "steps_per_epoch", "last_epoch", "verbose"}
"""Other ways to say what total_steps says, and how far the schedule has come."""
SCHEDULER_CASES = [(name, changed) for name, (_, changes) in SCHEDULERS.items() for changed in changes]


def set_on(scheduler: Any, name: str, value: Any) -> None:
    """Change a setting of a scheduler by hand, with what its constructor computes from it."""
    if name == "T_0":
        scheduler.T_i = scheduler.T_i // scheduler.T_0 * value
    setattr(scheduler, name, value)
    if name == "mode" and isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler._init_is_better(value, scheduler.threshold, scheduler.threshold_mode)
        scheduler.best = scheduler.mode_worse
    if isinstance(scheduler, lr_scheduler.CyclicLR):
        scheduler._init_scale_fn()
    if isinstance(scheduler, swa_utils.SWALR):
        scheduler._set_anneal_func(scheduler._anneal_strategy)


def changed_by_hand(run: Run, stored: list[Any], replaced: dict[str, Any]) -> Run:
    """Load with PyTorch alone, then set what was replaced on the restored objects."""
    states = copy.deepcopy(stored)
    run.optimizer.load_state_dict(states[0])
    run.scheduler.load_state_dict(states[1])
    group = run.optimizer.param_groups[0]
    for name, (mine, _) in replaced.get("optimizer", {}).items():
        if name == "lr":
            group["lr"] = mine * (group["lr"] / group["initial_lr"])
            group["initial_lr"], run.scheduler.base_lrs = mine, [mine]
        else:
            group[name] = mine
    for name, (mine, _) in replaced.get("scheduler", {}).items():
        set_on(run.scheduler, name, mine)
    return run


@pytest.mark.parametrize(("name", "changed"), SCHEDULER_CASES)
def test_each_argument_of_a_scheduler_is_listed_and_can_be_kept(
    make_manager: MakeManager, name: str, changed: str
) -> None:
    """Kept, it gives the learning rates of a restored object on which it was changed; listed, its change is undone."""
    arguments, changes = SCHEDULERS[name]
    saved, built = Run(name, arguments), {**arguments, changed: changes[changed]}
    saved.step(STEPS)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    stored = [saved.optimizer.state_dict(), saved.scheduler.state_dict()]

    plain = Run(name, built)
    replaced = manager.load_checkpoint(**plain.parts())["replaced"]
    if changed in FUNCTIONS:
        assert replaced == {}
        assert plain.step(NEXT_STEPS) == changed_by_hand(Run(name, built), stored, {}).step(NEXT_STEPS)
        return
    assert replaced

    expected = changed_by_hand(Run(name, built), stored, replaced)
    kept = Run(name, built)
    again = manager.load_checkpoint(**kept.parts(), keep={part: list(names) for part, names in replaced.items()})
    assert again["replaced"] == {}
    assert kept.step(NEXT_STEPS) == expected.step(NEXT_STEPS)
    assert plain.step(NEXT_STEPS) == saved.step(NEXT_STEPS)


def test_every_scheduler_and_each_of_its_arguments_is_walked_through() -> None:
    """A new PyTorch with a new one fails here."""
    kinds = {name for name in lr_scheduler.__all__ if name not in OTHERWISE_TESTED} | {"SWALR"}
    assert kinds == set(SCHEDULERS)
    for name, (_, changes) in SCHEDULERS.items():
        kind = getattr(lr_scheduler, name, None) or getattr(swa_utils, name)
        assert set(inspect.signature(kind).parameters) - {"optimizer"} - ALTERNATIVES == set(changes), name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_plain_resume_replaces_nothing(make_manager: MakeManager, name: str) -> None:
    """What the schedule itself has moved is progress: the learning rate, momentum, the best value so far."""
    arguments, _ = SCHEDULERS[name]
    saved, target = Run(name, arguments), Run(name, arguments)
    saved.step(9)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    assert manager.load_checkpoint(**target.parts())["replaced"] == {}
    assert target.step(NEXT_STEPS) == saved.step(NEXT_STEPS)


def test_a_rate_that_no_plateau_explains_is_listed(make_manager: MakeManager) -> None:
    """ReduceLROnPlateau does not note where it began; only what its reductions lead to is progress."""
    saved = Run("ReduceLROnPlateau", {"patience": 1, "factor": 0.5})
    saved.step(9)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    rate = saved.optimizer.param_groups[0]["lr"]
    assert rate < 0.1
    other = Run("ReduceLROnPlateau", {"patience": 1, "factor": 0.5}, lr=0.3)
    assert manager.load_checkpoint(**other.parts())["replaced"] == {"optimizer": {"lr": (0.3, rate)}}


def nested(optimizer: torch.optim.Optimizer, step_size: int, *, chained: bool) -> Any:
    """Settings of a scheduler inside a scheduler have names of two parts."""
    inner = [lr_scheduler.ConstantLR(optimizer, 0.5), lr_scheduler.MultiStepLR(optimizer, [step_size, 30])]
    if chained:
        return lr_scheduler.ChainedScheduler([*inner, lr_scheduler.StepLR(optimizer, step_size)])
    return lr_scheduler.SequentialLR(optimizer, [*inner, lr_scheduler.StepLR(optimizer, step_size)], [3, 7])


@pytest.mark.parametrize("chained", [True, False])
def test_settings_within_schedulers_are_kept_one_by_one(make_manager: MakeManager, chained: bool) -> None:
    """Settings of inner schedulers are kept by a dotted name, or by a short name for all of them."""
    manager = make_manager(backup_checkpoints=False)
    parts = []
    for step_size in (5, 6):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        parts.append((model, optimizer, nested(optimizer, step_size, chained=chained)))
    model, optimizer, scheduler = parts[0]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    manager.save_checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, epoch=1)
    progress = [inner.last_epoch for inner in scheduler._schedulers]
    mine = parts[1][2]
    with pytest.raises(
        ConfigError, match=r"_schedulers, which holds progress besides settings.*_schedulers\.1\.milest"
    ):
        manager.load_checkpoint("latest", *parts[1], keep={"scheduler": ["_schedulers"]})
    assert mine._schedulers[1].milestones == {6: 1, 30: 1}
    loaded = manager.load_checkpoint("latest", *parts[1], keep={"scheduler": ["_schedulers.1.milestones"]})
    assert loaded["replaced"] == {"scheduler": {"_schedulers.2.step_size": (6, 5)}}
    assert (mine._schedulers[1].milestones, mine._schedulers[2].step_size) == ({6: 1, 30: 1}, 5)
    assert [inner.last_epoch for inner in mine._schedulers] == progress


def test_other_schedulers_within_a_schedule_are_refused(make_manager: MakeManager) -> None:
    """Another number of them or another kind: PyTorch would mix the two without a word."""

    def build(*kinds: Callable[[Any], Any]) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return model, optimizer, lr_scheduler.ChainedScheduler([kind(optimizer) for kind in kinds])

    def steps(optimizer: Any) -> Any:
        return lr_scheduler.StepLR(optimizer, 3)

    manager = make_manager(backup_checkpoints=False)
    model, optimizer, scheduler = build(lr_scheduler.ConstantLR, steps)
    manager.save_checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, epoch=1)
    for kinds in [(steps,), (lr_scheduler.ConstantLR, lr_scheduler.LinearLR), (steps, steps, steps)]:
        target = build(*kinds)
        before = copy.deepcopy(target[2].state_dict())
        with pytest.raises(StateMismatchError, match="with other schedulers in _schedulers"):
            manager.load_checkpoint("latest", *target)
        assert target[2].state_dict() == before


def test_a_longer_one_cycle_has_its_own_phases(make_manager: MakeManager) -> None:
    """With total_steps its phases are kept: after the old end the learning rate goes on falling."""
    saved, target = (Run("OneCycleLR", {"max_lr": 1.0, "total_steps": steps}) for steps in (100, 200))
    saved.step(50)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    manager.load_checkpoint(**target.parts(), keep={"scheduler": ["total_steps"]})
    rates = [rate for rate, _ in target.step(149)]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_a_kept_rate_goes_through_the_whole_schedule(make_manager: MakeManager) -> None:
    """It is the rate that the schedule began with: the next rates are those of a run that began with it."""
    for name in ("StepLR", "ExponentialLR", "LinearLR", "LambdaLR", "CosineAnnealingWarmRestarts"):
        arguments, _ = SCHEDULERS[name]
        saved, whole, target = Run(name, arguments), Run(name, arguments, lr=0.3), Run(name, arguments, lr=0.3)
        for run in (saved, whole):
            run.step(STEPS)
        manager = make_manager(backup_checkpoints=False)
        manager.save_checkpoint(**saved.parts(), epoch=1)
        assert manager.load_checkpoint(**target.parts(), keep={"optimizer": ["initial_lr"]})["replaced"] == {}
        assert [rate for rate, _ in target.step(9)] == pytest.approx([rate for rate, _ in whole.step(9)])


def test_a_kept_rate_without_a_schedule_is_the_present_one(make_manager: MakeManager) -> None:
    """Saved under a schedule and restored without: the rate is the caller's, also where the schedule began with it."""
    manager = make_manager(backup_checkpoints=False)
    saved = Run("StepLR", STEPPED)
    saved.step(STEPS)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    for rate in (0.1, 0.3):
        optimizer = torch.optim.SGD(saved.model.parameters(), lr=rate, momentum=0.9)
        assert manager.load_checkpoint(optimizer=optimizer, keep={"optimizer": ["lr"]})["replaced"] == {}
        assert optimizer.param_groups[0]["lr"] == rate


def test_the_rate_of_one_group_is_kept(make_manager: MakeManager) -> None:
    """The scheduler's base rate of that group follows, and the others stay as stored."""

    def build(rate: float) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.Linear(2, 1)
        groups = [{"params": [model.weight], "lr": rate}, {"params": [model.bias], "lr": rate}]
        optimizer = torch.optim.SGD(groups)
        return model, optimizer, lr_scheduler.LambdaLR(optimizer, half)

    manager = make_manager(backup_checkpoints=False)
    saved, target = build(0.1), build(0.3)
    manager.save_checkpoint(model=saved[0], optimizer=saved[1], scheduler=saved[2], epoch=1)
    kept = {"optimizer": ["param_groups[1].lr"]}
    replaced = manager.load_checkpoint("latest", *target, keep=kept)["replaced"]
    assert replaced == {
        "optimizer": {"param_groups[0].lr": (0.3, 0.1)},
        "scheduler": {"base_lrs": ([0.3, 0.3], [0.1, 0.3])},
    }
    assert [group["lr"] for group in target[1].param_groups] == [0.1, 0.3]
