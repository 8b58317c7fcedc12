"""What the page remembers of a whole experiment: no longer than it is true."""

from __future__ import annotations

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.page import remembered
from ckpt_lib.page.remembered import Remembered
from ckpt_lib.store.local.local_store import LocalStore


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the experiments whose checkpoints were listed."""
    listed: list[str] = []
    list_checkpoints = CheckpointManager.list_checkpoints

    def noted(manager: CheckpointManager) -> object:
        listed.append(manager.experiment_name)
        return list_checkpoints(manager)

    monkeypatch.setattr(CheckpointManager, "list_checkpoints", noted)
    return listed


def epochs(found: Remembered, manager: CheckpointManager) -> list[int]:
    return [item.epoch for item in found.of(manager, "checkpoints", manager.list_checkpoints)]


def test_nothing_is_read_twice(config: CheckpointConfig, asked: list[str]) -> None:
    """Of each experiment by itself, and of each question."""
    found = Remembered()
    managers = [CheckpointManager(config, name) for name in ("digits", "words")]
    for _ in range(3):
        assert [epochs(found, manager) for manager in managers] == [[1, 2, 3], [1]]
        assert found.of(managers[0], "another question", lambda: 7) == 7
    assert asked == ["digits", "words"]


def test_each_change_is_seen(config: CheckpointConfig, asked: list[str]) -> None:
    """A save, a deletion, an edit and a lost file, by whomever."""
    found, other = Remembered(), CheckpointManager(config, "digits")
    manager = CheckpointManager(config, "digits")
    assert epochs(found, manager) == [1, 2, 3]
    other.save_checkpoint(model=nn.Linear(1, 1), epoch=4, metrics={"val_loss": 1.0})
    assert epochs(found, manager) == [1, 2, 3, 4]
    other.delete_checkpoint("epoch_2")
    assert epochs(found, manager) == [1, 3, 4]
    other.pin_checkpoint("epoch_1")
    (first, *_) = found.of(manager, "checkpoints", manager.list_checkpoints)
    assert first.pinned
    assert len(asked) == 4


def test_after_a_time_all_is_read_again(
    config: CheckpointConfig, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was altered in place shows in the version of no folder."""
    monkeypatch.setattr(remembered, "_SECONDS", 0.0)
    found, manager = Remembered(), CheckpointManager(config, "digits")
    assert epochs(found, manager) == epochs(found, manager)
    assert len(asked) == 2


def test_a_store_that_cannot_tell(config: CheckpointConfig, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of it."""
    monkeypatch.setattr(LocalStore, "folder_version", lambda _self, _prefix: None)
    found, manager = Remembered(), CheckpointManager(config, "digits")
    assert epochs(found, manager) == epochs(found, manager)
    assert len(asked) == 2
