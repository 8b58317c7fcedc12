"""A restore that fails, whatever the reason, leaves everything as it was, or says what it could not put back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointManager, TrainingState
from ckpt_lib.errors import StateMismatchError
from tests.helpers import MakeManager
from tests.state.builds import is_equal


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    return make_manager(backup_checkpoints=False)


class WithBuffer(nn.Module):
    """A layer, and a buffer after it."""

    def __init__(self, buffer: torch.Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("pos", buffer)


def made_in_inference_mode() -> torch.Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


@pytest.mark.parametrize(
    ("buffer", "reason"),
    [(lambda: torch.arange(3).expand(2, 3), "pos share memory"), (made_in_inference_mode, "pos made in inference")],
    ids=["expanded", "inference"],
)
def test_a_tensor_that_cannot_be_written_is_refused(
    manager: CheckpointManager, buffer: Callable[[], torch.Tensor], reason: str
) -> None:
    """PyTorch notices it after it has overwritten the weights: it is refused before."""
    model = WithBuffer(buffer())
    manager.save_checkpoint(model=model, epoch=1)
    nn.init.constant_(model.layer.weight, 7)
    for load in (manager.load_checkpoint, manager.resume):
        with pytest.raises(StateMismatchError, match=reason) as refused:
            load(model=model)
        assert str(refused.value).endswith("Nothing was changed.")
        assert (model.layer.weight == 7).all()


def test_a_tensor_that_cannot_be_written_is_undone(manager: CheckpointManager) -> None:
    """Beside a layer that decides itself what it takes, PyTorch is asked, and what it has overwritten is put back."""
    model = nn.Sequential(nn.BatchNorm1d(2), WithBuffer(torch.arange(3).expand(2, 3)))
    manager.save_checkpoint(model=model, epoch=1)
    nn.init.constant_(model[0].weight, 7)
    with pytest.raises(StateMismatchError, match="Nothing was changed"):
        manager.load_checkpoint(model=model)
    assert (model[0].weight == 7).all()
