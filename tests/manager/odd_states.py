"""Odd state: what trainings hold besides float32 weights, each with whether a format of plain bytes can store it."""

from __future__ import annotations

import enum
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import nn

DTYPES = sorted(
    {dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
    - {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4},
    key=str,
)
"""Every type of elements: bfloat16, each float8, float4, complex, whole numbers of 1 to 64 bits, bare bits."""


def of_dtype(dtype: torch.dtype) -> torch.Tensor:
    """Elements of a type of which all bytes differ."""
    if dtype is torch.bool:
        return torch.tensor([True, False, True])
    return torch.arange(4 * dtype.itemsize, dtype=torch.uint8).view(dtype)


def quantized(dtype: torch.dtype) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(6.0), 0.5, 1, dtype)


def by_channel() -> torch.Tensor:
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 3])
    return torch.quantize_per_channel(torch.arange(6.0).view(2, 3), scales, zeros, 0, torch.qint8)


def shared() -> dict[str, torch.Tensor]:
    storage = torch.arange(24.0)
    return {
        "whole": storage,
        "row": storage.view(4, 6)[1],
        "bytes": storage[3:5].view(torch.uint8),
        "odd": storage[::5],
    }


DENSE: dict[str, Callable[[], Any]] = {
    **{str(dtype): partial(of_dtype, dtype) for dtype in DTYPES},
    "parameter of bfloat16": lambda: nn.Parameter(of_dtype(torch.bfloat16)),
    "frozen parameter of float8": lambda: nn.Parameter(of_dtype(torch.float8_e4m3fn), requires_grad=False),
    "buffer": lambda: nn.Buffer(torch.ones(2), persistent=False),
    "shared storage": shared,
    "0-d": lambda: torch.tensor(1.5),
    "empty": lambda: torch.empty(3, 0, 2),
    "empty of bfloat16": lambda: torch.empty(0, dtype=torch.bfloat16),
    "conjugate": lambda: torch.tensor([1 + 2j]).conj(),
    "negated": lambda: torch.tensor([1 + 2j]).conj().imag,
    "channels last": lambda: torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "expanded": lambda: torch.arange(3.0).expand(4, 3),
    "result of a computation": lambda: torch.ones(2, requires_grad=True) * 2,
    "generator of PyTorch": torch.get_rng_state,
    "generator of NumPy": lambda: np.random.default_rng(3).bit_generator.state,
    "old generator of NumPy": lambda: np.random.RandomState(3).get_state(),
    "gradient scaler": lambda: torch.amp.GradScaler("cpu").state_dict(),
}
"""What every format stores."""

SPECIAL: dict[str, Callable[[], torch.Tensor]] = {
    "COO": lambda: torch.eye(3).to_sparse(),
    "COO that repeats an index": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (3,), check_invariants=True
    ),
    "COO of rows": lambda: torch.sparse_coo_tensor(
        torch.tensor([[0, 2]]), torch.ones(2, 3), (3, 3), check_invariants=True
    ),
    "CSR": lambda: torch.eye(3).to_sparse_csr(),
    "CSC": lambda: torch.eye(3).to_sparse_csc(),
    "BSR": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "BSC": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "quantized in 8 bits": lambda: quantized(torch.qint8),
    "quantized in 32 bits": lambda: quantized(torch.qint32),
    "quantized by channel": by_channel,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
}
"""Tensors that are more than elements in a row: the format ``torch`` stores them, others refuse them."""


class Subclass(torch.Tensor):
    """A tensor of a class that no reader knows."""


def masked() -> Any:
    return np.ma.array([1, 2], mask=[False, True])


REFUSED: dict[str, Callable[[], Any]] = {
    "meta": lambda: torch.ones(2, device="meta"),
    "meta parameter": lambda: nn.Parameter(torch.ones(2, device="meta")),
    "subclass": lambda: torch.ones(2).as_subclass(Subclass),
    "not initialized": nn.parameter.UninitializedParameter,
    "quantized without a scale": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.qint8),
    "storage": lambda: torch.ones(2).untyped_storage(),
    "tensor as a key": lambda: {torch.ones(1): 1},
    "tensor in a set": lambda: {torch.ones(1)},
    "long double": lambda: np.longdouble(1.5),
    "array of long doubles": lambda: np.zeros(2, np.longdouble),
    "array of texts": lambda: np.array(["a"]),
    "array of dates": lambda: np.zeros(2, "M8[s]"),
    "array of records": lambda: np.zeros(2, [("a", "i4")]),
    "masked array": masked,
    "function": lambda: print,
    "generator": torch.Generator,
    "module": lambda: nn.Linear(1, 1),
    "class": lambda: Settings,
}
"""What no format stores."""


class Phase(enum.Enum):
    """Where a training is."""

    WARM_UP = "warm-up"
    FINE = 2


class Level(enum.IntEnum):
    HIGH = 3


class Feature(enum.Flag):
    ONE = 1
    TWO = 2


@dataclass
class Inner:
    """A dataclass in another."""

    weights: torch.Tensor
    path: Path


@dataclass(frozen=True)
class Settings:
    """What people keep beside the state of their objects."""

    phase: Phase
    inner: Inner
    history: list[Any] = field(default_factory=list)


def objects() -> dict[str, Any]:
    """Objects for ``extra_state``."""
    weights = torch.arange(3.0)
    return {
        "settings": Settings(Phase.WARM_UP, Inner(weights, Path("runs") / "a"), [Phase.FINE, np.float32(0.5)]),
        "by phase": {Phase.WARM_UP: 1, Phase.FINE: (Level.HIGH, Feature.ONE | Feature.TWO)},
        "paths": [PurePosixPath("/a/b"), PureWindowsPath("C:\\a")],
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "losses": [np.float64(0.5), np.float64(0.25)],
        "count": np.int64(3),
        "weights": weights,
    }


def as_loaded() -> dict[str, Any]:
    """What a load gives back of :func:`objects`."""
    weights = torch.arange(3.0)
    return {
        "settings": {
            "phase": "warm-up",
            "inner": {"weights": weights, "path": str(Path("runs/a"))},
            "history": [2, 0.5],
        },
        "by phase": {"warm-up": 1, 2: (3, 3)},
        "paths": ["/a/b", "C:\\a"],
        "array": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "losses": [0.5, 0.25],
        "count": 3,
        "weights": weights,
    }


CONVERTED = {
    "extra_state['settings']: tests.manager.odd_states.Settings as dict",
    "extra_state['settings']['phase']: tests.manager.odd_states.Phase as str",
    "extra_state['settings']['inner']: tests.manager.odd_states.Inner as dict",
    f"extra_state['settings']['inner']['path']: {Path.__module__}.{type(Path()).__qualname__} as str",
    "extra_state['settings']['history'][0]: tests.manager.odd_states.Phase as int",
    "extra_state['settings']['history'][1]: numpy.float32 as float",
    "a key of extra_state['by phase']: tests.manager.odd_states.Phase as str",
    "a key of extra_state['by phase']: tests.manager.odd_states.Phase as int",
    "extra_state['by phase'][<Phase.FINE: 2>][0]: tests.manager.odd_states.Level as int",
    "extra_state['by phase'][<Phase.FINE: 2>][1]: tests.manager.odd_states.Feature as int",
    f"extra_state['paths'][0]: {Path.__module__}.PurePosixPath as str",
    f"extra_state['paths'][1]: {Path.__module__}.PureWindowsPath as str",
    "extra_state['array']: numpy.ndarray as torch.Tensor",
    "extra_state['losses'][0] and 1 more: numpy.float64 as float",
    "extra_state['count']: numpy.int64 as int",
}


def made(make: Callable[[], Any]) -> Any:
    """Return an odd value; PyTorch warns of some that they are new, or old."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()
