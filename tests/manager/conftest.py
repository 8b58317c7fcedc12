"""An experiment that refusals must leave as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager
from tests.helpers import MakeManager, contents, save


@pytest.fixture
def filled(make_manager: MakeManager) -> Iterator[CheckpointManager]:
    """A manager of an experiment with two checkpoints, of which the test must change not a byte."""
    manager = make_manager()
    for epoch in (1, 2):
        save(manager, epoch, tags=["t"])
    before = contents(Path(manager.config.checkpoint_dir))
    yield manager
    assert contents(Path(manager.config.checkpoint_dir)) == before
    assert all(manager.validate_all())
