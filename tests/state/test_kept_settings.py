"""Settings that a resume replaces: each is told, and those that are named are kept."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import ConfigError
from tests.helpers import MakeManager
from tests.state.builds import Run


def test_a_resume_says_what_it_replaces(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """A longer schedule that the stored one replaces is listed and warned of."""
    manager = make_manager()
    saved, longer = (Run("OneCycleLR", {"max_lr": 0.5, "total_steps": steps}) for steps in (20, 40))
    saved.step(7)
    manager.save_checkpoint(**saved.parts(), epoch=1)
    resumed = manager.resume(**longer.parts())
    assert resumed is not None
    assert resumed["replaced"]["scheduler"]["total_steps"] == (40, 20)
    assert "total_steps 40 by 20" in caplog.text


def test_settings_can_be_kept(make_manager: MakeManager) -> None:
    """With keep, the caller's learning rate, weight decay and schedule stay, and the rest is restored."""
    manager = make_manager()
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
    manager.save_checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, epoch=1)
    new = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(new, 7, gamma=0.9)
    resumed = manager.resume(model, new, scheduler, keep={"optimizer": ["lr"], "scheduler": ["step_size"]})
    assert resumed is not None
    assert (new.param_groups[0]["lr"], new.param_groups[0]["weight_decay"]) == (0.01, 0.5)
    assert (scheduler.step_size, scheduler.gamma) == (7, 0.5)
    assert resumed["replaced"]["optimizer"] == {"weight_decay": (0.1, 0.5)}
    for wrong in ({"optimizer": ["rate"]}, {"model": ["weight"]}, {"optimizer": "lr"}):
        with pytest.raises(ConfigError, match="keep"):
            manager.resume(model, new, keep=wrong)


@pytest.mark.parametrize("wanted", ["last_epoch", "_last_lr", "milestone"])
def test_what_is_no_setting_cannot_be_kept(make_manager: MakeManager, wanted: str) -> None:
    """Progress and unknown names are refused, and a name that comes close is suggested."""
    run = Run("MultiStepLR", {"milestones": [3]})
    manager = make_manager(backup_checkpoints=False)
    manager.save_checkpoint(**run.parts(), epoch=1)
    reason = "'milestones'" if wanted == "milestone" else "has reached and no setting"
    with pytest.raises(ConfigError, match=reason):
        manager.load_checkpoint(**run.parts(), keep={"scheduler": [wanted]})


def test_a_warning_stays_readable(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """Large settings are shortened, and of many only the first are shown."""
    manager = make_manager(backup_checkpoints=False)
    saved, target = (Run("MultiStepLR", {"milestones": range(start, 500)}) for start in (1, 2))
    target.optimizer.param_groups[0].update({f"own_{number}": number for number in range(9)})
    saved.optimizer.param_groups[0].update({f"own_{number}": number + 1 for number in range(9)})
    manager.save_checkpoint(**saved.parts(), epoch=1)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ckpt_lib"):
        assert len(manager.load_checkpoint(**target.parts())["replaced"]["optimizer"]) == 9
    assert "and 4 more" in caplog.text
    assert all(len(message) < 500 for message in caplog.messages)


@pytest.mark.parametrize("mine", [0.5, torch.tensor(0.5), torch.tensor([0.5])])
@pytest.mark.parametrize("stored", [0.1, torch.tensor(0.1)])
def test_rates_are_compared_by_value(make_manager: MakeManager, mine: Any, stored: Any) -> None:
    """A learning rate may be a tensor or a number, on either side."""
    manager = make_manager(backup_checkpoints=False)
    model = nn.Linear(2, 1)
    manager.save_checkpoint(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=stored), epoch=1)
    same = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert manager.load_checkpoint(model=model, optimizer=same)["replaced"] == {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=copy.deepcopy(mine))
    payload = manager.load_checkpoint(model=model, optimizer=optimizer, keep={"optimizer": ["lr"]})
    assert payload["replaced"] == {}
    assert float(optimizer.param_groups[0]["lr"]) == 0.5
    optimizer = torch.optim.AdamW(model.parameters(), lr=copy.deepcopy(mine))
    assert list(manager.load_checkpoint(model=model, optimizer=optimizer)["replaced"]["optimizer"]) == ["lr"]


def test_settings_of_ones_own_in_parameter_groups(make_manager: MakeManager) -> None:
    """They are listed and kept like any other; one that the checkpoint lacks stays."""

    def build(scale: float, **more: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(2, 1)
        groups = [{"params": [model.weight], "lr_scale": scale, **more}, {"params": [model.bias], "lr_scale": 1.0}]
        return model, torch.optim.SGD(groups, lr=1.0)

    manager = make_manager(backup_checkpoints=False)
    model, optimizer = build(0.1)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1)
    target = build(0.7, layer="first")
    assert manager.load_checkpoint("latest", *target)["replaced"] == {
        "optimizer": {"param_groups[0].lr_scale": (0.7, 0.1)}
    }
    assert target[1].param_groups[0]["layer"] == "first"
    target = build(0.7)
    manager.load_checkpoint("latest", *target, keep={"optimizer": ["lr_scale"]})
    assert target[1].param_groups[0]["lr_scale"] == 0.7
