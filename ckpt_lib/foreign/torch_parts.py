"""Files of ``torch.save`` that are parts of a larger checkpoint."""

from __future__ import annotations

from typing import Any

from ckpt_lib.errors import CheckpointError, UnsupportedFormatError
from ckpt_lib.foreign.sources import FoundFiles
from ckpt_lib.foreign.torch_files import contents_of
from ckpt_lib.stream import VerifiedFile


def read_torch(files: FoundFiles, name: str) -> Any:
    """Describe what a file in a folder holds. Errors name the file.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` for one that is cut off or contradicts itself,
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one out of proportion, and
    :class:`~ckpt_lib.errors.UnsupportedFormatError` for one whose tensors cannot be read.
    """
    try:
        return value_of(files.open(name))
    except CheckpointError as error:
        error.path = f"{files.path}/{name}"
        raise


def value_of(file: VerifiedFile) -> Any:
    """Describe what ``torch.save`` has written. Raises as :func:`read_torch` does."""
    found = contents_of(file)
    if found.obstacle is not None:
        raise UnsupportedFormatError(f"a part of the checkpoint cannot be read: {found.obstacle}")
    return found.value
