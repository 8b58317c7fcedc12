"""Managers as tests of maintenance ask for them, and what kills their calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager
from tests.helpers import MakeManager
from tests.killer import Killer


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """What kills calls of this module's tests."""
    found = Killer()
    yield found
    found.close()


@pytest.fixture
def alone(make_manager: MakeManager) -> CheckpointManager:
    """A manager that makes no backups."""
    return make_manager(backup_checkpoints=False)


@pytest.fixture
def unlimited(make_manager: MakeManager) -> CheckpointManager:
    """A manager that retires nothing by itself and makes no backups."""
    return make_manager(max_checkpoints=1000, backup_checkpoints=False)


@pytest.fixture(params=["inside", "elsewhere"])
def backed_up(request: pytest.FixtureRequest, make_manager: MakeManager, tmp_path: Path) -> CheckpointManager:
    """A manager with backups on, in the default place and in another store."""
    return make_manager(backup_dir=None if request.param == "inside" else str(tmp_path / "vault"))
