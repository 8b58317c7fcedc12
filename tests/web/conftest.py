"""A store of two experiments, and a client of a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from tests.web.running import served


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store of two experiments."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), max_checkpoints=20, save_rng=False)
    for experiment, losses in (("digits", (3.0, 1.0, 2.0)), ("words", (float("nan"),))):
        manager = CheckpointManager(config, experiment)
        for epoch, loss in enumerate(losses, start=1):
            tags = ["odd"] if epoch % 2 else []
            manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": loss}, tags=tags)
    return config


@pytest.fixture
def settings(config: CheckpointConfig, tmp_path: Path) -> ServerSettings:
    """Those of a server without tokens."""
    return ServerSettings(config=config, jobs_folder=tmp_path / "jobs")


@pytest.fixture
def client(settings: ServerSettings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client
