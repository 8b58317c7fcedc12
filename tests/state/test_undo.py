"""A restore that fails, whatever the reason, leaves everything as it was, or says what it could not put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ckpt_lib import CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.model_state import Fit
from tests.helpers import MakeManager
from tests.state.builds import is_equal


class Refusing(nn.Linear):
    """A layer that refuses every state, as the last object of a restore."""

    error: BaseException = RuntimeError("on second thought")

    def _load_from_state_dict(self, *args: Any) -> None:
        raise self.error


class Held:
    """An object whose loading code writes into what it holds, or raises."""

    def __init__(self, *values: Any) -> None:
        self.values = list(values)
        self.refuses = False

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.refuses:
            raise NotImplementedError("cannot load")
        self.values[:] = state["values"]


class SlowWeights(torch.optim.SGD):
    """An optimizer that holds weights of its own, and loads them in place."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.slow = torch.zeros(4)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.slow.copy_(state.pop("slow"))
        super().load_state_dict(state)


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    return make_manager(backup_checkpoints=False)


class WithBuffer(nn.Module):
    """A layer, and a buffer after it."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("pos", buffer)


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [(lambda: torch.arange(3).expand(2, 3), "pos share memory"), (made_in_inference_mode, "pos made in inference")],
    ids=["expanded", "inference"],
)
def test_a_tensor_that_cannot_be_written_is_refused(
    manager: CheckpointManager, buffer: Callable[[], torch.Tensor], reason: str
) -> None:
    """PyTorch notices it after it has overwritten the weights: it is refused before."""
    model = WithBuffer(buffer())
    manager.save_checkpoint(model=model, epoch=1)
    nn.init.constant_(model.layer.weight, 7)
    for load in (manager.load_checkpoint, manager.resume):
        with pytest.raises(StateMismatchError, match=reason) as refused:
            load(model=model)
        assert str(refused.value).endswith("Nothing was changed.")
        assert (model.layer.weight == 7).all()


def test_a_tensor_that_cannot_be_written_is_undone(manager: CheckpointManager) -> None:
    """Beside a layer that decides itself what it takes, PyTorch is asked, and what it has overwritten is put back."""
    norm = nn.BatchNorm1d(2)
    model = nn.Sequential(norm, WithBuffer(torch.arange(3).expand(2, 3)))
    manager.save_checkpoint(model=model, epoch=1)
    nn.init.constant_(norm.weight, 7)
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(model=model)
    assert bool((norm.weight == 7).all())


def test_objects_that_load_in_place_are_brought_back(manager: CheckpointManager) -> None:
    """An optimizer, a scheduler and another object that write into what they hold, as optimizers of flat buffers do."""
    model = Refusing(2, 2)
    optimizer, scheduler, other = SlowWeights(model.parameters()), Held(1), Held(2)
    state = TrainingState(model=model, optimizer=optimizer, scheduler=scheduler, others={"other": other})
    manager.save_checkpoint(state, epoch=1)
    optimizer.slow.fill_(5)
    scheduler.values[:] = other.values[:] = [9, 9]
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(state=state)
    assert optimizer.slow.tolist() == [5] * 4
    assert scheduler.values == other.values == [9, 9]


def test_the_state_of_an_optimizer_keeps_its_types(manager: CheckpointManager) -> None:
    """State that is more precise than its parameter is brought back as it was, and the groups are the same objects."""
    layer = nn.Linear(4, 4).bfloat16()
    model = nn.ModuleDict({"last": Refusing(2, 2), "layer": layer})
    optimizer = torch.optim.Adam(layer.parameters())
    weight, group = layer.weight, optimizer.param_groups[0]
    optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg": torch.rand(4, 4), "exp_avg_sq": torch.rand(4, 4)}
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    optimizer.state[weight]["exp_avg"] = before = torch.rand(4, 4)
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(model=model, optimizer=optimizer)
    assert is_equal(optimizer.state[weight]["exp_avg"], before)
    assert optimizer.param_groups[0] is group


def test_memory_that_tensors_share_stays_shared(manager: CheckpointManager) -> None:
    """Values are brought back in place: ties, a flat buffer and memory that processes share are not torn apart."""
    flat = torch.zeros(6)
    layers = [nn.Linear(3, 2, bias=False) for _ in range(2)]
    for layer in layers:
        layer.weight.data = flat.view(2, 3)
    shared = nn.Linear(2, 2).share_memory()
    model = nn.ModuleList([*layers, shared, Refusing(2, 2)])
    manager.save_checkpoint(model=model, epoch=1)
    flat.fill_(7)
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(model=model)
    assert (flat == 7).all()
    assert {layer.weight.data_ptr() for layer in layers} == {flat.data_ptr()}
    assert shared.weight.is_shared()  # type: ignore[no-untyped-call]


def test_an_object_that_cannot_be_loaded_is_no_obstacle(manager: CheckpointManager) -> None:
    """It refuses its earlier state as well, and has it all the same. The others are brought back."""
    model, other = nn.Linear(2, 2), Held(1)
    state = TrainingState(model=model, others={"other": other, "averaged": nn.Linear(2, 2)})
    manager.save_checkpoint(state, epoch=1)
    nn.init.constant_(state.others["averaged"].weight, 7)  # type: ignore[attr-defined]
    other.refuses = True
    torch.rand(3)
    generator = torch.get_rng_state()
    with pytest.raises(StateMismatchError, match=r"other refused.*: cannot load; checkpoint .*Nothing was changed"):
        manager.load_checkpoint(state=state)
    assert (state.others["averaged"].weight == 7).all()  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), generator)


def test_arrays_are_brought_back(manager: CheckpointManager) -> None:
    """A state that holds arrays of NumPy counts as the same where their bytes are."""
    model, other = Refusing(2, 2), Held(1)
    state = TrainingState(model=model, others={"other": other})
    manager.save_checkpoint(state, epoch=1)
    other.values[:] = [np.arange(3)]
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(state=state)
    assert other.values[0].tolist() == [0, 1, 2]


class OnceOnly(Held):
    """Takes one state, and refuses the next."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.refuses = True


def test_what_could_not_be_brought_back_is_said(manager: CheckpointManager) -> None:
    """The first error stays, a note tells of the other, all else is brought back, and nothing says "unchanged"."""
    model, other, kept = Refusing(2, 2), OnceOnly(1), Held(1)
    state = TrainingState(model=model, others={"kept": kept, "other": other})
    manager.save_checkpoint(state, epoch=1)
    other.values, kept.values = [9], [9]
    with pytest.raises(StateMismatchError, match=r"on second thought.*stored: others\.other") as failed:
        manager.load_checkpoint(state=state)
    assert failed.value.__notes__ == ["the others.other could not be brought back: NotImplementedError('cannot load')"]
    assert "Nothing was changed" not in str(failed.value)
    assert kept.values == [9]


def test_an_interrupt_is_undone(manager: CheckpointManager) -> None:
    """Ctrl-C in the middle of a restore brings all back, and goes on as what it is."""
    last, first = Refusing(2, 2), nn.Linear(2, 2)
    state = TrainingState(model={"last": last, "first": first})
    manager.save_checkpoint(state, epoch=1)
    nn.init.constant_(first.weight, 7)
    torch.rand(3)
    generator = torch.get_rng_state()
    last.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as interrupt:
        manager.load_checkpoint(state=state)
    assert (first.weight == 7).all()
    assert torch.equal(torch.get_rng_state(), generator)
    assert not hasattr(interrupt.value, "__notes__")


def test_an_interrupt_of_a_load_without_a_copy_is_told(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last model is not copied before plain loading: only an interrupt can leave it half loaded, with a note."""
    model = nn.Linear(2, 2)
    manager.save_checkpoint(model=model, epoch=1)

    def interrupted(fit: Fit) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Fit, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        manager.load_checkpoint(model=model)
    assert "the model could not be brought back" in interrupt.value.__notes__[0]


def test_a_method_that_one_model_was_given_loads_it(manager: CheckpointManager) -> None:
    """A wrapper may replace ``load_state_dict`` of an object: it is called, and the model copied before it."""
    model = nn.Linear(2, 2)
    manager.save_checkpoint(model=model, epoch=1)
    nn.init.constant_(model.weight, 7)

    def refused(state: dict[str, torch.Tensor]) -> None:
        model.bias.data.fill_(3)
        raise RuntimeError("not now")

    model.load_state_dict = refused  # type: ignore[method-assign,assignment]
    with pytest.raises(StateMismatchError, match="not now"):
        manager.load_checkpoint(model=model)
    assert (model.weight == 7).all()
    assert not (model.bias == 3).any()


def test_the_epoch_of_a_sampler_is_brought_back(manager: CheckpointManager) -> None:
    """As the position of the loader is."""
    dataset = TensorDataset(torch.arange(8))
    sampler: DistributedSampler[Any] = DistributedSampler(dataset, num_replicas=1, rank=0)
    loader = ResumableLoader(DataLoader(dataset, 2, sampler=sampler))
    state = TrainingState(model=Refusing(2, 2), data=loader)
    sampler.set_epoch(3)
    manager.save_checkpoint(state, epoch=1)
    sampler.set_epoch(9)
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(state=state)
    assert sampler.epoch == 9
