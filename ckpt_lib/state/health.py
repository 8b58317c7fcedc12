"""Finds NaN and infinities in weights, optimizer state and the monitored metric.

A diverged state is saved like any other, and its digests agree. So the health check reads the numbers themselves, once
for each save: one pass over each tensor, without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY
from ckpt_lib.core.wording import listed

if TYPE_CHECKING:
    from torch import Tensor

_CHECKED = (MODEL_KEY, OPTIMIZER_KEY)
_MAX_NAME_LENGTH = 120
_PIECE_ELEMENTS = 2**20
"""How many elements are widened at a time, of tensors whose type has no arithmetic."""


@dataclass(frozen=True)
class HealthCheck:
    """The health check of one save. ``buffers`` names the model's tensors that no optimizer changes."""

    monitor: Monitor
    buffers: Collection[str] = ()

    @classmethod
    def of(cls, model: Any, monitor: Monitor) -> HealthCheck:
        """Return the check for ``model``, or for several by name. None need be a ``torch.nn.Module``."""
        models = model.items() if isinstance(model, Mapping) else [("", model)]
        return cls(monitor, frozenset(name for prefix, item in models for name in _buffer_names(prefix, item)))

    def find_fault(self, payload: Mapping[str, Any], metrics: Mapping[str, Metric]) -> str | None:
        """Return why the state is unhealthy, in one line; ``None`` if all checked numbers are finite.

        The check covers the monitored metric and every floating-point or complex tensor of model and optimizer. A
        buffer may hold -Infinity, which attention masks do.
        """
        faults = [] if (fault := self._fault_of_metric(metrics)) is None else [fault]
        names = [name for name, tensor in self._tensors(payload) if not self._is_sound(name, tensor)]
        if names:
            faults.append(f"NaN or infinity in {listed([_shown(name) for name in names])}")
        return "; ".join(faults) or None

    def _fault_of_metric(self, metrics: Mapping[str, Metric]) -> str | None:
        value = metrics.get(self.monitor.metric)
        if not isinstance(value, float) or math.isfinite(value):
            return None
        return f"the monitored metric {self.monitor.metric!r} is {value}"

    def _tensors(self, payload: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
        for part in _CHECKED:
            yield from _named_tensors(payload.get(part), part)

    def _is_sound(self, name: str, tensor: Tensor) -> bool:
        lowest, highest = _extremes(tensor)
        if name.removeprefix("model_state_dict.") in self.buffers:
            return highest < math.inf  # false for NaN as well
        return math.isfinite(lowest) and math.isfinite(highest)


def _buffer_names(prefix: str, model: Any) -> Iterator[str]:
    from torch.nn import Module

    # All names count: a mask that layers share has one in each of them.
    for name, _ in model.named_buffers(remove_duplicate=False) if isinstance(model, Module) else ():
        yield f"{prefix}.{name}" if prefix else name


def _named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor that could hold a NaN, with its dotted name."""
    from torch import Tensor

    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            yield from _named_tensors(item, f"{name}.{number}")


def _extremes(tensor: Tensor) -> tuple[float, float]:
    """Return the smallest and the largest number in a tensor: NaN if it has any, 0 if it has no numbers."""
    import torch

    numbers = torch.view_as_real(stored) if (stored := _stored(tensor)).is_complex() else stored
    if numbers.numel() == 0:
        return 0.0, 0.0
    if numbers.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        lowest, highest = torch.aminmax(numbers)
        return float(lowest), float(highest)
    if "float8" not in str(numbers.dtype):
        return 0.0, 0.0  # narrower types hold neither NaN nor infinity
    found = [torch.aminmax(piece.to(torch.float32)) for piece in torch.split(numbers.reshape(-1), _PIECE_ELEMENTS)]
    lowest, highest = torch.stack([low for low, _ in found]).amin(), torch.stack([high for _, high in found]).amax()
    return float(lowest), float(highest)


def _stored(tensor: Tensor) -> Tensor:
    """Return the numbers that a tensor of any layout stores."""
    import torch

    if tensor.layout is torch.strided and not tensor.is_nested:
        return tensor.resolve_conj()
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    if tensor.is_mkldnn:
        return tensor.to_dense()
    return tensor.values()


def _shown(name: str) -> str:
    """Make a name safe and short enough for a message."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= _MAX_NAME_LENGTH else text[: _MAX_NAME_LENGTH - 1] + "…"
