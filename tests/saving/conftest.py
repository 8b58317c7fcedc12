"""Fixtures of saves that are held up, and of stores that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.events import Event, subscribe
from ckpt_lib.saving import failover
from tests.helpers import MakeManager
from tests.saving.under_way import Gate


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "RETRY_DELAYS_SECONDS", (0.001, 0.001))


@pytest.fixture
def fallback_dir(tmp_path: Path) -> Path:
    return tmp_path / "fallback"


@pytest.fixture
def make_safe(make_manager: MakeManager, fallback_dir: Path) -> MakeManager:
    """Managers with a fallback folder, that keep all and make no backups."""

    def make(experiment_name: str = "run", **options: Any) -> CheckpointManager:
        given = {"max_checkpoints": 1000, "backup_checkpoints": False, "fallback_dir": str(fallback_dir), **options}
        return make_manager(experiment_name, **given)

    return make


@pytest.fixture
def seen() -> Iterator[list[Event]]:
    """The events of the test."""
    events: list[Event] = []
    end = subscribe(events.append)
    yield events
    end()
