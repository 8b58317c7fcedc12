"""``save_state``: states by the payload's keys, without the objects that hold them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import ConfigError
from tests.helpers import MakeManager


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def states_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


def test_a_state_is_restored_into_objects(make_manager: MakeManager) -> None:
    """What was saved without model and optimizer is loaded into them."""
    model, optimizer = trained()
    manager = make_manager()
    saved = manager.save_state({**states_of(model, optimizer), "extra_state": {"seen": 5}}, epoch=4, step=2)
    other, other_optimizer = trained()
    loaded = manager.load_checkpoint(str(saved), other, other_optimizer)
    assert (loaded["epoch"], loaded["step"], loaded["extra_state"]) == (4, 2, {"seen": 5})
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other_optimizer.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


def test_the_payload_is_that_of_a_save_with_objects(make_manager: MakeManager) -> None:
    """Both ways of saving the same state write the same bytes."""
    model, optimizer = trained()
    manager = make_manager()
    by_objects = manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1, metrics={"val_loss": 0.5})
    by_state = manager.save_state(states_of(model, optimizer), epoch=1, metrics={"val_loss": 0.5})
    assert by_objects != by_state
    digests = {manager._locations.home.get(str(saved)).payload.sha256 for saved in (by_objects, by_state)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([1, 2], "state must be a mapping"),
        ({}, "needs a model"),
        ({"model_state_dict": None}, "needs a model"),
        ({"model_state_dict": {}, "ema": {}}, r"unknown keys: 'ema'.*extra_state"),
        ({"model_state_dict": {}, 7: {}}, "unknown keys: 7"),
        ({"model_state_dict": nn.Linear(1, 1)}, "model_state_dict must be a mapping"),
        ({"model_state_dict": {}, "extra_state": [1]}, "extra_state must be a mapping"),
    ],
)
def test_what_is_no_state_is_refused(make_manager: MakeManager, state: Any, words: str) -> None:
    """The error names the key, and nothing is written."""
    manager = make_manager()
    with pytest.raises(ConfigError, match=words):
        manager.save_state(state, epoch=1)
    assert manager.checkpoint_ids() == []


def test_options_hold_for_states_too(make_manager: MakeManager) -> None:
    """``save_optimizer``, the idempotency key and the save policy decide as they do with objects."""
    model, optimizer = trained()
    manager = make_manager(save_optimizer=False, save_interval=2)
    assert manager.save_state(states_of(model, optimizer), epoch=1) is None
    saved = manager.save_state(states_of(model, optimizer), epoch=2, idempotency_key="once")
    assert manager.save_state(states_of(model, optimizer), epoch=2, idempotency_key="once", force=True) == saved
    assert manager.load_checkpoint(str(saved))["optimizer_state_dict"] is None


def test_a_state_with_nan_is_unhealthy(make_manager: MakeManager) -> None:
    """The health check needs no model."""
    manager = make_manager(health_check=True)
    saved = manager.save_state({"model_state_dict": {"w": torch.tensor([math.nan])}}, epoch=1)
    assert "NaN or infinity in" in str(manager.get_checkpoint(str(saved)).unhealthy)
