"""Whether a state can be read back as it is: tried out in memory, before anything is stored."""

from __future__ import annotations

from typing import Any

import torch

from ckpt_lib.errors import CheckpointError, UnsupportedStateError
from ckpt_lib.formats.base import Format, Payload
from ckpt_lib.formats.in_memory import MemorySource, encoded
from ckpt_lib.state.sameness import first_difference, is_dense
from ckpt_lib.state.tree import map_leaves

MAX_TRIAL_BYTES = 64 * 2**20
"""So many bytes of tensors are tried out. Of further ones, all but their elements are."""


def check_read_back(stored_format: Format, prepared: Payload) -> None:
    """Write and read a prepared payload in memory, of which this takes little.

    Raises :class:`UnsupportedStateError` if anything comes back as something else.
    """
    tried = map_leaves(prepared, _Trial())
    try:
        found = stored_format.read(MemorySource(encoded(stored_format, tried)))
    except UnsupportedStateError:
        raise
    except CheckpointError as error:
        raise UnsupportedStateError(
            f"the state could not be read back in the format {stored_format.name}: {error}", hint=_HINT
        ) from error
    if place := first_difference(found, tried):
        raise UnsupportedStateError(
            f"{place} would come back as another value in the format {stored_format.name}", hint=_HINT
        )


_HINT = "The format has a fault of its own: tell its author, and save in another one meanwhile."


class _Trial:
    """Takes the first tensors as they are, and stands in for the others."""

    def __init__(self) -> None:
        self._left_bytes = MAX_TRIAL_BYTES
        self._tried: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._tried:
            self._tried[id(value)] = self._of_tensor(value)
        return self._tried[id(value)]

    def _of_tensor(self, tensor: torch.Tensor) -> torch.Tensor | None:
        if not is_dense(tensor):
            return tensor if tensor.device.type == "cpu" else None  # prepare() has tried it out, whole
        self._left_bytes -= tensor.untyped_storage().nbytes()
        if self._left_bytes < 0:
            return _like(tensor, torch.empty(0, dtype=tensor.dtype, device="cpu"))
        return tensor if tensor.device.type == "cpu" else _like(tensor, tensor.detach().cpu())


def _like(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Return ``data`` with all that ``tensor`` is besides its elements."""
    if type(tensor) is torch.nn.Parameter:
        data = torch.nn.Parameter(data, tensor.requires_grad)
    elif tensor.requires_grad:
        data.requires_grad_()
    vars(data).update(vars(tensor))
    return data
