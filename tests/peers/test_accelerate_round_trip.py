"""A run of Accelerate goes on through us, and on in Accelerate: to the same bits as one that nothing interrupted."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager, TrainingState
from tests.foreign.described import assert_same

STEPS, IMPORTED, EXPORTED = 9, 3, 6


class Counter:
    """An object with a state, which Accelerate saves as a custom one."""

    def __init__(self) -> None:
        self.seen = 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Training:
    """Two models with dropout and tied weights, an optimizer and schedule for each, and an object beside them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.models = [self.model(), self.model()]
        self.optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in self.models]
        self.schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 2) for optimizer in self.optimizers]
        self.counter = Counter()

    def model(self) -> nn.Module:
        first, last = nn.Linear(4, 4), nn.Linear(4, 4)
        last.weight = first.weight
        return nn.Sequential(first, nn.Dropout(0.5), nn.BatchNorm1d(4), last)

    def prepare(self) -> Accelerator:
        """Have Accelerate wrap all of it."""
        accelerator = Accelerator(cpu=True)
        found = accelerator.prepare(*self.models, *self.optimizers, *self.schedulers)
        self.models, self.optimizers, self.schedulers = (list(found[start : start + 2]) for start in (0, 2, 4))
        accelerator.register_for_checkpointing(self.counter)
        return accelerator

    def train(self, steps: range) -> None:
        """Train in a plain loop, with or without Accelerate's wrappers."""
        for step in steps:
            batch = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            for model, optimizer, scheduler in zip(self.models, self.optimizers, self.schedulers, strict=True):
                model.train()
                model(batch).square().mean().backward()
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            self.counter.seen += len(batch)

    def states(self) -> dict[str, Any]:
        kinds: dict[str, list[Any]] = {
            "models": self.models,
            "optimizers": self.optimizers,
            "schedulers": self.schedulers,
        }
        states = {name: [item.state_dict() for item in items] for name, items in kinds.items()}
        return {**deepcopy(states), "counter": self.counter.state_dict(), "random": torch.get_rng_state()}

    def as_ours(self) -> TrainingState:
        """Return it under the names that an import gives what Accelerate numbers."""
        kinds: dict[str, list[Any]] = {"model": self.models, "optimizer": self.optimizers, "scheduler": self.schedulers}
        named: dict[str, Any] = {
            kind: dict(zip((kind, f"{kind}_1"), items, strict=True)) for kind, items in kinds.items()
        }
        return TrainingState(**named, others={"custom_checkpoint_0": self.counter})


@pytest.fixture
def uninterrupted(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return the states at the end and where the export is made, and the folder that was saved before."""
    training = Training()
    accelerator = training.prepare()
    training.train(range(IMPORTED))
    accelerator.save_state(str(tmp_path / "run" / "step_3"))
    training.train(range(IMPORTED, EXPORTED))
    middle = training.states()
    accelerator.save_state(str(tmp_path / "run" / "step_6"))
    training.train(range(EXPORTED, STEPS))
    return training.states(), middle, tmp_path / "run"


@pytest.mark.parametrize("in_place", [False, True])
def test_a_run_goes_on_through_us_and_back(uninterrupted: Any, tmp_path: Path, in_place: bool) -> None:
    """Weights, moments, schedules, dropout and the custom object are those of the run that was never interrupted."""
    expected, middle, folder = uninterrupted
    store, name = (tmp_path, "run") if in_place else (tmp_path / "store", "e")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store), backup_checkpoints=False), name)
    manager.import_checkpoint(folder / "step_3", in_place=in_place)
    ours = Training()
    torch.manual_seed(999)
    manager.resume(ours.as_ours())
    ours.train(range(IMPORTED, EXPORTED))
    assert_same(ours.states(), middle)
    manager.save_checkpoint(ours.as_ours(), epoch=0, step=EXPORTED)
    path = Path(manager.export_checkpoint("latest", tmp_path / "back", format="accelerate"))
    assert {file.name for file in path.iterdir()} >= {file.name for file in (folder / "step_6").iterdir()}
    theirs = Training()
    accelerator = theirs.prepare()
    torch.manual_seed(999)
    accelerator.load_state(str(path))
    theirs.train(range(EXPORTED, STEPS))
    assert_same(theirs.states(), expected)


def test_a_run_that_began_here_goes_on_in_accelerate(uninterrupted: Any, tmp_path: Path) -> None:
    """Models and others under names of their own, in the order in which Accelerate is given them."""
    ours = Training()
    torch.manual_seed(5)
    ours.train(range(EXPORTED))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), backup_checkpoints=False), "run2")
    names = {"a": 0, "b": 1}
    state = TrainingState(
        model={name: ours.models[number] for name, number in names.items()},
        optimizer={name: ours.optimizers[number] for name, number in names.items()},
        scheduler={name: ours.schedulers[number] for name, number in names.items()},
        others={"counter": ours.counter},
    )
    manager.save_checkpoint(state, epoch=0, step=EXPORTED)
    path = manager.export_checkpoint("latest", tmp_path / "back", format="accelerate")
    ours.train(range(EXPORTED, STEPS))
    expected = ours.states()
    theirs = Training()
    accelerator = theirs.prepare()
    accelerator.load_state(path)
    theirs.train(range(EXPORTED, STEPS))
    assert_same(theirs.states(), expected)
