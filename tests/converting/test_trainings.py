"""Folders from which the Trainer of Transformers and Accelerate resume: what is in them, and what is refused.

That these programs do resume from them is in tests/peers.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ckpt_lib import CheckpointConfig, CheckpointManager, TrainingState, convert_checkpoint
from ckpt_lib.errors import UnsupportedStateError
from tests.converting.programs import Tied, loaded, payload_at, script, trained
from tests.foreign.described import assert_same, read
from tests.helpers import snapshot, without_locks


class Counter:
    """An object with a state."""

    def __init__(self, seen: int) -> None:
        self.seen = seen

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def saved(folder: Path, state: TrainingState, **facts: Any) -> CheckpointManager:
    """Save a checkpoint, and leave the generators as they were then."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(folder / "store"), backup_checkpoints=False), "e")
    manager.save_checkpoint(state, **{"epoch": 1, "step": 12, **facts})
    return manager


def test_a_folder_of_the_trainer_has_what_it_loads(tmp_path: Path) -> None:
    """Each file is what PyTorch alone reads, the generators are those of the save, and the metrics are in the log."""
    training = trained()
    state = TrainingState(**training, others={"scaler": Counter(3)})
    config = {"model": {"model_type": "x"}}
    manager = saved(tmp_path, state, metrics={"loss": 0.5}, config=config)
    path = Path(manager.export_checkpoint("latest", tmp_path / "checkpoint-12", format="hf-trainer"))
    names = {"model.safetensors", "config.json", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"}
    assert set(without_locks(snapshot(path))) == {*names, "trainer_state.json"}
    weights = load_file(path / "model.safetensors")
    assert "head.weight" not in weights  # the model ties it again
    assert_same(weights, {name: training["model"].state_dict()[name] for name in weights})
    assert_same(loaded(path / "optimizer.pt"), training["optimizer"].state_dict())
    assert_same(loaded(path / "scheduler.pt"), training["scheduler"].state_dict())
    assert loaded(path / "scaler.pt") == {"seen": 3}
    found = loaded(path / "rng_state.pth")
    assert found["python"] == random.getstate()
    assert torch.equal(found["cpu"], torch.get_rng_state())
    before = np.random.get_state()
    np.random.set_state(found["numpy"])
    assert_same([*map(str, np.random.get_state())], [*map(str, before)])
    own = json.loads((path / "trainer_state.json").read_text())
    assert (own["global_step"], own["epoch"], own["save_steps"]) == (12, 2.0, 500)
    assert own["log_history"] == [{"loss": 0.5, "epoch": 2.0, "step": 12}]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scheduler_state_dict": None}, "lacks the state of the scheduler"),
        ({"optimizer_state_dict": None, "scheduler_state_dict": None}, "optimizer and the scheduler"),
        ({"step": 0}, "does not say its step"),
        ({"config": {"peft_type": "LORA"}}, "adapter of PEFT"),
        ({"model_state_dict": {"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}}, "several states of a model"),
    ],
)
def test_what_the_trainer_would_resume_in_part_is_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    """It would begin with a new optimizer, or at the first step, without an error; nothing is written."""
    script(tmp_path / "a.pt", **change)
    with pytest.raises(UnsupportedStateError, match=match):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", format="hf-trainer")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["hf-trainer", "accelerate"])
def test_a_training_is_not_the_weights_alone(tmp_path: Path, kind: str) -> None:
    """For these there is another format, which the error names."""
    script(tmp_path / "a.pt")
    with pytest.raises(UnsupportedStateError, match="hf-folder"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", format=kind, only="model")
    assert not (tmp_path / "out").exists()


def test_what_is_not_in_a_folder_is_told(tmp_path: Path) -> None:
    """Sentences name each part, and each number that the Trainer goes by and nobody has said."""
    script(tmp_path / "a.pt", extra_state={"note": 1}, others={"ema": {"w": torch.ones(1)}})
    notes = " ".join(convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", format="hf-trainer").left_out)
    for told in ("others.ema", "extra_state.note", "save_steps", "no state of random number generators"):
        assert told in notes
    assert not (tmp_path / "out" / "rng_state.pth").exists()
    notes = " ".join(convert_checkpoint(tmp_path / "a.pt", tmp_path / "there", format="accelerate").left_out)
    for told in ("epoch 3, step 12, config, extra_state", "'ema' is custom_checkpoint_0"):
        assert told in notes


def test_what_the_trainer_had_stored_is_brought_to_the_step(tmp_path: Path) -> None:
    """Its log, its intervals and its callbacks stay; step and epoch are those of the checkpoint."""
    own: dict[str, Any] = {
        "epoch": 0.5,
        "global_step": 6,
        "save_steps": 3,
        "log_history": [{"loss": 0.7, "step": 6, "epoch": 0.5}],
        "stateful_callbacks": {"TrainerControl": {"args": {"should_save": True}, "attributes": {}}},
        "best_metric": 0.7,
    }
    script(tmp_path / "a.pt", extra_state={"trainer_state": own}, metrics={"loss": 0.6, "best_metric": 0.7})
    convert_checkpoint(tmp_path / "a.pt", tmp_path / "out", format="hf-trainer")
    found = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert (found["epoch"], found["global_step"], found["save_steps"], found["best_metric"]) == (1.0, 12, 3, 0.7)
    assert found["log_history"] == [*own["log_history"], {"loss": 0.6, "epoch": 1.0, "step": 12}]
    assert found["stateful_callbacks"]["TrainerControl"]["args"] == {"should_save": True}


def test_a_folder_of_accelerate_is_numbered_in_order(tmp_path: Path) -> None:
    """Models, optimizers and other objects are in the order in which they were saved, each whole."""
    trainings = {"b": trained(), "a": trained(Tied(width=3))}
    state = TrainingState(
        model={name: training["model"] for name, training in trainings.items()},
        optimizer={name: training["optimizer"] for name, training in trainings.items()},
        others={"own": Counter(3), "custom_checkpoint_0": Counter(1), "scaler": Counter(2)},
    )
    path = Path(saved(tmp_path, state).export_checkpoint("latest", tmp_path / "state", format="accelerate"))
    for name, ending in (("b", ""), ("a", "_1")):
        weights = load_file(path / f"model{ending}.safetensors")
        expected = trainings[name]["model"].state_dict()
        assert_same(weights, {key: expected[key] for key in weights})
        assert_same(loaded(path / f"optimizer{ending}.bin"), trainings[name]["optimizer"].state_dict())
    states = [loaded(path / f"{stem}") for stem in ("custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "scaler.pt")]
    assert states == [{"seen": 1}, {"seen": 3}, {"seen": 2}]
    random_state = loaded(path / "random_states_0.pkl")
    assert random_state["random_state"] == random.getstate()
    assert torch.equal(random_state["torch_manual_seed"], torch.get_rng_state())
    assert random_state["step"] == 0
    assert not list(path.glob("scheduler*"))


@pytest.mark.parametrize("kind", ["hf-trainer", "accelerate"])
def test_the_generators_come_back(tmp_path: Path, kind: str) -> None:
    """What is read from such a folder restores the generators as a checkpoint of ours does."""
    manager = saved(tmp_path, TrainingState(**trained()))
    expected = manager.load_checkpoint("latest")["rng_state"]
    path = Path(manager.export_checkpoint("latest", tmp_path / "out", format=kind))
    assert_same(read(path).payload["rng_state"], expected)
    manager.import_checkpoint(path)
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    resumed = manager.resume(TrainingState(**trained()))
    assert resumed is not None
    assert resumed["approximate"] == []
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_each_process_has_its_generators(tmp_path: Path) -> None:
    """In a file of its own, in both formats, in the order of the processes, also of more than ten."""
    first = saved(tmp_path, TrainingState(**trained())).load_checkpoint("latest")["rng_state"][0]
    states = [{**first, "torch": first["torch"] + number} for number in range(12)]
    script(tmp_path / "a.pt", rng_state=states)
    for kind in ("hf-trainer", "accelerate"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / kind, format=kind)
        assert_same(payload_at(tmp_path / kind)["rng_state"], states)


def test_the_second_conversion_finds_the_first(tmp_path: Path) -> None:
    """The same bytes are written each time."""
    script(tmp_path / "a.pt")
    for kind in ("hf-trainer", "accelerate"):
        convert_checkpoint(tmp_path / "a.pt", tmp_path / kind, format=kind)
        before = without_locks(snapshot(tmp_path / kind))
        convert_checkpoint(tmp_path / "a.pt", tmp_path / kind, format=kind)
        assert without_locks(snapshot(tmp_path / kind)) == before


def test_a_state_of_the_trainer_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    """With where it is, and nothing is written."""
    manager = saved(tmp_path, TrainingState(**trained()), extra_state={"trainer_state": {"best": torch.ones(2)}})
    with pytest.raises(UnsupportedStateError, match="trainer_state"):
        manager.export_checkpoint("latest", tmp_path / "checkpoint-12", format="hf-trainer")
    assert not (tmp_path / "checkpoint-12").exists()
