"""Settings that a resume replaces: each is told, and those that are named are kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib.errors import ConfigError
from tests.helpers import MakeManager
from tests.state.builds import SCHEDULERS


def schedule(steps: int, lr: float = 0.1) -> dict[str, Any]:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=steps)
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def test_a_resume_says_what_it_replaces(make_manager: MakeManager, caplog: pytest.LogCaptureFixture) -> None:
    """A longer schedule that the stored one replaces is listed and warned of; equal settings are not."""
    manager = make_manager()
    saved = schedule(20)
    for _ in range(7):
        saved["optimizer"].step()
        saved["scheduler"].step()
    manager.save_checkpoint(**saved, epoch=1)
    same = manager.resume(**schedule(20))
    assert same is not None
    assert same["replaced"] == {}
    caplog.clear()
    longer = schedule(40)
    resumed = manager.resume(**longer)
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


def test_what_only_progressed_is_no_replacement(make_manager: MakeManager) -> None:
    """A learning rate that the schedule itself has moved is not told of."""
    manager = make_manager()

    def build() -> dict[str, Any]:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return {"model": model, "optimizer": optimizer, "scheduler": SCHEDULERS["ExponentialLR"](optimizer)}

    saved = build()
    for _ in range(5):
        saved["optimizer"].step()
        saved["scheduler"].step()
    manager.save_checkpoint(**saved, epoch=1)
    resumed = manager.resume(**build())
    assert resumed is not None
    assert resumed["replaced"] == {}
