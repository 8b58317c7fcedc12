"""Settings of optimizers on a resume: each that differs is listed, what is kept is in force."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import StateMismatchError
from tests.helpers import MakeManager

COMMON = {"weight_decay": 0.3, "maximize": True, "foreach": True}
FLAGS = {"maximize": True, "foreach": True, "capturable": True, "differentiable": True}
FULL = {"weight_decay": 0.3, **FLAGS}
ADAM = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, **FULL}
LBFGS = {"max_iter": 2, "max_eval": 3, "tolerance_grad": 1e-3, "tolerance_change": 1e-3, "history_size": 1}
MUON = {"nesterov": False, "ns_coefficients": (3.0, -4.0, 2.0), "ns_steps": 2, "adjust_lr_fn": "match_rms_adamw"}
SGD = {"nesterov": True, "fused": True, "differentiable": True}
ADAGRAD = {"lr_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3, "differentiable": True, "fused": True}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adadelta": {"lr": 0.5, "rho": 0.5, "eps": 1e-3, **FULL},
    "Adafactor": {"lr": 0.05, "beta2_decay": -0.5, "eps": (1e-3, 1e-2), "d": 2.0, **COMMON},
    "Adagrad": {"lr": 0.05, **ADAGRAD, **COMMON},
    "Adam": {**ADAM, "amsgrad": True, "fused": True, "decoupled_weight_decay": True},
    "AdamW": {**ADAM, "amsgrad": True, "fused": True},
    "Adamax": ADAM,
    "ASGD": {"lr": 0.05, "lambd": 0.1, "alpha": 0.5, "t0": 1.0, **FULL},
    "LBFGS": {"lr": 0.5, **LBFGS, "line_search_fn": "strong_wolfe"},
    "Muon": {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.5, "eps": 1e-3, **MUON},
    "NAdam": {**ADAM, "momentum_decay": 0.1, "decoupled_weight_decay": True},
    "RAdam": {**ADAM, "decoupled_weight_decay": True},
    "RMSprop": {"lr": 0.05, "alpha": 0.5, "eps": 1e-3, "momentum": 0.5, "centered": True, **FULL},
    "Rprop": {"lr": 0.05, "etas": (0.3, 1.5), "step_sizes": (1e-5, 1.0), **FLAGS},
    "SGD": {"lr": 0.05, "momentum": 0.5, "dampening": 0.1, **SGD, **COMMON},
    "SparseAdam": {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "maximize": True},
}
WORKS_ON_NEW_STATE = {("Adam", "amsgrad"), ("AdamW", "amsgrad"), ("RMSprop", "momentum"), ("RMSprop", "centered")}
BUILT_WITH = {"SGD": {"lr": 0.1, "momentum": 0.9}}


class Trained:
    """A matrix and its optimizer."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, **arguments: Any) -> None:
        torch.manual_seed(0)
        self.name, self.model = name, nn.Linear(3, 3, bias=False).to(dtype)
        self.optimizer = getattr(torch.optim, name)(
            self.model.parameters(), **{**BUILT_WITH.get(name, {}), **arguments}
        )

    def _closure(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model(torch.ones(2, 3, dtype=self.model.weight.dtype)).square().sum()
        torch.autograd.backward(loss)
        if self.name == "SparseAdam":
            assert self.model.weight.grad is not None
            self.model.weight.grad = self.model.weight.grad.to_sparse()
        return float(loss.detach())

    def step(self, count: int) -> Any:
        """The weights after some steps, or why there are none."""
        try:
            for _ in range(count):
                self._closure()
                self.optimizer.step(self._closure)
        except (RuntimeError, AssertionError, KeyError) as error:
            return type(error), str(error)
        return self.model.weight.detach().tolist()

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer}


@pytest.mark.parametrize(("name", "changed"), [(name, key) for name, keys in OPTIMIZERS.items() for key in keys])
def test_each_argument_of_an_optimizer_is_listed_and_can_be_kept(
    make_manager: MakeManager, name: str, changed: str
) -> None:
    """Kept, it is in force as on a restored optimizer on which it was changed; what lacks its state is refused."""
    saved, value = Trained(name), OPTIMIZERS[name][changed]
    saved.step(3)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    plain, kept, expected = (Trained(name, **{changed: value}) for _ in range(3))
    replaced = manager.load_checkpoint(**plain.parts())["replaced"]
    assert changed in replaced["optimizer"]
    if (name, changed) in WORKS_ON_NEW_STATE:
        before = copy.deepcopy(kept.optimizer.state_dict())
        with pytest.raises(StateMismatchError, match=f"keep names {changed}, which works on"):
            manager.load_checkpoint(**kept.parts(), keep={"optimizer": [changed]})
        assert kept.optimizer.state_dict() == before
        return
    expected.model.load_state_dict(saved.model.state_dict())
    expected.optimizer.load_state_dict(saved.optimizer.state_dict())
    for key, (mine, _) in replaced["optimizer"].items():  # LBFGS computes max_eval from max_iter
        expected.optimizer.param_groups[0][key] = mine
    assert manager.load_checkpoint(**kept.parts(), keep={"optimizer": list(replaced["optimizer"])})["replaced"] == {}
    assert kept.optimizer.param_groups[0][changed] == value
    assert kept.step(5) == expected.step(5)


def test_every_optimizer_and_each_of_its_arguments_is_walked_through() -> None:
    """A new PyTorch with a new one fails here."""
    kinds = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    known = {name for name, kind in kinds.items() if issubclass(kind, torch.optim.Optimizer)} - {"Optimizer"}
    assert known == set(OPTIMIZERS)
    for name, changes in OPTIMIZERS.items():
        assert set(inspect.signature(kinds[name]).parameters) - {"params"} == set(changes), name


TYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("restored", TYPES)
@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_follows_a_new_type_of_parameters(
    make_manager: MakeManager, name: str, stored: torch.dtype, restored: torch.dtype
) -> None:
    """In another type training goes on as after PyTorch's own loading, in the same type as if it had never stopped."""
    saved = Trained(name, stored)
    saved.step(2)
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    ours, theirs = Trained(name, restored), Trained(name, restored)
    manager.load_checkpoint(**ours.parts())
    theirs.model.load_state_dict(saved.model.state_dict())
    theirs.optimizer.load_state_dict(saved.optimizer.state_dict())
    expected = saved if stored == restored else theirs
    assert types_of(ours.optimizer) == types_of(expected.optimizer)
    assert ours.step(3) == expected.step(3)


def types_of(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.dtype]]:
    return [
        (name, value.dtype)
        for entry in optimizer.state.values()
        for name, value in entry.items()
        if isinstance(value, torch.Tensor)
    ]
