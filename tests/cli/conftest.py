"""A store for the tests of ``ckpt``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import HOSTILE_TAG


@pytest.fixture(autouse=True)
def _no_terminal_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONUNBUFFERED"} & os.environ.keys():
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one experiment of three checkpoints, saved by a run that takes the second for the best."""
    root = tmp_path_factory.mktemp("template") / "store"
    config = CheckpointConfig(checkpoint_dir=str(root), monitor_metric="accuracy", monitor_mode="max")
    manager = CheckpointManager(config, "digits")
    for epoch, accuracy in ((1, 0.5), (2, 0.9), (3, float("nan"))):
        manager.save_checkpoint(
            model=torch.nn.Linear(4, 2),
            epoch=epoch,
            step=epoch * 10,
            metrics={"loss": 1 / epoch, "accuracy": accuracy},
            tags=[HOSTILE_TAG, "baseline"] if epoch == 1 else [f"epoch-{epoch}"],
            description="the first\nof three" if epoch == 1 else "",
            config={"optimizer": {"lr": 0.1 * epoch}},
        )
    return root


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    """A copy of it, to do with as one likes."""
    return Path(shutil.copytree(template, tmp_path / "store"))


@pytest.fixture
def ids(store: Path) -> list[str]:
    """The ids of its checkpoints, oldest first."""
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "digits").checkpoint_ids()
