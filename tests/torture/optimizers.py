"""Optimizers of other packages' kinds, in short: what they write to, and when, is what theirs do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

Closure = Callable[[], Any]


class SharpnessAware(torch.optim.Optimizer):
    """Perturbs the weights for a second backward pass, and takes the perturbation back before its step."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.01, rho: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter, group in _with_gradients(self):
            self.state[parameter]["perturbation"] = group["rho"] * parameter.grad
            parameter.add_(self.state[parameter]["perturbation"])

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter, group in _with_gradients(self):
            parameter.sub_(self.state[parameter].pop("perturbation", torch.zeros_like(parameter)))
            parameter.sub_(group["lr"] * parameter.grad)

    def step(self, closure: Closure | None = None) -> None:  # type: ignore[override]
        assert closure is not None
        self.first_step()
        self.zero_grad()
        with torch.enable_grad():
            closure()
        self.second_step()


class ScheduleFree(torch.optim.Optimizer):
    """Trains one sequence of weights and shows their average in ``eval()``: both calls write to the parameters."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr})
        self.is_training = True

    def train(self) -> None:
        self._swap(to_training=True)

    def eval(self) -> None:
        self._swap(to_training=False)

    @torch.no_grad()
    def _swap(self, *, to_training: bool) -> None:
        if self.is_training != to_training:
            for parameter in self.state:
                other = self.state[parameter]["other"]
                held = parameter.clone()
                parameter.copy_(other)
                other.copy_(held)
            self.is_training = to_training

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> None:  # type: ignore[override]
        for parameter, group in _with_gradients(self):
            parameter.sub_(group["lr"] * parameter.grad)
            average = self.state[parameter].setdefault("other", parameter.clone())
            average.lerp_(parameter, 0.1)


class Lookahead:
    """Wraps another optimizer and pulls its weights back towards slow ones; no optimizer of PyTorch's by class."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.slow = [parameter.detach().clone() for parameter, _ in _parameters(inner)]

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> None:
        self.inner.step()
        for (parameter, _), slow in zip(_parameters(self.inner), self.slow, strict=True):
            slow.lerp_(parameter, 0.5)
            parameter.copy_(slow)

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])


class Plain:
    """Descends by itself, through ``.data``, which no counter sees."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.01) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.momentum = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, closure: Closure | None = None) -> None:
        for parameter, momentum in zip(self.parameters, self.momentum, strict=True):
            if parameter.grad is not None:
                momentum.mul_(0.9).add_(parameter.grad)
                parameter.data.sub_(self.lr * momentum)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.momentum = state["momentum"]


def _parameters(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    return [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]


def _with_gradients(optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, dict[str, Any]]]:
    return [(parameter, group) for parameter, group in _parameters(optimizer) if parameter.grad is not None]


Parameters = Iterable[nn.Parameter]
MAKERS: dict[str, Callable[[Parameters], Any]] = {
    "SGD": lambda found: torch.optim.SGD(found, lr=0.01, momentum=0.9),
    "Adam": lambda found: torch.optim.Adam(found, amsgrad=True, foreach=True),
    "AdamW": lambda found: torch.optim.AdamW(found, fused=True),
    "RMSprop": lambda found: torch.optim.RMSprop(found, momentum=0.5),
    "Adagrad": torch.optim.Adagrad,
    "NAdam": lambda found: torch.optim.NAdam(found, foreach=False),
    "LBFGS": lambda found: torch.optim.LBFGS(found, max_iter=2, history_size=2),
    "sharpness-aware": SharpnessAware,
    "schedule-free": ScheduleFree,
    "lookahead": lambda found: Lookahead(torch.optim.SGD(found, lr=0.01)),
    "plain": Plain,
}
CLOSED = {"LBFGS", "sharpness-aware"}
"""Whose step calls for further backward passes."""
