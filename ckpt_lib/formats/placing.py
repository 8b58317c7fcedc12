"""Where loaded tensors go: ``map_location`` as ``torch.load`` takes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ckpt_lib.errors import ConfigError


def check_device(map_location: Any) -> None:
    """Refuse a device that cannot be used here. Later, the failure would look like a damaged payload."""
    if map_location is None or callable(map_location) or isinstance(map_location, Mapping):
        return
    if not isinstance(map_location, str | torch.device):
        raise ConfigError(
            "map_location is of the wrong type",
            expected='a device such as "cpu", a dict or a function, as torch.load takes them',
            got=type(map_location).__name__,
        )
    try:
        torch.empty(0, dtype=torch.uint8, device=map_location)
    except Exception as error:
        raise ConfigError(
            f"map_location={str(map_location)!r} cannot be used here: {first_line(error)}",
            hint='Load with map_location="cpu".',
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error of PyTorch, without the trace that may follow."""
    return str(error).strip().split("\n", 1)[0]


class Place:
    """Where the tensors of one payload go, all of which are stored as the CPU's.

    The constructor raises :class:`ConfigError`, as :func:`check_device` does.
    """

    def __init__(self, map_location: Any) -> None:
        if isinstance(map_location, Mapping):
            map_location = map_location.get("cpu", "cpu")
        check_device(map_location)
        self._choose = map_location if callable(map_location) else None
        self._device = torch.device("cpu" if map_location is None or self._choose else map_location)

    @property
    def is_cpu(self) -> bool:
        """True when tensors may stay in the memory of the file."""
        return self._device.type == "cpu"

    @property
    def is_memory_of_file(self) -> bool:
        """True when tensors stay in the memory of the file."""
        return self.is_cpu and self._choose is None

    def __call__(self, elements: torch.Tensor) -> torch.Tensor:
        """Return bytes that lie in CPU memory in the place that was asked for."""
        if self._choose is None:
            return elements.to(self._device)
        storage = self._choose(elements.untyped_storage(), "cpu")
        if storage is None:
            return elements
        if isinstance(storage, torch.storage.TypedStorage):
            storage = storage._untyped_storage
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
