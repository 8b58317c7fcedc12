"""Folders of this library's format ``safetensors``, taken out of their store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign import open_checkpoint
from tests.foreign.described import assert_same, kind_at, read, trained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The payload of a checkpoint with two names for one tensor, copied by hand."""
    model, optimizer, _ = trained()
    shared = torch.arange(4.0)
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), format="safetensors"), "run")
    manager.save_checkpoint(
        model=model,
        optimizer=optimizer,
        epoch=2,
        step=7,
        metrics={"loss": 0.5, "note": "x"},
        config={"lr": 0.1},
        extra_state={"one": shared, "other": shared[1:], "turned": torch.arange(6.0).view(2, 3).T},
    )
    (weights,) = (tmp_path / "store" / "run").glob("checkpoint_*/model.safetensors")
    shutil.copytree(weights.parent, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_payload_without_its_manifest(folder: Path) -> None:
    """All of it comes back, tensors that shared memory share it again, and the facts are those of the save."""
    model, optimizer, _ = trained()
    found = read(folder)
    facts = found.checkpoint.facts
    assert found.checkpoint.kind == "ckpt-safetensors"
    assert_same(found.payload["model_state_dict"], dict(model.state_dict()))
    assert_same(found.payload["optimizer_state_dict"]["state"], optimizer.state_dict()["state"])
    extra = found.payload["extra_state"]
    assert extra["one"].untyped_storage().data_ptr() == extra["other"].untyped_storage().data_ptr()
    assert torch.equal(extra["turned"], torch.arange(6.0).view(2, 3).T)
    assert (facts.epoch, facts.step, facts.metrics, facts.config) == (2, 7, {"loss": 0.5}, {"lr": 0.1})


def test_shared_memory_is_known_before_it_is_read(folder: Path) -> None:
    """Tensors that will share memory say so, and their shapes are those that they will have."""
    with open_checkpoint(folder) as found:
        extra = found.contents["extra_state"]
        assert extra["one"].memory == extra["other"].memory != extra["turned"].memory
        assert [extra[name].shape for name in ("one", "other", "turned")] == [(4,), (3,), (3, 2)]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_file_that_is_missing_or_cut_off_is_refused(folder: Path, name: str) -> None:
    """Nothing is loaded of a payload that is not whole."""
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptCheckpointError):
        kind_at(folder)
    (folder / name).unlink()
    if name != "state.json":  # without it, the weights are still those of a model
        with pytest.raises(CorruptCheckpointError):
            kind_at(folder)
