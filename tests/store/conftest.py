"""The local store meets a disk: of what other tests write, most lies in memory."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    """A folder on the disk, instead of pytest's."""
    return disk_path
