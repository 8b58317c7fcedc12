"""Checkpoints of any program: recognised, described and read. No code that they hold or name is run."""

from ckpt_lib.foreign.base import Facts, ForeignCheckpoint, Kind, Region, StoredObject, StoredTensor
from ckpt_lib.foreign.opening import open_checkpoint
from ckpt_lib.foreign.sources import FoundFiles, found_files
from ckpt_lib.foreign.tree import materialise, tensors_in

__all__ = [
    "Facts",
    "ForeignCheckpoint",
    "FoundFiles",
    "Kind",
    "Region",
    "StoredObject",
    "StoredTensor",
    "found_files",
    "materialise",
    "open_checkpoint",
    "tensors_in",
]
