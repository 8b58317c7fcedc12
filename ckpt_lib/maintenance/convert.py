"""``convert_checkpoint``, which loads what it needs only when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ckpt_lib.converting.targets import Conversion


def convert_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    format: str | None = None,  # noqa: A002
    dtype: Any = None,
    only: Literal["model"] | None = None,
    shard_size: int | str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Conversion:
    """Convert a checkpoint of any program to a format of another one. No store is needed, and no code of it is run.

    ``format`` is ``torch``, ``safetensors``, ``hf-folder``, ``lightning``, ``hf-trainer`` or ``accelerate``. Without
    it, the suffix of ``destination`` tells: ``.pt``, ``.pth``, ``.bin``, ``.safetensors`` or ``.ckpt``. ``dtype`` casts
    the floating tensors of the model, as in ``"bf16"``; ``only="model"`` leaves the rest out. ``shard_size`` is that of
    the largest file of safetensors, as a number of bytes or a text such as ``"10GB"``; 5 GB by default. A checkpoint of
    this library that has its manifest beside it is verified by that, and a file of torch by its checksums.

    Tensors are read and written one by one. The result is durable when this returns, and its files get their names only
    when all are whole; the same ones that are there are left. A crash leaves no part of a file; call it again.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError`, :class:`~ckpt_lib.errors.CorruptCheckpointError`,
    :class:`~ckpt_lib.errors.UnsafePayloadError` or :class:`~ckpt_lib.errors.UnsupportedFormatError` for a source that
    cannot be read, :class:`~ckpt_lib.errors.UnsupportedStateError` for what the format cannot hold,
    :class:`~ckpt_lib.errors.ConfigError` for options that cannot work and numbers that ``dtype`` cannot hold, and
    :class:`~ckpt_lib.errors.CheckpointExistsError` when another file is at the destination.
    """
    from ckpt_lib.maintenance.conversion import convert  # torch, only where it is used

    return convert(source, destination, format=format, dtype=dtype, only=only, shard_size=shard_size, progress=progress)
