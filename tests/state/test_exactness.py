"""Types and values on a load: state keeps its type, and what does not fit is told, or refused on request."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import StateMismatchError
from tests.helpers import MakeManager
from tests.state.builds import is_equal


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
        with pytest.raises(StateMismatchError, match=r"exactly: n;"):
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


def test_two_values_for_a_tied_parameter_are_told(make_manager: MakeManager) -> None:
    """Different values stored for tied tensors are reported, where PyTorch silently keeps the last ones."""
    manager = make_manager()
    manager.save_checkpoint(model=nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), epoch=1)
    layer = nn.Linear(2, 2)
    payload = manager.load_checkpoint(model=nn.ModuleList([layer, layer]))
    assert payload["changed_values"] == ["0.bias", "0.weight"]
