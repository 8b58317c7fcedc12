"""The local store meets a disk: of what other tests write, most lies in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.folders import disk_folder


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder on the disk, instead of pytest's."""
    with tempfile.TemporaryDirectory(prefix="store-", dir=disk_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()
