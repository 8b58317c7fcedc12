"""Stores to look at: without experiments, with a few checkpoints, and with damage."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager

EVIL = '<img src=x onerror="window.evil=1">'
"""Markup in names and tags, which has to be shown as it is."""
MANY = 60
"""More than the list shows at once."""
TEMPLATES = "${window.evil=1}{{constructor}}"
"""The same for the templates that Gradio evaluates."""


def empty_store(folder: Path) -> CheckpointConfig:
    """A folder in which nothing was saved yet."""
    folder.mkdir()
    return config_of(folder)


def store_of_a_few(folder: Path) -> CheckpointConfig:
    """Three experiments: one longer than a page, one of NaN, and one of twelve with tags, a pin and parents."""
    config = config_of(folder)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    manager = CheckpointManager(config, "digits")
    for epoch in range(1, 13):
        loss = 1.2 * math.exp(-epoch / 5) + 0.02 * (epoch % 3)
        manager.save_checkpoint(
            model=model,
            optimizer=optimizer,
            epoch=epoch,
            step=epoch * 100,
            metrics={"val_loss": loss, "accuracy": 1 - loss / 2},
            tags=["even"] if epoch % 2 == 0 else [],
            description="after the warm-up" if epoch == 3 else "",
            config={"lr": 0.1 if epoch < 6 else 0.01, "name": EVIL},
        )
    manager.edit_checkpoint("epoch_4", add_tags=[EVIL, TEMPLATES], description=EVIL + TEMPLATES)
    manager.pin_checkpoint("epoch_5")
    words = CheckpointManager(config, "words")
    words.save_checkpoint(model=nn.Linear(2, 2), epoch=1, metrics={"val_loss": math.nan, EVIL: 1.0})
    many = CheckpointManager(config, "many")
    for epoch in range(1, MANY + 1):
        many.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics={"val_loss": (epoch * 37) % MANY / MANY})
    return config


def damaged_store(folder: Path) -> CheckpointConfig:
    """The same, with a flipped byte in epoch 7, and the file of epoch 9 gone; both have sound backups."""
    config = store_of_a_few(folder)
    manager = CheckpointManager(config, "digits")
    flipped = payload_of(config, manager.get_checkpoint("epoch_7").checkpoint_id)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    payload_of(config, manager.get_checkpoint("epoch_9").checkpoint_id).unlink()
    return config


def config_of(folder: Path) -> CheckpointConfig:
    """The configuration of a store in a folder, with an index of its own."""
    return CheckpointConfig(
        checkpoint_dir=str(folder), max_checkpoints=100, index_url=f"sqlite:///{folder.parent}/{folder.name}-index.db"
    )


def payload_of(config: CheckpointConfig, checkpoint_id: str, experiment: str = "digits") -> Path:
    """The file of a checkpoint."""
    return Path(config.checkpoint_dir) / experiment / f"{checkpoint_id}.pt"


def file_of_a_script(path: Path, epoch: int = 1) -> Path:
    """A file as scripts save it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(epoch)
    torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": epoch, "val_loss": 0.25}, path)
    return path
