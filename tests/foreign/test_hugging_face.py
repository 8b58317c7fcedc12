"""Folders of Transformers and Accelerate, written by hand as they write them; tests/peers has them write themselves."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.foreign import open_checkpoint
from ckpt_lib.foreign.payloads import with_payload
from tests.foreign.described import assert_same, kind_at, read, trained, write_json
from tests.foreign.test_dcp import WHOLE, Shards, rows

CONFIG = {"model_type": "bert", "transformers_version": "5.23.0", "hidden_size": 4}
STATE: dict[str, Any] = {
    "epoch": 2.5,
    "global_step": 50,
    "best_metric": 0.75,
    "best_model_checkpoint": "out/checkpoint-40",
    "log_history": [
        {"epoch": 1.0, "step": 20, "loss": 0.5, "learning_rate": 1e-3},
        {"epoch": 2.0, "step": 40, "eval_loss": 0.9, "eval_runtime": 3.0, "eval_samples_per_second": 2.0},
        {"epoch": 2.5, "step": 50, "loss": math.nan, "note": "x", "is_good": True},
    ],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder of the Trainer."""
    folder = tmp_path / "checkpoint-50"
    folder.mkdir()
    model, optimizer, scheduler = trained()
    save_file(dict(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "trainer_state.json", STATE)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    torch.save({"scale": 2.0}, folder / "scaler.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "training_args.bin").write_bytes(pickle.dumps(_Bomb()))
    return folder


class _Bomb:
    """Ends the process if it is unpickled."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_a_checkpoint_of_the_trainer(checkpoint: Path) -> None:
    """Weights, optimizer, scheduler and scaler come back to the bit, and the facts from within."""
    model, optimizer, scheduler = trained()
    found = read(checkpoint)
    facts = found.checkpoint.facts
    assert found.checkpoint.kind == "hf-trainer"
    assert_same(found.payload["model_state_dict"], dict(model.state_dict()))
    assert_same(found.payload["optimizer_state_dict"], optimizer.state_dict())
    assert_same(found.payload["scheduler_state_dict"], scheduler.state_dict())
    assert found.payload["others"] == {"scaler": {"scale": 2.0}}
    assert (facts.writer, facts.epoch, facts.step, facts.config) == ("transformers 5.23.0", 2, 50, CONFIG)
    metrics = dict(facts.metrics)
    assert math.isnan(metrics.pop("loss"))
    assert metrics == {"learning_rate": 1e-3, "eval_loss": 0.9, "best_metric": 0.75}


def test_the_states_fit_the_objects(checkpoint: Path) -> None:
    """PyTorch itself takes what was read."""
    model, optimizer, scheduler = trained()
    payload = read(checkpoint).payload
    model.load_state_dict(payload["model_state_dict"])
    optimizer.load_state_dict(payload["optimizer_state_dict"])
    scheduler.load_state_dict(payload["scheduler_state_dict"])


def test_the_arguments_are_never_opened(checkpoint: Path) -> None:
    """``training_args.bin`` is a pickle of a class: it is named as left out, as is the random state."""
    left_out = " ".join(read(checkpoint).checkpoint.left_out)
    assert "training_args.bin" in left_out
    assert "rng_state.pth" in left_out


@pytest.mark.parametrize("missing", ["trainer_state.json", "model.safetensors"])
def test_a_half_written_checkpoint_is_refused(checkpoint: Path, missing: str) -> None:
    """The Trainer writes its state last. Nobody resumes from a folder without it, or without weights."""
    (checkpoint / missing).unlink()
    with pytest.raises(CorruptCheckpointError, match=f"half-written: it lacks {missing}"):
        read(checkpoint)


@pytest.mark.parametrize("key_map", [None, {"model": "model"}])
def test_what_was_not_opened_is_told_whatever_the_names(checkpoint: Path, key_map: dict[str, str] | None) -> None:
    """A key_map names what is in the folder's entries, and brings back no file that is not among them."""
    with open_checkpoint(checkpoint) as found:
        assert "model" in found.contents
        told = with_payload(found, key_map).left_out
        assert any("training_args.bin" in sentence for sentence in told)
        assert set(found.unread) <= set(told)


def test_a_folder_named_as_a_checkpoint_is_suspicious(checkpoint: Path) -> None:
    """Weights in ``checkpoint-50`` without anything else may be what a kill left: they are read, and it is said."""
    for path in checkpoint.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            path.unlink()
    found = read(checkpoint)
    assert found.checkpoint.kind == "huggingface"
    assert "holds no trainer_state.json" in found.checkpoint.findings[0]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "scaler.pt"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_part_that_is_cut_off_is_refused(checkpoint: Path, name: str, keep: float) -> None:
    """The error names the file, however little is left of it."""
    data = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CorruptCheckpointError, match=name):
        read(checkpoint)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"epoch": None, "global_step": None, "log_history": None, "best_metric": None},
        {"epoch": math.inf, "global_step": 1.5, "log_history": [1, {"loss": "x"}], "best_metric": True},
        {"epoch": "3", "global_step": True, "log_history": {"loss": 1}, "best_metric": [1]},
    ],
)
def test_facts_of_another_type_are_left_out(checkpoint: Path, state: dict[str, Any]) -> None:
    """A state that says something odd makes the checkpoint no worse; it tells nothing then."""
    write_json(checkpoint / "trainer_state.json", state)
    facts = read(checkpoint).checkpoint.facts
    assert (facts.epoch, facts.step, dict(facts.metrics)) == (None, None, {})


def test_an_adapter_is_a_model(tmp_path: Path) -> None:
    """What PEFT saves has its own names."""
    save_file({"lora_A.weight": torch.ones(2)}, tmp_path / "adapter_model.safetensors")
    write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "peft_version": "0.20.0"})
    found = read(tmp_path)
    assert_same(found.payload["model_state_dict"], {"lora_A.weight": torch.ones(2)})
    assert found.checkpoint.facts.writer == "peft 0.20.0"


@pytest.fixture
def accelerate_folder(tmp_path: Path) -> Path:
    """Two models, with an optimizer and a scheduler, an object of the user's and the random states of two processes."""
    model, optimizer, scheduler = trained()
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "model_1.safetensors")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    torch.save(scheduler.state_dict(), tmp_path / "scheduler.bin")
    torch.save({"scale": 2.0}, tmp_path / "scaler.pt")
    torch.save({"seen": 3}, tmp_path / "custom_checkpoint_0.pkl")
    torch.save(_Bomb(), tmp_path / "random_states_0.pkl")
    (tmp_path / "random_states_1.pkl").write_bytes(pickle.dumps(_Bomb()))
    torch.save(_Bomb(), tmp_path / "sampler.bin")
    return tmp_path


def test_a_folder_of_accelerate(accelerate_folder: Path) -> None:
    """Several models are told apart by name; what is not opened is named."""
    model, optimizer, scheduler = trained()
    found = read(accelerate_folder)
    assert found.checkpoint.kind == "accelerate"
    assert_same(
        found.payload["model_state_dict"], {"model": dict(model.state_dict()), "model_1": {"weight": torch.ones(2)}}
    )
    assert_same(found.payload["optimizer_state_dict"], optimizer.state_dict())
    assert_same(found.payload["scheduler_state_dict"], scheduler.state_dict())
    assert found.payload["others"] == {"custom_checkpoint_0": {"seen": 3}, "scaler": {"scale": 2.0}}
    left_out = " ".join(found.checkpoint.left_out)
    assert all(name in left_out for name in ("random_states_0.pkl", "random_states_1.pkl", "sampler.bin"))


def test_a_pickle_of_an_object_is_left_out(accelerate_folder: Path) -> None:
    """A custom object that is no plain state is described and left out by name; it is never built."""
    torch.save(_Bomb(), accelerate_folder / "custom_checkpoint_0.pkl")
    found = read(accelerate_folder)
    assert found.payload["others"] == {"scaler": {"scale": 2.0}}
    assert "custom_checkpoint_0" in " ".join(found.checkpoint.left_out)


def test_a_folder_of_accelerate_without_weights_is_refused(accelerate_folder: Path) -> None:
    """Accelerate writes the weights first, so that a folder without them is none."""
    for path in accelerate_folder.glob("model*"):
        path.unlink()
    with pytest.raises(CorruptCheckpointError, match="no weights of a model"):
        kind_at(accelerate_folder)


def sharded(folder: Path, key: str, name: str) -> None:
    """Write a folder of shards as the processes of FSDP do."""
    folder.mkdir()
    shards = Shards(folder)
    shards.add(f"{key}.{name}", (7, 5), rows(3))
    shards.metadata.planner_data = {f"{key}.{name}": (key, *name.split("."))}
    shards.finish()


@pytest.mark.parametrize("is_trainer", [True, False])
def test_the_shards_of_fsdp_are_assembled(tmp_path: Path, is_trainer: bool) -> None:
    """The Trainer and Accelerate leave weights and optimizer to torch.distributed.checkpoint there."""
    sharded(tmp_path / "pytorch_model_fsdp_0", "model", "w")
    sharded(tmp_path / "optimizer_0", "optimizer", "state.w.exp_avg")
    if is_trainer:
        write_json(tmp_path / "trainer_state.json", STATE)
    else:
        torch.save({"last_epoch": 1}, tmp_path / "scheduler.bin")
    found = read(tmp_path)
    assert found.checkpoint.kind == ("hf-trainer" if is_trainer else "accelerate")
    assert_same(found.payload["model_state_dict"], {"w": WHOLE})
    assert_same(found.payload["optimizer_state_dict"], {"state": {"w": {"exp_avg": WHOLE}}})
    (tmp_path / "pytorch_model_fsdp_0" / "__1_0.distcp").unlink()
    with pytest.raises(CorruptCheckpointError, match="cut off or missing"):
        kind_at(tmp_path)
