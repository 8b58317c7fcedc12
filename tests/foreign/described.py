"""Opens checkpoints of other programs for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ckpt_lib.foreign import ForeignCheckpoint, materialise, open_checkpoint


class Read(NamedTuple):
    """What was found at a path, with the tensors themselves."""

    checkpoint: ForeignCheckpoint
    contents: dict[str, Any]
    payload: dict[str, Any]


def read(path: Path) -> Read:
    """Open a checkpoint and read all of it."""
    with open_checkpoint(path) as found:
        return Read(found, materialise(dict(found.contents)), materialise(dict(found.payload or {})))


def kind_at(path: Path) -> str:
    """Return the name of the kind that a checkpoint is taken for."""
    with open_checkpoint(path) as found:
        return found.kind


def assert_same(found: Any, expected: Any) -> None:
    """Require the same structure with the same tensors, to the bit."""
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, Mapping):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for item, other in zip(found, expected, strict=True):
            assert_same(item, other)
    else:
        assert found == expected


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def trained() -> tuple[torch.nn.Linear, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return a model with its optimizer and scheduler after one step."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler
