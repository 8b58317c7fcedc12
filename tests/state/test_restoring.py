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
from ckpt_lib.errors import ConfigError, StateMismatchError
from tests.helpers import MakeManager

COUNT = 150
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.02),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "StepLR": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3),
    "CosineAnnealingLR": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
    "ExponentialLR": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
}


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


def is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return bool(one == other)


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


class Own(torch.optim.Optimizer):
    """An optimizer whose state has another type than its parameters."""

    def __init__(self, parameters: Any, dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["s"] = (torch.rand(parameter.shape) * 100).to(self.dtype)


@pytest.mark.parametrize(
    ("parameters", "state"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.uint8)],
)
def test_optimizer_state_keeps_its_type(make_manager: MakeManager, parameters: torch.dtype, state: torch.dtype) -> None:
    """Masters of half-precision parameters and 8-bit state come back bit for bit, with and without the model."""
    model = nn.Linear(8, 8).to(parameters)
    optimizer = Own(model.parameters(), state)
    optimizer.step()
    manager = make_manager()
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    for given in (model, None):
        again = Own(model.parameters(), state)
        manager.resume(given, again)
        assert is_equal(again.state[model.weight], optimizer.state[model.weight])
        again.state[model.weight]["s"].zero_()
        assert optimizer.state[model.weight]["s"].any()


def test_masters_of_some_parameters_keep_their_type(make_manager: MakeManager) -> None:
    """In a model of two types each parameter's own type decides; where that has changed, PyTorch's rule holds."""
    model = nn.ModuleDict({"wide": nn.Linear(2, 2), "narrow": nn.Linear(2, 2).to(torch.bfloat16)})
    optimizer = Own(model.parameters(), torch.float32)
    optimizer.step()
    manager = make_manager()
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    for types, expected in [
        ((torch.float32, torch.bfloat16), (torch.float32, torch.float32)),
        ((torch.bfloat16, torch.float16), (torch.bfloat16, torch.float16)),
    ]:
        target = nn.ModuleDict({"wide": nn.Linear(2, 2).to(types[0]), "narrow": nn.Linear(2, 2).to(types[1])})
        again = Own(target.parameters(), torch.float32)
        manager.load_checkpoint(model=target, optimizer=again)
        found = {name: again.state[item]["s"].dtype for name, item in target.named_parameters()}
        assert (found["wide.weight"], found["narrow.weight"]) == expected


class Holder(nn.Module):
    n: torch.Tensor

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("n", value)


@pytest.mark.parametrize(
    ("stored", "into", "changes", "differs"),
    [
        (torch.tensor([1e6]), torch.float16, True, True),
        (torch.tensor([2**40 + 1]), torch.int32, True, True),
        (torch.tensor([2.7]), torch.int64, True, True),
        (torch.tensor([2**40 + 1]), torch.float32, True, True),
        (torch.tensor([1 + 2j]), torch.float32, True, True),
        (torch.tensor([float("inf")]), torch.float16, False, False),
        (torch.tensor([float("nan")]), torch.float16, False, False),
        (torch.tensor([0.1]), torch.bfloat16, False, True),
        (torch.tensor([1e-30]), torch.float16, False, True),
        (torch.tensor([0.1], dtype=torch.float64), torch.float32, False, True),
        (torch.tensor([0.1], dtype=torch.bfloat16), torch.float64, False, False),
        (torch.tensor([0.1]).to(torch.float8_e4m3fn), torch.float32, False, False),
        (torch.tensor([0.1]).to(torch.float8_e4m3fn), torch.float8_e5m2, False, True),
        (torch.tensor([0.5]), torch.bfloat16, False, False),
        (torch.tensor([3.0]), torch.int64, False, False),
        (torch.tensor([True]), torch.float32, False, False),
        (torch.tensor([0.1]).to_sparse(), torch.float16, False, True),
        (torch.tensor([0.5]).to_sparse(), torch.float16, False, False),
    ],
)
@pytest.mark.filterwarnings("ignore:Casting complex values:UserWarning")  # PyTorch says that one by itself
def test_values_that_do_not_fit_are_told(
    make_manager: MakeManager,
    caplog: pytest.LogCaptureFixture,
    *,
    stored: torch.Tensor,
    into: torch.dtype,
    changes: bool,
    differs: bool,
) -> None:
    """An overflow, a wrapped number, a lost fraction is warned of; on request, rounding is refused as well."""
    manager = make_manager()
    manager.save_checkpoint(model=Holder(stored), epoch=1)
    empty = torch.zeros(1, dtype=into)
    target = Holder(empty if stored.layout is torch.strided else empty.to_sparse())
    if differs:
        with pytest.raises(StateMismatchError, match=r"exactly: n\."):
            manager.resume(target, require_exact=True)
        assert not target.n.to_dense().to(torch.float64).any()
    else:
        manager.resume(target, require_exact=True)
    resumed = manager.resume(target)
    assert resumed is not None
    assert resumed["changed_values"] == (["n"] if changes else [])
    assert ("exactly: n" in caplog.text) == changes


@pytest.mark.parametrize("number", [0.1, 0.5])
def test_rounded_optimizer_state_is_refused_too(make_manager: MakeManager, number: float) -> None:
    """With require_exact, rounding is also refused in optimizer state that PyTorch casts to a parameter's type."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"momentum_buffer": torch.full_like(parameter, number)}
    manager = make_manager()
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    narrow = torch.optim.SGD(nn.Linear(2, 2).to(torch.bfloat16).parameters(), lr=0.1, momentum=0.9)
    if number == 0.1:
        with pytest.raises(StateMismatchError, match="momentum_buffer of parameter 0, momentum_buffer of parameter 1"):
            manager.load_checkpoint(optimizer=narrow, require_exact=True)
        assert not narrow.state
    else:
        manager.load_checkpoint(optimizer=narrow, require_exact=True)
        assert narrow.state


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


def test_two_values_for_a_tied_parameter_are_told(make_manager: MakeManager) -> None:
    """Different values stored for tied tensors are reported, where PyTorch silently keeps the last ones."""
    manager = make_manager()
    manager.save_checkpoint(model=nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), epoch=1)
    layer = nn.Linear(2, 2)
    payload = manager.load_checkpoint(model=nn.ModuleList([layer, layer]))
    assert payload["changed_values"] == ["0.bias", "0.weight"]


def schedule(steps: int, lr: float = 0.1) -> dict[str, Any]:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=steps)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def test_a_resume_says_what_it_replaces(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """A longer schedule that the stored one replaces is listed and warned of; equal settings are not."""
    manager = make_manager()
    saved = schedule(20)
    for _ in range(7):
        saved["optimizer"].step()
        saved["scheduler"].step()
    manager.save_checkpoint(**saved, epoch=1)
    same = manager.resume(**schedule(20))
    assert same is not None
    assert same["replaced"] == {}
    caplog.clear()
    longer = schedule(40)
    resumed = manager.resume(**longer)
    assert resumed is not None
    assert resumed["replaced"]["scheduler"]["total_steps"] == (40, 20)
    assert "total_steps 40 by 20" in caplog.text


def test_settings_can_be_kept(make_manager: MakeManager) -> None:
    """With keep, the caller's learning rate, weight decay and schedule stay, and the rest is restored."""
    manager = make_manager()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
    manager.save_checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, epoch=1)
    new = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(new, 7, gamma=0.9)
    resumed = manager.resume(model, new, scheduler, keep={"optimizer": ["lr"], "scheduler": ["step_size"]})
    assert resumed is not None
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.01, 0.5)
    assert (scheduler.step_size, scheduler.gamma) == (7, 0.5)
    assert resumed["replaced"]["optimizer"] == {"weight_decay": (0.1, 0.5)}
    for wrong in ({"optimizer": ["rate"]}, {"model": ["weight"]}, {"optimizer": "lr"}):
        with pytest.raises(ConfigError, match="keep"):
            manager.resume(model, new, keep=wrong)


def test_what_only_progressed_is_no_replacement(make_manager: MakeManager) -> None:
    """A learning rate that the schedule itself has moved is not told of."""
    manager = make_manager()

    def build() -> dict[str, Any]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"model": model, "optimizer": optimizer, "scheduler": SCHEDULERS["ExponentialLR"](optimizer)}

    saved = build()
    for _ in range(5):
        saved["optimizer"].step()
        saved["scheduler"].step()
    manager.save_checkpoint(**saved, epoch=1)
    resumed = manager.resume(**build())
    assert resumed is not None
    assert resumed["replaced"] == {}


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
