"""The others: each saves or loads a state in its fastest configuration, and is made as durable as ours.

A saver gets a new, empty folder. What does not call fsync itself is followed by fsync of every file and folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from benchmarks.states import State, tensors_in

CORES = os.cpu_count() or 1
FILE_NAME = "state.pt"
TORCH_SAVE = "torch.save + fsync"
DCP = f"DCP, {CORES} threads"
DCP_PLAIN = "DCP, as it comes"

Save = Callable[[Path], None]
Load = Callable[[Path], object]


@dataclass(frozen=True)
class Peer:
    """How one library saves a state into a folder and loads it back into the model."""

    name: str
    make_save: Callable[[State], Save]
    make_load: Callable[[State], Load]
    module: str = "torch"
    """What must be installed."""

    @property
    def is_installed(self) -> bool:
        return find_spec(self.module) is not None


def make_durable(folder: Path) -> None:
    """Call fsync for every file and folder in ``folder``, and for itself."""
    for place, _, names in os.walk(folder, topdown=False):
        for path in (*(Path(place, name) for name in names), Path(place)):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def torch_save(state: State, folder: Path) -> None:
    """What most training scripts do, made durable."""
    torch.save(state.collected(), folder / FILE_NAME)
    make_durable(folder)


def save_and_copy_verified(state: State, folder: Path) -> None:
    """The common recipe for a checkpoint with a backup: save, read back for a digest, copy, and read the copy back."""
    torch_save(state, folder)
    digest = _sha256(folder / FILE_NAME)
    (folder / "backup").mkdir()
    shutil.copy(folder / FILE_NAME, folder / "backup")
    make_durable(folder / "backup")
    if _sha256(folder / "backup" / FILE_NAME) != digest:
        raise RuntimeError("the copy differs")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torch_load(state: State, folder: Path, *, mapped: bool = False) -> None:
    """Read what :func:`torch_save` wrote, and restore it."""
    loaded = torch.load(folder / FILE_NAME, weights_only=True, mmap=mapped)
    for name, part in state.parts.items():
        part.load_state_dict(loaded[f"{name}_state_dict"])


def _dcp_save(state: State, folder: Path, *, threads: int) -> None:
    writer = FileSystemWriter(folder, thread_count=threads)  # calls fsync for its files
    dcp_save(state.collected(), storage_writer=writer, no_dist=True)


def _dcp_load(state: State, folder: Path) -> None:
    dcp_load(state.collected(), checkpoint_id=folder, no_dist=True)  # into the tensors of the model themselves


def _safetensors_save(state: State, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors_in(state.collected()), folder / "state.safetensors")  # it has no place for anything but tensors
    make_durable(folder)


def _safetensors_load(state: State, folder: Path) -> None:
    from safetensors.torch import load_file

    loaded = load_file(folder / "state.safetensors")
    for name, tensor in tensors_in(state.collected()).items():
        tensor.copy_(loaded[name])


def _snapshot_save(state: State, folder: Path) -> None:
    from torchsnapshot import Snapshot, StateDict

    Snapshot.take(str(folder), {"state": StateDict(**state.collected())})
    make_durable(folder)


def _snapshot_load(state: State, folder: Path) -> None:
    from torchsnapshot import Snapshot, StateDict

    Snapshot(str(folder)).restore({"state": StateDict(**state.collected())})


def _torch_checkpointing_save(state: State) -> Save:
    manager = torch_checkpointing_manager()

    def save(folder: Path) -> None:
        manager.save(str(folder / "checkpoint"), state.collected())
        make_durable(folder)

    return save


def _torch_checkpointing_load(state: State) -> Load:
    manager = torch_checkpointing_manager()
    return lambda folder: manager.load(str(folder / "checkpoint"), into=state.collected())


def torch_checkpointing_manager(*, asynchronous: bool = False) -> Any:
    """Their manager, for CPU."""
    from torch_checkpointing import AsyncCheckpointSaverConfig, CheckpointManager, SyncCheckpointSaverConfig
    from torch_checkpointing.staging import CheckpointStagerConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    # The default stager needs CUDA, and the default storage, direct I/O, writes blocks of any length, which file
    # systems refuse.
    staging = CheckpointStagerConfig(
        use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
    )
    saver = AsyncCheckpointSaverConfig(staging_config=staging) if asynchronous else SyncCheckpointSaverConfig()
    storage = LocalFileSystemStorageConfig(use_direct_io=False)
    return CheckpointManager.Config(save=saver, storage_config=storage).build()


def _simple(function: Callable[..., None], **options: Any) -> Callable[[State], Save]:
    return lambda state: partial(function, state, **options)


PEERS = (
    Peer(TORCH_SAVE, _simple(torch_save), _simple(torch_load)),
    Peer(DCP, _simple(_dcp_save, threads=CORES), _simple(_dcp_load)),
    Peer(DCP_PLAIN, _simple(_dcp_save, threads=1), _simple(_dcp_load)),
    Peer("safetensors", _simple(_safetensors_save), _simple(_safetensors_load), "safetensors"),
    Peer("torchsnapshot", _simple(_snapshot_save), _simple(_snapshot_load), "torchsnapshot"),
    Peer("torch_checkpointing", _torch_checkpointing_save, _torch_checkpointing_load, "torch_checkpointing"),
)


def installed() -> list[Peer]:
    """The peers that can be measured here."""
    return [peer for peer in PEERS if peer.is_installed]


def missing() -> list[str]:
    """The names of those that cannot."""
    return [peer.name for peer in PEERS if not peer.is_installed]
