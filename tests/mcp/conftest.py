"""A store of one experiment, and a root logger that stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store of one experiment with three checkpoints, the second of which is the best."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), max_checkpoints=20, save_rng=False)
    manager = CheckpointManager(config, "digits")
    for epoch, loss in enumerate((3.0, 1.0, 2.0), start=1):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": loss})
    return config


@pytest.fixture
def manager(config: CheckpointConfig) -> CheckpointManager:
    return CheckpointManager(config, "digits")


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """The SDK configures the root logger of its process when a server is made."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
