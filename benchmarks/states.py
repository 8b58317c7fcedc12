"""The states that are saved and loaded: the same bytes in shapes that are easy and hard for a writer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.harness import size_bytes_of

FEW_LARGE = "few large"
MANY_SMALL = "many small"
ADAM = "transformer and Adam"
TRANSFORMER = "transformer"

_WIDTHS = ((10**9, 768), (10**8, 384), (10**7, 192), (10**6, 64), (0, 16))
"""From how many bytes of a transformer's state on its layers are how wide; 12 layers of 768 are those of GPT-2."""


class TimedAdamW(torch.optim.AdamW):
    """AdamW that notes how long the hooks before a step held it up."""

    called_at = 0.0
    waited_seconds = 0.0

    def timed_step(self) -> None:
        """Do a step; ``waited_seconds`` is then the time from the call until the step itself began."""
        self.called_at = time.perf_counter()
        self.step()

    def step(self, closure: Any = None) -> Any:
        self.waited_seconds = time.perf_counter() - self.called_at
        return super().step(closure)


@dataclass(frozen=True)
class State:
    """A model, and an optimizer with its state if the shape has one."""

    shape: str
    size: str
    model: nn.Module
    optimizer: TimedAdamW | None = None

    @property
    def parts(self) -> dict[str, Any]:
        """What a manager takes."""
        return {"model": self.model} if self.optimizer is None else {"model": self.model, "optimizer": self.optimizer}

    def collected(self) -> dict[str, Any]:
        """What peers save: the state dicts, of tensors that are the model's own."""
        return {f"{name}_state_dict": part.state_dict() for name, part in self.parts.items()}

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All of them, as views of the model's own memory."""
        return list(tensors_in(self.collected()).values())

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def renew_optimizer_state(self) -> None:
        """Give the optimizer tensors of its own, whatever a load made it take over: each load then frees the same."""
        if self.optimizer is not None:
            for values in self.optimizer.state.values():
                values.update({name: tensor.clone() for name, tensor in values.items()})


def make(shape: str, size: str, dtype: torch.dtype = torch.float32) -> State:
    """A state of about ``size`` in a shape; ``dtype`` is that of a transformer without an optimizer."""
    torch.manual_seed(0)
    size_bytes = size_bytes_of(size)
    if shape == FEW_LARGE:
        return State(shape, size, _parameters(count=8, size_bytes=size_bytes))
    if shape == MANY_SMALL:
        return State(shape, size, _parameters(count=4096, size_bytes=size_bytes))
    if shape == TRANSFORMER:
        return State(shape, size, _transformer(size_bytes, bytes_of_parameter=dtype.itemsize).to(dtype))
    model = _transformer(size_bytes, bytes_of_parameter=12)
    return State(shape, size, model, _trained_optimizer(model))


def experts(count: int) -> State:
    """So many parameters, tiny and named as those of experts are, and the state of AdamW."""
    names = [
        f"layers_{number // 768}_experts_{number % 768 // 3}_{['gate', 'up', 'down'][number % 3]}"
        for number in range(count)
    ]
    model = nn.ParameterDict({name: nn.Parameter(torch.randn(2)) for name in names})
    return State(f"{count:,} parameters and AdamW", "", model, _trained_optimizer(model))


def tensors_in(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of nested dicts and lists, by its dotted path."""
    return dict(_walk(value, path))


def _walk(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _walk(item, f"{path}.{number}")


def _parameters(*, count: int, size_bytes: int) -> nn.Module:
    floats = max(1, size_bytes // (4 * count))
    return nn.ParameterList(nn.Parameter(torch.randn(floats)) for _ in range(count))


def _transformer(size_bytes: int, *, bytes_of_parameter: int) -> nn.Module:
    width = next(width for least, width in _WIDTHS if size_bytes >= least)
    layers = max(1, round(size_bytes / (12 * width * width * bytes_of_parameter)))
    layer = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def _trained_optimizer(model: nn.Module) -> TimedAdamW:
    """An optimizer after one step, so that its state is there; fused is the fastest that PyTorch has."""
    optimizer = TimedAdamW(model.parameters(), lr=1e-4, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.timed_step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer
