"""Checkpoints to convert, and what comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckpt_lib.foreign import materialise, open_checkpoint

STATES = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict")


class Tied(nn.Module):
    """A model whose head is its embedding, as that of a language model, with whole numbers beside its weights."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.head(self.norm(self.embedding(tokens)))


def trained(model: nn.Module | None = None) -> dict[str, Any]:
    """A model after one step, with what trained it, for ``save_checkpoint``."""
    torch.manual_seed(0)
    model = model or Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.arange(5)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def script(path: Path, **more: Any) -> dict[str, Any]:
    """Write what a training script writes, and return it."""
    training = trained()
    contents = {f"{name}_state_dict": part.state_dict() for name, part in training.items()}
    contents |= {"epoch": 3, "step": 12, "config": {"width": 6}, **more}
    torch.save(contents, path)
    return contents


def payload_at(path: Path | str) -> dict[str, Any]:
    """All that is read from a checkpoint, whoever wrote it."""
    with open_checkpoint(path) as found:
        facts = {"epoch": found.facts.epoch, "step": found.facts.step, "config": dict(found.facts.config)}
        return {**facts, **materialise(dict(found.payload or {}))}


def loaded(path: Path | str) -> Any:
    """What plain PyTorch reads, without running code."""
    return torch.load(path, weights_only=True)
