"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.helpers import MakeManager, Parts, build

pytest.register_assert_rewrite("ckpt_lib.testing")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own CKPT_* variables configure no test."""
    for name in [name for name in os.environ if name.upper().startswith("CKPT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    """Where the managers of a test keep their experiments; not created yet."""
    return tmp_path / "store"


@pytest.fixture
def make_manager(store_path: Path) -> MakeManager:
    """Managers of one store; two with the same experiment name are like two processes that share it."""

    def make(experiment_name: str = "run", **options: Any) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(**{"checkpoint_dir": str(store_path), **options}), experiment_name)

    return make


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    """A manager with default options."""
    return make_manager()


@pytest.fixture
def parts() -> Parts:
    """A tiny model with optimizer and scheduler."""
    return build()
