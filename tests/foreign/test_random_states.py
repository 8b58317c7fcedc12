"""Random states in folders of Hugging Face: restored where they are whole, named where they are not."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.state.generators import GlobalGenerators
from tests.foreign.described import assert_same, read, trained


def folder_with(folder: Path, state: Any) -> Path:
    """Write a folder of Accelerate."""
    model, optimizer, _ = trained()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    torch.save(state, folder / "random_states_0.pkl")
    return folder


def whole() -> dict[str, Any]:
    """What Accelerate stores."""
    return {
        "step": 3,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }


@pytest.mark.parametrize("draw", [0, 3])
def test_a_state_is_that_of_our_own_generators(tmp_path: Path, draw: int) -> None:
    """With a pickled array of NumPy, and with the numbers that generators of normal numbers keep for later."""
    for _ in range(draw):
        random.gauss(0, 1)
        np.random.randn()
    expected = GlobalGenerators().state_dict()
    found = read(folder_with(tmp_path, whole()))
    assert_same(found.payload["rng_state"], [expected])
    assert not found.checkpoint.left_out


def test_generators_of_gpus_are_kept(tmp_path: Path) -> None:
    """A list of them stays one."""
    devices = [torch.arange(16, dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)]
    found = read(folder_with(tmp_path, {**whole(), "torch_cuda_manual_seed": devices}))
    assert_same(found.payload["rng_state"][0]["cuda"], devices)


@pytest.mark.parametrize(
    "change",
    [
        {"random_state": (3, (1, 2), None)},
        {"random_state": (3, (2**32,) * 625, None)},
        {"random_state": (3, ("x",) * 625, None)},
        {"numpy_random_seed": ("MT19937", np.zeros(3, dtype=np.uint32), 0, 0, 0.0)},
        {"numpy_random_seed": ("MT19937", np.zeros(624, dtype=np.float32), 0, 0, 0.0)},
        {"numpy_random_seed": None},
        {"torch_manual_seed": torch.ones(3)},
    ],
)
def test_what_is_no_state_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    """The checkpoint is read without it, and says so."""
    found = read(folder_with(tmp_path, {**whole(), **change}))
    assert "rng_state" not in found.payload
    assert "random_states_0.pkl" in " ".join(found.checkpoint.left_out)


def test_a_state_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """As any other part is."""
    path = folder_with(tmp_path, whole()) / "random_states_0.pkl"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptCheckpointError, match="random_states_0"):
        read(tmp_path)
