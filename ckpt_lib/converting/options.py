"""What a checkpoint is to be converted to: the options, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from ckpt_lib.converting.names import OF_WEIGHTS, TargetFormat
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.formats.safetensors.writing import SHARD_BYTES

_FORMATS: tuple[TargetFormat, ...] = get_args(TargetFormat)
_SUFFIXES: dict[str, TargetFormat] = {
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".safetensors": "safetensors",
    ".ckpt": "lightning",
}
_DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp64": torch.float64,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class ConversionOptions:
    """What is wanted. The fields are checked by :func:`conversion_options`."""

    format: TargetFormat
    dtype: torch.dtype | None = None
    """The type of the model's floating tensors; ``None`` for the one that each has."""
    only_model: bool = False
    max_shard_bytes: int = SHARD_BYTES
    progress: Callable[[int], object] | None = None
    """Is called with the number of bytes that were written since the last call, by another thread."""

    @property
    def holds_weights_only(self) -> bool:
        """Tell whether the format has no place for anything but the weights of a model."""
        return self.format in OF_WEIGHTS


def conversion_options(
    destination: str,
    *,
    format: str | None = None,  # noqa: A002
    dtype: str | torch.dtype | None = None,
    only: Literal["model"] | None = None,
    shard_size: int | str | None = None,
    progress: Callable[[int], object] | None = None,
) -> ConversionOptions:
    """Return the options, checked. Without a ``format``, the suffix of the destination names it.

    Raises :class:`~ckpt_lib.errors.ConfigError`.
    """
    if only not in (None, "model"):
        raise ConfigError("only names no part that can be converted by itself", expected="'model'", got=shown(only))
    return ConversionOptions(
        _format_of(destination, format), _dtype_of(dtype), only == "model", _size_of(shard_size), progress
    )


def _size_of(size: int | str | None) -> int:
    if size is None:
        return SHARD_BYTES
    try:
        size_bytes = 0 if isinstance(size, bool) else int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        size_bytes = 0
    if size_bytes <= 0:
        raise ConfigError("the size of a shard is no size", expected="a size such as 5GB", got=shown(size))
    return size_bytes


def _format_of(destination: str, name: str | None) -> TargetFormat:
    for known in _FORMATS:
        if name == known:
            return known
    if name is not None:
        raise ConfigError("no such format can be written", expected=", ".join(_FORMATS), got=shown(name))
    found = next((known for suffix, known in _SUFFIXES.items() if destination.lower().endswith(suffix)), None)
    if found is None:
        raise ConfigError(
            "the name of the destination does not say which format is wanted",
            path=destination,
            expected=f"a name that ends with {', '.join(_SUFFIXES)}, or a format",
            hint="Name the format: --format hf-folder, for example.",
        )
    return found


def _dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype in _DTYPES.values():
        return dtype if isinstance(dtype, torch.dtype) else None
    found = _DTYPES.get(dtype.lower()) if isinstance(dtype, str) else None
    if found is None:
        raise ConfigError("the weights cannot be cast to that", expected=", ".join(_DTYPES), got=shown(dtype))
    return found
