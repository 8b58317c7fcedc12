"""Finds out of which kind a checkpoint is, and opens it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import cast

from ckpt_lib.errors import CheckpointError, NotACheckpointError
from ckpt_lib.foreign.base import ForeignCheckpoint, Kind
from ckpt_lib.foreign.sources import FoundFiles, found_files

_KINDS = {
    "torch": "ckpt_lib.foreign.torch_files:TorchFile",
    "safetensors": "ckpt_lib.foreign.safetensors_files:SafetensorsFile",
    "ckpt-safetensors": "ckpt_lib.foreign.own_folders:OwnSafetensorsFolder",
    "megatron": "ckpt_lib.foreign.megatron:MegatronFolder",
    "dcp": "ckpt_lib.foreign.dcp_folders:DcpFolder",
    "hf-trainer": "ckpt_lib.foreign.hugging_face:TrainerCheckpoint",
    "deepspeed": "ckpt_lib.foreign.deepspeed:DeepSpeedFolder",
    "accelerate": "ckpt_lib.foreign.accelerate_folders:AccelerateFolder",
    "huggingface": "ckpt_lib.foreign.hugging_face:HuggingFaceModel",
}
"""Each kind by name, in the order in which they are asked: a kind that others would take for theirs comes first."""

_PARTS = (".index.json", ".distcp", ".metadata", "trainer_state.json", "latest", "state.json")
"""Files that are opened with what lies beside them."""


@contextmanager
def open_checkpoint(path: str | os.PathLike[str]) -> Iterator[ForeignCheckpoint]:
    """Describe the checkpoint at a path or URL, whoever wrote it. Its files are open until the context ends.

    No code that it holds or names is run, and no tensor is read. Raises
    :class:`~ckpt_lib.errors.NotACheckpointError` for what is none, :class:`~ckpt_lib.errors.CorruptCheckpointError` for
    one that is cut off or contradicts itself, :class:`~ckpt_lib.errors.UnsafePayloadError` for one that would take time
    or memory out of proportion, and the errors of the store.
    """
    with found_files(path) as files:
        yield describe_checkpoint(files)


def describe_checkpoint(files: FoundFiles) -> ForeignCheckpoint:
    """Describe the checkpoint that these files are. Raises what :func:`open_checkpoint` raises."""
    kind = kind_of(files)
    if kind is None:
        is_part = files.is_one_file and files.title.endswith(_PARTS)
        raise NotACheckpointError(
            "no program is known that writes such checkpoints",
            path=files.path,
            hint="Name the folder that the file lies in." if is_part else None,
        )
    try:
        return kind.open(files)
    except CheckpointError as error:
        error.path = error.path or files.path
        raise


def kind_of(files: FoundFiles) -> Kind | None:
    """Return the kind that these files are of; ``None`` if no kind recognises them."""
    return next((kind for kind in map(_load, _KINDS.values()) if kind.recognises(files)), None)


def _load(place: str) -> Kind:
    module, _, name = place.partition(":")
    return cast(Kind, getattr(import_module(module), name)())
