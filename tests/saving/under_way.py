"""Saves in the background: begun, held up or made to fail, and what they stored."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager
from ckpt_lib.experiment import commit
from tests.helpers import fingerprint, payload_path


class Gate:
    """Holds commits up, or makes them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self._save = commit.save
        monkeypatch.setattr(commit, "save", self._saved)

    def _saved(self, *arguments: Any, **options: Any) -> Any:
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        return self._save(*arguments, **options)


def start(manager: CheckpointManager, epoch: int, **options: Any) -> Any:
    return manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=epoch, **options)


def stored_state(manager: CheckpointManager, checkpoint_id: str | None) -> str:
    """The fingerprint of model, optimizer and scheduler as plain ``torch.load`` finds them in a checkpoint."""
    assert checkpoint_id is not None
    payload = torch.load(payload_path(manager, checkpoint_id), weights_only=True)
    return fingerprint([payload[f"{part}_state_dict"] for part in ("model", "optimizer", "scheduler")])


def state_now(parts: Any) -> str:
    return fingerprint([part.state_dict() for part in (parts.model, parts.optimizer, parts.scheduler)])


def raising(error: BaseException) -> Any:
    def fail() -> None:
        raise error

    return fail
