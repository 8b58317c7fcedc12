"""The types of elements that are stored as such: those that safetensors 0.8 gives back as tensors, and their names."""

from __future__ import annotations

import torch

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""In the order in which the library sorts them: its files begin with the last, the widest, so that all are aligned.

F4 and F8_E8M0 are left out: its ``load_file`` refuses a file that holds one of them.
"""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ORDER = {dtype: -number for number, dtype in enumerate(DTYPES.values())}
"""Sorts as the library does."""

ALL_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)
}
"""Every type of PyTorch by its name there, for what is stored as its bytes."""
