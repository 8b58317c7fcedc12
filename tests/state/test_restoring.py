"""Restoring: what PyTorch takes is taken with its result, or matched by name, or refused with nothing changed."""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import StateMismatchError
from tests.helpers import MakeManager
from tests.state.builds import OPTIMIZERS, SCHEDULERS, is_equal

COUNT = 150


class Net(nn.Module):
    """Layers by name, in an order of its own; each maps 4 features to as many."""

    def __init__(self, names: list[str], *, norm: bool = False) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))
        if norm:
            self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x).tanh()
        return x


class Side:
    """A model with its optimizer and scheduler, trained for a few steps."""

    def __init__(self, source: random.Random, layers: list[str], optimizer: str, scheduler: str, named: bool) -> None:
        torch.manual_seed(source.randrange(10**6))
        self.model = Net(layers, norm="norm" in layers)
        parameters = self.model.named_parameters() if named else self.model.parameters()
        self.optimizer = OPTIMIZERS[optimizer](parameters)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)

    def train(self) -> None:
        for _ in range(2):
            self.optimizer.zero_grad()
            torch.autograd.backward(self.model(torch.randn(5, 4)).square().mean())
            self.optimizer.step()
            self.scheduler.step()

    def state(self) -> Any:
        parts = (self.model, self.optimizer, self.scheduler)
        return copy.deepcopy([part.state_dict() for part in parts])

    def momentum(self) -> dict[str, Any]:
        """The optimizer's state by the name of its parameter."""
        return {name: self.optimizer.state[item] for name, item in self.model.named_parameters()}

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


def layers_of(source: random.Random) -> list[str]:
    return source.sample(["a", "b", "c", "d"], source.randint(1, 4))


@pytest.mark.parametrize("seed", range(COUNT))
def test_as_torch_does_or_by_name_or_not_at_all(make_manager: MakeManager, seed: int) -> None:
    """Equal builds restore exactly; another order is matched by name; anything else changes nothing and says why."""
    source = random.Random(seed)
    layers = layers_of(source)
    optimizer, scheduler = source.choice(list(OPTIMIZERS)), source.choice(list(SCHEDULERS))
    saved = Side(source, layers, optimizer, scheduler, named=source.random() < 0.5)
    saved.train()
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    change = source.choice(["none", "order", "optimizer", "scheduler", "layers"])
    others: dict[str, dict[str, Any]] = {
        "order": {"layers": source.sample(layers, len(layers))},
        "optimizer": {"optimizer": source.choice([name for name in OPTIMIZERS if name != optimizer])},
        "scheduler": {"scheduler": source.choice([name for name in SCHEDULERS if name != scheduler])},
        "layers": {"layers": [*layers, "more"] if source.random() < 0.5 else [*layers[:-1], "other"]},
    }
    built: dict[str, Any] = {"layers": layers, "optimizer": optimizer, "scheduler": scheduler, **others.get(change, {})}
    target = Side(source, **built, named=source.random() < 0.5)
    if source.random() < 0.5:
        target.train()
    before = target.state()
    if change in ("none", "order"):
        manager.load_checkpoint(**target.parts())
        assert is_equal(target.model.state_dict(), dict(saved.model.state_dict())) or change == "order"
        assert {name: value.tolist() for name, value in target.model.state_dict().items()} == {
            name: value.tolist() for name, value in saved.model.state_dict().items()
        }
        assert is_equal(target.momentum(), saved.momentum())
        assert target.scheduler.state_dict() == saved.scheduler.state_dict()
    else:
        with pytest.raises(StateMismatchError) as refusal:
            manager.load_checkpoint(**target.parts())
        assert is_equal(target.state(), before)
        expected = {"optimizer": built["optimizer"], "scheduler": built["scheduler"], "layers": "par"}[change]
        assert str(expected) in str(refusal.value)


def test_without_names_another_shape_is_refused(make_manager: MakeManager) -> None:
    """Matched by position, momentum of one parameter never comes to one of another shape."""
    manager = make_manager()
    first = nn.ParameterList([nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(3))])
    optimizer = torch.optim.Adam(first)
    torch.autograd.backward(sum(item.sum() for item in first))
    optimizer.step()
    manager.save_checkpoint(model=first, optimizer=torch.optim.Adam(nn.Linear(1, 1).parameters()), epoch=1)
    manager.save_checkpoint(model=nn.Linear(1, 1), optimizer=optimizer, epoch=2)
    other = torch.optim.Adam([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 2))])
    with pytest.raises(StateMismatchError, match="exp_avg of parameter 0 has another shape"):
        manager.load_checkpoint(optimizer=other)
    assert not other.state


class Picky(nn.Linear):
    """Takes its weight, then refuses its bias by raising."""

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        raise RuntimeError("on second thought")


class Growing(nn.Module):
    """A buffer that takes the stored size, beside a layer."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.bank: torch.Tensor
        self.register_buffer("bank", torch.zeros(rows, 2))
        self.layer = nn.Linear(2, 2)

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        self.bank = torch.empty_like(state[prefix + "bank"])
        super()._load_from_state_dict(state, prefix, *rest)


def test_loading_code_that_fails_midway_changes_nothing(make_manager: MakeManager) -> None:
    """Tensors that were overwritten, buffers that were replaced and optimizers loaded before are put back."""
    manager = make_manager()
    saved = nn.ModuleDict({"grown": Growing(5), "last": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(saved.parameters(), lr=0.1)
    manager.save_checkpoint(model=saved, optimizer=optimizer, epoch=1)
    target = nn.ModuleDict({"grown": Growing(3), "last": Picky(2, 2)})
    own = torch.optim.SGD(target.parameters(), lr=0.5)
    before = copy.deepcopy([target.state_dict(), own.state_dict()])
    objects = {name: id(item) for name, item in [*target.named_parameters(), *target.named_buffers()]}
    with pytest.raises(StateMismatchError, match="on second thought"):
        manager.load_checkpoint(model=target, optimizer=own)
    assert is_equal([dict(target.state_dict()), own.state_dict()], [dict(before[0]), before[1]])
    assert {name: id(item) for name, item in [*target.named_parameters(), *target.named_buffers()]} == objects


def test_what_loading_code_takes_shares_no_memory(make_manager: MakeManager) -> None:
    """A module that keeps the tensors it is given keeps copies: writing to them changes no file and no other load."""
    manager = make_manager()
    manager.save_checkpoint(model=Growing(5), epoch=1)
    first, second = Growing(1), Growing(2)
    manager.load_checkpoint(model=first)
    with torch.no_grad():
        first.bank.add_(1)
    manager.load_checkpoint(model=second)
    assert not second.bank.any()
    assert manager.validate_checkpoint()


class Copying(nn.Linear):
    """A layer whose state is a copy of its tensors, as of one that gathers them."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {name: value.clone() for name, value in super().state_dict(*arguments, **options).items()}


class Gathering(nn.Linear):
    """A layer that stores copies of its tensors."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name, value in self.named_parameters():
            destination[prefix + name] = value.detach().clone()


def _with_hook(change: Callable[[Any], Any]) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model._register_state_dict_hook(lambda module, state, *_: change(state))  # type: ignore[no-untyped-call]
    return model


def _of_its_own() -> nn.Module:
    model = nn.Linear(2, 2)
    own = model.state_dict
    vars(model)["state_dict"] = lambda *arguments, **options: copy.deepcopy(own(*arguments, **options))
    return model


COPYING: dict[str, Callable[[], nn.Module]] = {
    "state_dict": lambda: Copying(2, 2),
    "_save_to_state_dict": lambda: nn.Sequential(Gathering(2, 2)),
    "a hook": lambda: _with_hook(copy.deepcopy),
    "a method of one model": _of_its_own,
}


@pytest.mark.parametrize("kind", COPYING)
def test_a_model_whose_state_is_a_copy_is_restored(make_manager: MakeManager, kind: str) -> None:
    """What ``state_dict()`` returns need not be the memory of the model: to write into that alone restores nothing."""
    manager, saved, model = make_manager(), COPYING[kind](), COPYING[kind]()
    manager.save_checkpoint(model=saved, epoch=1)
    manager.load_checkpoint(model=model)
    pairs = zip((*model.parameters(), *model.buffers()), (*saved.parameters(), *saved.buffers()), strict=True)
    assert all(torch.equal(restored, stored) for restored, stored in pairs)


def test_a_model_that_does_not_load_what_it_saves_is_unchanged(make_manager: MakeManager) -> None:
    """PyTorch notices a missing name after it has overwritten all others: they are brought back."""

    def without_bias(state: dict[str, Any]) -> None:
        del state["0.bias"]

    manager, model = make_manager(), _with_hook(without_bias)
    manager.save_checkpoint(model=_with_hook(without_bias), epoch=1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(StateMismatchError, match=r"0\.bias"):
        manager.load_checkpoint(model=model)
    assert is_equal([parameter.detach() for parameter in model.parameters()], before)


class Holding:
    """An object whose loading code keeps the tensors that it is given."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested).*:UserWarning")  # PyTorch calls them experimental
@pytest.mark.parametrize("layout", ["csr", "bsr", "coo", "strided", "jagged"])
def test_sparse_and_nested_tensors_are_restored(make_manager: MakeManager, layout: str) -> None:
    """An object with loading code of its own gets a copy of any tensor that can be saved."""
    make: dict[str, Callable[[], torch.Tensor]] = {
        "csr": lambda: torch.eye(4).to_sparse_csr(),
        "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
        "coo": lambda: torch.eye(4).to_sparse(),
        "strided": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    }
    manager = make_manager()
    manager.save_checkpoint(model=Holding([make[layout]()]), epoch=1)
    target, again = Holding(torch.zeros(1)), Holding(make[layout]())
    for owner in (target, again):
        manager.load_checkpoint(model=owner)
    (found,), (other,) = target.value, again.value
    assert found.layout == make[layout]().layout
    assert sum(part.sum() for part in (found.unbind() if found.is_nested else [found.to_dense()])) in (4, 5)
    assert found is not other


@pytest.mark.filterwarnings("ignore:.*nested.*:UserWarning")
def test_a_strided_nested_buffer_is_refused(make_manager: MakeManager) -> None:
    """A tensor that PyTorch cannot load raises one typed error, and no other tensor of the model is changed."""

    def build(value: float) -> nn.Module:
        model = nn.Linear(2, 2)
        nn.init.constant_(model.weight, value)
        model.register_buffer("b", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
        return model

    manager = make_manager()
    manager.save_checkpoint(model=build(1.0), epoch=1)
    target = build(0.0)
    with pytest.raises(StateMismatchError, match="strided nested tensor: b"):
        manager.load_checkpoint(model=target)
    assert not next(iter(target.parameters())).any()


def test_a_model_without_memory_is_refused(make_manager: MakeManager) -> None:
    """On the meta device there is nothing to restore into: the error says what to call."""
    manager = make_manager()
    manager.save_checkpoint(model=nn.Linear(2, 2), epoch=1)
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(StateMismatchError, match="to_empty"):
        manager.load_checkpoint(model=model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: torch.compile(layer, backend="eager"),
        nn.DataParallel,
        nn.Sequential,
        lambda layer: nn.ModuleList([layer, layer]),
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.Sequential(layer, nn.BatchNorm1d(4), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)),
    ],
)
def test_wrapped_models_are_restored(make_manager: MakeManager, wrap: Callable[[nn.Module], Any]) -> None:
    """Compiled, parallel, shared and composed models go on with their weights and their optimizer's state."""
    torch.manual_seed(1)
    saved, target = wrap(nn.Linear(4, 4)), wrap(nn.Linear(4, 4))
    optimizers = [torch.optim.Adam(model.parameters()) for model in (saved, target)]
    torch.autograd.backward(sum(item.sum() for item in saved.parameters()))
    optimizers[0].step()
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(model=saved, optimizer=optimizers[0], epoch=1)
    for load in (manager.load_checkpoint, manager.resume):
        payload = load(model=target, optimizer=optimizers[1])
        assert payload is not None
        assert (payload["replaced"], payload["changed_values"]) == ({}, [])
        assert is_equal(dict(target.state_dict()), dict(saved.state_dict()))
        assert is_equal(optimizers[1].state_dict()["state"], optimizers[0].state_dict()["state"])


def test_a_save_in_the_middle_of_an_epoch_is_told(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """The epoch to train next is the same one, with a warning; after a finished epoch it is the one after."""
    manager = make_manager()
    model = nn.Linear(2, 2)
    manager.save_checkpoint(model=model, epoch=3)
    assert _next_epoch(manager, model) == 4
    manager.save_checkpoint(model=model, epoch=4, epoch_finished=False)
    assert _next_epoch(manager, model) == 4
    assert "in the middle of epoch 4" in caplog.text
    assert caplog.records[-1].levelno == logging.WARNING


def _next_epoch(manager: CheckpointManager, model: nn.Module) -> int:
    resumed = manager.resume(model)
    assert resumed is not None
    return int(resumed["next_epoch"])
