"""A state that has one of two tied tensors is whole; one that lacks any other is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StateMismatchError
from ckpt_lib.state.ties import with_tied


class Head(nn.Module):
    """A model whose head is its embedding."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def imported(folder: Path, state: dict[str, Any]) -> CheckpointManager:
    torch.save({"state_dict": state, "epoch": 0}, folder / "a.pt")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(folder / "s"), backup_checkpoints=False), "e")
    manager.import_checkpoint(folder / "a.pt")
    return manager


@pytest.mark.parametrize("name", ["embedding.weight", "head.weight", "module.head.weight"])
def test_either_of_two_is_enough(tmp_path: Path, name: str) -> None:
    """Both are set, with the name of a wrapper before it as well."""
    weights = torch.randn(5, 3)
    model = Head()
    imported(tmp_path, {name: weights}).load_checkpoint("latest", model=model)
    assert torch.equal(model.head.weight, weights)
    assert model.head.weight is model.embedding.weight


def test_a_model_that_ties_nothing_needs_both(tmp_path: Path) -> None:
    """A tensor of its own that is not stored is missing, and nothing is changed."""
    model = Head(tied=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StateMismatchError, match=r"head\.weight"):
        imported(tmp_path, {"embedding.weight": torch.ones(5, 3)}).load_checkpoint("latest", model=model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_part_of_a_tensor_is_no_tie() -> None:
    """Views of the same memory with other shapes hold other elements, as do empty tensors and those without memory."""
    whole = torch.arange(6.0)
    current = {"a": whole, "b": whole[:3], "c": whole.view(2, 3), "d": torch.ones(0), "e": torch.ones(0)}
    assert with_tied({"a": whole, "d": torch.ones(0)}, current).keys() == {"a", "d"}
    meta = {name: torch.ones(2, device="meta") for name in "ab"}
    assert with_tied({"a": torch.ones(2)}, meta).keys() == {"a"}


def test_the_versions_of_modules_stay() -> None:
    """By these, loading migrates old states."""
    state = Head().state_dict()
    del state["head.weight"]
    model = Head()
    found = with_tied(state, model.state_dict())
    assert found._metadata == state._metadata  # type: ignore[attr-defined]
    assert found["head.weight"] is state["embedding.weight"]
