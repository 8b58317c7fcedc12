"""A store with thousands of checkpoints, which the library itself has saved.

The saves go to a store in memory, where each takes about a millisecond, and its objects become the files of a local
one. The last save is made there, so that the folder holds what a training leaves.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.store.memory import MemoryStore

EXPERIMENT = "digits"
_STEPS_OF_EPOCH = 10


def build(root: Path, count: int, experiment_name: str = EXPERIMENT) -> CheckpointConfig:
    """Fill a folder with ``count`` checkpoints of one experiment, and return the configuration that finds them.

    The loss falls with some noise, one in fifty has the tag ``keep``, one in a thousand is pinned, and one has markup
    in its description.
    """
    name = uuid4().hex
    with CheckpointManager(_config(f"memory://{name}", save_metadata=False), experiment_name) as manager:
        for number in range(1, count):
            save(manager, number)
    store = MemoryStore(name)
    for entry in store.list("", recursive=True):
        path = root / entry.key
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.open_read(entry.key) as file:
            path.write_bytes(file.read_at(0, entry.size_bytes))
    config = _config(str(root))
    with CheckpointManager(config, experiment_name) as manager:
        save(manager, count)
    return config


def shared(temporary: pytest.TempPathFactory, count: int = 5_000) -> CheckpointConfig:
    """Return a store that is built once in a run of the tests, whose workers share it. Tests that change it copy it."""
    base = temporary.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"store-of-{count}"
    with root.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _config(str(root)) if root.with_suffix(".whole").exists() else _built(root, count)


def _built(root: Path, count: int) -> CheckpointConfig:
    config = build(root, count)
    root.with_suffix(".whole").touch()
    return config


def _config(place: str, *, save_metadata: bool = True) -> CheckpointConfig:
    return CheckpointConfig(
        checkpoint_dir=place,
        max_checkpoints=10**6,
        backup_checkpoints=False,
        save_rng=False,
        save_metadata=save_metadata,
        monitor_metric="val_loss",
    )


def save(manager: CheckpointManager, number: int) -> None:
    """Save the checkpoint of one step."""
    progress = math.exp(-number / 1000)
    metrics = {
        "val_loss": 2.5 * progress + 0.1 + 0.05 * math.sin(number),
        "train_loss": 2.4 * progress + 0.05 * math.sin(number / 3),
        "accuracy": 1 - 0.9 * progress,
    }
    saved = manager.save_state(
        {"model_state_dict": {"weight": torch.full((4, 4), float(number)), "bias": torch.zeros(4)}},
        epoch=number // _STEPS_OF_EPOCH,
        step=number,
        metrics=metrics,
        tags=["keep"] if number % 50 == 0 else [],
        description="<script>alert(1)</script>" if number == 7 else "",
        config={"learning_rate": 0.1, "batch_size": 32},
    )
    assert saved is not None
    if number % 1000 == 0:
        manager.edit_checkpoint(saved, pinned=True)


def copy(config: CheckpointConfig, root: Path) -> CheckpointConfig:
    """Copy a store to a folder of its own, for a test that changes it."""
    shutil.copytree(config.checkpoint_dir, root)
    return config.model_copy(update={"checkpoint_dir": str(root)})
