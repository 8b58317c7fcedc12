"""A store of two experiments, and a client of a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ckpt_lib import CheckpointConfig
from ckpt_lib.web import ServerSettings
from tests.web.running import served, two_experiments


@pytest.fixture
def config(tmp_path: Path) -> CheckpointConfig:
    """A store of two experiments."""
    return two_experiments(tmp_path / "store")


@pytest.fixture
def settings(config: CheckpointConfig, tmp_path: Path) -> ServerSettings:
    """Those of a server without tokens."""
    return ServerSettings(config=config, jobs_folder=tmp_path / "jobs")


@pytest.fixture
def client(settings: ServerSettings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client
