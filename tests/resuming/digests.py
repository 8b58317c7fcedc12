"""Digests of all that a training consists of.

They ask the objects and the generators themselves: what the code under test forgets to save must not be forgotten here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def digests_of(**objects: Any) -> dict[str, str]:
    """Return a digest of the state of each object, and of each generator that code uses when it names none."""
    states = {name: _state_of(item) for name, item in objects.items()}
    states |= {
        "generator of Python": random.getstate(),
        "generator of NumPy": np.random.get_state(legacy=False),
        "generator of PyTorch": torch.get_rng_state(),
    }
    return {name: hashlib.sha256(_canonical(state)).hexdigest() for name, state in states.items()}


def _state_of(item: Any) -> Any:
    return item.get_state() if isinstance(item, torch.Generator) else item.state_dict()


def _canonical(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().numpy()
    if isinstance(value, np.ndarray):
        return repr((value.dtype, value.shape)).encode() + value.tobytes()
    if isinstance(value, Mapping):
        return b"{" + b",".join(repr(key).encode() + _canonical(item) for key, item in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return repr(value).encode()
