"""``TrainingState``: named once, saved and restored whole."""

from __future__ import annotations

import inspect
import logging
import random
import signal
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from ckpt_lib import CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.generators import GlobalGenerators
from tests.helpers import MakeManager, fingerprint


class Counter:
    """Something of the user's own with a state."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["count"] < 0:
            self.count = -1
            raise ValueError("a count below 0")
        self.count = state["count"]


def loader() -> ResumableLoader[Any]:
    return ResumableLoader(DataLoader(list(range(12)), 2, shuffle=True))  # type: ignore[arg-type]


def build(seed: int) -> TrainingState:
    """Two models with an optimizer and a scheduler each, and everything else that there may be."""
    torch.manual_seed(seed)
    models = {"generator": nn.Linear(2, 3), "judge": nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1))}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr=0.1) for name, model in models.items()}
    for name, model in models.items():
        model(torch.ones(4, 2 if name == "generator" else 3)).sum().backward()
        optimizers[name].step()
    schedulers = {name: torch.optim.lr_scheduler.StepLR(item, 2) for name, item in optimizers.items()}
    average = torch.optim.swa_utils.AveragedModel(models["generator"])
    return TrainingState(
        model=models,
        optimizer=optimizers,
        scheduler=schedulers,
        data={"labelled": loader(), "unlabelled": loader()},
        others={"average": average, "counter": Counter(seed)},
        generators={"noise": torch.Generator().manual_seed(seed), "shuffle": random.Random(seed)},
    )


def content(state: TrainingState) -> dict[str, str]:
    return {part.label: fingerprint([part.item.state_dict()]) for part in state.parts()}


@pytest.mark.parametrize("in_background", [False, True])
def test_everything_comes_back(make_manager: MakeManager, in_background: bool) -> None:
    """Several models, optimizers, schedulers and loaders by name, other objects, and generators."""
    saved = build(1)
    with make_manager() as manager:
        (manager.save_checkpoint_async if in_background else manager.save_checkpoint)(saved, epoch=2, step=7)
    expected = content(saved)
    resumed_state = build(2)
    assert content(resumed_state) != expected
    resumed = make_manager().resume(resumed_state)
    assert resumed is not None
    assert content(resumed_state) == expected
    assert (resumed["epoch"], resumed["step"], resumed["next_epoch"]) == (2, 7, 3)
    assert resumed["not_restored"] == resumed["approximate"] == []
    assert list(resumed["model_state_dict"]) == ["generator", "judge"]


def test_a_plain_file_holds_it(make_manager: MakeManager) -> None:
    """PyTorch alone reads it; each object's state under its own name."""
    manager = make_manager()
    checkpoint_id = manager.save_checkpoint(build(1), epoch=1)
    path = manager.export_checkpoint(str(checkpoint_id), f"{manager.config.checkpoint_dir}/plain.pt")
    payload = torch.load(path, weights_only=True)
    assert set(payload["model_state_dict"]["judge"]) >= {"0.weight", "1.running_mean"}
    assert payload["others"]["counter"] == {"count": 1}
    (rng,), (data,) = payload["rng_state"], payload["data_state"]
    assert set(rng) == {"python", "numpy", "torch", "named"}
    assert set(data) == {"labelled", "unlabelled"}


def test_object_by_object_is_the_same(make_manager: MakeManager) -> None:
    """A call may name the model, the optimizer and the scheduler itself."""
    saved, other = build(1), build(2)
    make_manager().save_checkpoint(model=saved.model, optimizer=saved.optimizer, scheduler=saved.scheduler, epoch=1)
    resumed = make_manager().resume(other.model, other.optimizer, other.scheduler)
    assert resumed is not None
    found, expected = (
        {label: value for label, value in content(state).items() if label.startswith(("model", "optim", "sched"))}
        for state in (other, saved)
    )
    assert found == expected


def test_what_was_not_asked_for_is_said(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """In what ``resume`` returns, and in the log."""
    make_manager().save_checkpoint(build(1), epoch=1)
    state = build(2)
    with caplog.at_level(logging.INFO):
        resumed = make_manager().resume(TrainingState(model=state.model, others={"counter": state.others["counter"]}))
    assert resumed is not None
    assert resumed["not_restored"] == [
        *("optimizer_state_dict", "scheduler_state_dict", "data_state", "others.average"),
        *("rng_state.noise", "rng_state.shuffle"),
    ]
    partly = TrainingState(model={"judge": state.model["judge"]}, data={"labelled": loader()})  # type: ignore[index]
    resumed = make_manager().resume(partly)
    assert resumed is not None
    assert resumed["not_restored"][0] == "model_state_dict.generator"
    assert "data_state.unlabelled" in resumed["not_restored"]
    assert "others.average" in caplog.text


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"others": {"scaler": Counter()}}, "holds no others.scaler state"),
        ({"data": loader()}, "holds no data state"),
        ({"generators": {"noise": torch.Generator()}}, "holds no rng.noise state"),
        ({"optimizer": {"main": torch.optim.SGD([nn.Parameter(torch.ones(1))])}}, "holds no optimizer.main state"),
    ],
)
def test_what_was_not_saved_is_refused(make_manager: MakeManager, wanted: dict[str, Any], message: str) -> None:
    """Never half a state: what is asked for and not stored is an error, and nothing has changed."""
    make_manager().save_checkpoint(model=nn.Linear(2, 2), epoch=1)
    model = nn.Linear(2, 2)
    before = fingerprint([model.state_dict()]), str(GlobalGenerators().state_dict())
    with pytest.raises(StateMismatchError, match=message):
        make_manager().resume(TrainingState(model=model, **wanted))
    assert (fingerprint([model.state_dict()]), str(GlobalGenerators().state_dict())) == before


def test_a_part_that_refuses_leaves_all_as_they_were(make_manager: MakeManager) -> None:
    """Models, optimizers, loaders, other objects and generators, whichever were restored before."""
    saved = build(1)
    saved.others["counter"].count = -5  # type: ignore[attr-defined]
    make_manager().save_checkpoint(saved, epoch=1)
    state = build(2)
    before = content(state)
    with pytest.raises(StateMismatchError, match=r"others.counter refused .* below 0"):
        make_manager().resume(state)
    assert content(state) == before


@pytest.mark.parametrize("wrong", ["generator", "second model"])
def test_what_is_restored_last_is_undone_too(make_manager: MakeManager, wrong: str) -> None:
    """A generator of another kind, or a second model that refuses: the first model has its own weights again."""
    saved = build(1)
    make_manager().save_checkpoint(saved, epoch=1)
    state = build(2)
    if wrong == "generator":
        state.generators["noise"] = random.Random()  # type: ignore[index]
    else:
        state.model["judge"] = Stubborn()  # type: ignore[index]
        state = TrainingState(model=state.model, generators=state.generators)
    before = content(state)
    with pytest.raises(StateMismatchError):
        make_manager().resume(state)
    assert content(state) == before


class Stubborn(nn.Module):
    """A module that refuses a state in the middle of loading it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def load_state_dict(self, *_arguments: Any, **_options: Any) -> Any:
        raise RuntimeError("no")


def test_a_repeat_may_have_drawn_random_numbers(make_manager: MakeManager) -> None:
    """As Prefect does before a retry: the save is the same all the same, and another state is not."""
    manager, model = make_manager(), nn.Linear(2, 2)
    again: dict[str, Any] = {"epoch": 1, "idempotency_key": "once", "compare_content": True}
    first = manager.save_checkpoint(model=model, **again)
    random.random()
    assert manager.save_checkpoint(model=model, **again) == first
    torch.nn.init.constant_(model.weight, 3.0)
    second = manager.save_checkpoint(model=model, **again)
    random.random()
    assert manager.save_checkpoint(model=model, **again) == second != first


def test_any_loader_in_the_middle_of_its_epoch_counts(make_manager: MakeManager) -> None:
    """Whatever the order in which several are named."""
    manager, whole, part = make_manager(), loader(), loader()
    batches = iter(part)
    next(batches)
    for named in ({"a": whole, "b": part}, {"b": part, "a": whole}):
        saved = manager.save_checkpoint(TrainingState(model=nn.Linear(1, 1), data=named), epoch=1)
        assert not manager.get_checkpoint(str(saved)).epoch_finished


def test_a_load_of_a_model_leaves_generators_alone(make_manager: MakeManager) -> None:
    """To look at a checkpoint must not change the numbers that a program draws; to go on from one must."""
    manager, model = make_manager(), nn.Linear(2, 2)
    manager.save_checkpoint(model=model, epoch=1)
    at_save = str(GlobalGenerators().state_dict())
    torch.rand(5)
    later = str(GlobalGenerators().state_dict())
    manager.load_checkpoint("latest", model)
    assert str(GlobalGenerators().state_dict()) == later
    manager.load_checkpoint("latest", TrainingState(model=model))
    assert str(GlobalGenerators().state_dict()) == at_save
    torch.rand(5)
    manager.resume(model)
    assert str(GlobalGenerators().state_dict()) == at_save


def test_without_generators_a_resume_is_approximate(
    make_manager: MakeManager, caplog: pytest.LogCaptureFixture
) -> None:
    """``save_rng=False`` stores none, and a resume says what that means."""
    manager = make_manager(save_rng=False)
    manager.save_checkpoint(model=nn.Linear(2, 2), epoch=1)
    assert manager.load_checkpoint()["rng_state"] is None
    resumed = manager.resume(nn.Linear(2, 2))
    assert resumed is not None
    assert "random number generators" in resumed["approximate"][0]
    assert "may not go on exactly" in caplog.text


def test_the_loader_says_whether_the_epoch_is_finished(make_manager: MakeManager) -> None:
    """A save in the loop over batches is one of the middle, one after it of the end, without a word of the caller."""
    manager, state = make_manager(), TrainingState(model=nn.Linear(2, 2), data=loader())
    for number, _ in enumerate(state.data):  # type: ignore[arg-type]
        if number == 2:
            middle = manager.save_checkpoint(state, epoch=4)
    other = TrainingState(model=nn.Linear(2, 2), data=loader())
    resumed = manager.resume(other)
    assert resumed is not None
    assert resumed["next_epoch"] == 4
    assert len(list(other.data)) == 3  # type: ignore[arg-type]
    end = manager.save_checkpoint(state, epoch=4)
    resumed = manager.resume(TrainingState(model=nn.Linear(2, 2), data=loader()))
    assert resumed is not None
    assert resumed["next_epoch"] == 5
    assert [manager.get_checkpoint(str(name)).epoch_finished for name in (middle, end)] == [False, True]


def test_a_finished_epoch_in_the_middle_of_one_is_refused(make_manager: MakeManager) -> None:
    """The loop would take the rest of the epoch for the next one."""
    manager, state = make_manager(), TrainingState(model=nn.Linear(2, 2), data=loader())
    batches = iter(state.data)  # type: ignore[arg-type]
    next(batches)
    with pytest.raises(ConfigError, match="in the middle of the data loader's epoch"):
        manager.save_checkpoint(state, epoch=1, epoch_finished=True)
    assert manager.list_checkpoints() == []


@pytest.mark.parametrize("taken", [0, 3, 6])
def test_a_signal_saves_where_the_loader_is(make_manager: MakeManager, taken: int) -> None:
    """``save_on_signal`` needs no word on the epoch either."""
    manager, state = make_manager(), TrainingState(model=nn.Linear(2, 2), data=loader())
    batches = iter(state.data)  # type: ignore[arg-type]
    for _ in range(taken):
        next(batches)
    with (
        pytest.raises(SystemExit),
        manager.save_on_signal(lambda: {"state": state, "epoch": 3}, signals=[signal.SIGUSR1]),
    ):
        signal.raise_signal(signal.SIGUSR1)
    assert manager.get_checkpoint("latest").epoch_finished is (taken == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": TrainingState()}, "needs a model"),
        ({"state": 3}, "must be a TrainingState"),
        ({"state": TrainingState(model=nn.Linear(1, 1)), "optimizer": Counter()}, "optimizer is given beside"),
        ({"model": {}}, "needs a model"),
    ],
)
def test_what_cannot_be_saved_is_refused(make_manager: MakeManager, arguments: dict[str, Any], message: str) -> None:
    """Before anything is written."""
    manager = make_manager()
    with pytest.raises(ConfigError, match=message):
        manager.save_checkpoint(**arguments, epoch=1)
    assert manager.checkpoint_ids() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": loader().loader}, "does not know its position"),
        ({"others": {"a.b": Counter()}}, "name of others cannot be stored"),
        ({"model": {"": nn.Linear(1, 1)}}, "name of model cannot be stored"),
        ({"others": [Counter()]}, "others must be a mapping"),
        ({"others": {"lr": 0.1}}, "others.lr has no state_dict"),
        ({"generators": {"noise": 3}}, "no generator with a state"),
    ],
)
def test_what_has_no_state_is_refused(arguments: dict[str, Any], message: str) -> None:
    """When the state is put together, which is before training begins."""
    with pytest.raises(ConfigError, match=message):
        TrainingState(**{"model": nn.Linear(1, 1), **arguments})


def test_states_without_objects_hold_generators_too(make_manager: MakeManager) -> None:
    """``save_state`` takes other states by name, and keeps the generators."""
    manager: CheckpointManager = make_manager()
    manager.save_state({"model_state_dict": {"w": torch.ones(1)}, "others": {"counter": {"count": 4}}}, epoch=1)
    counter = Counter()
    payload = manager.load_checkpoint("latest", TrainingState(others={"counter": counter}, rng=False))
    assert counter.count == 4
    assert payload["rng_state"] is not None


@pytest.mark.parametrize("call", ["save_checkpoint", "save_checkpoint_async", "check", "load_checkpoint", "resume"])
def test_only_a_training_state_names_more_than_three_objects(call: str, make_manager: MakeManager) -> None:
    """What a call drops is not restored later: an object has one place where it is named, or raises at once."""
    parts = {item.name for item in fields(TrainingState)}
    parameters = inspect.signature(getattr(CheckpointManager, call)).parameters
    assert parts & parameters.keys() == {"model", "optimizer", "scheduler"}
    assert "state" in parameters
    with pytest.raises(TypeError, match="others"):
        getattr(make_manager(), call)(others={"counter": Counter()})
