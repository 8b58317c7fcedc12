"""The training flow, run to its end on Prefect's test server."""

from __future__ import annotations

import base64
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prefect import flow
from torch.nn import functional

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import NoValidCheckpointError, StateMismatchError
from prefect_checkpoints.flows import TrainingParameters, train
from prefect_checkpoints.tasks import _progress
from tests.orchestration.runs import artifacts

pytestmark = pytest.mark.usefixtures("own_results")
SMALL = {"batch_size": 256, "channels": 4}


def test_train_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """A run in two parts ends bit-equal to one in a single part, and publishes table, plot and progress."""
    halves = CheckpointConfig(checkpoint_dir=str(tmp_path / "halves"))
    whole = CheckpointConfig(checkpoint_dir=str(tmp_path / "whole"))
    train(halves, "digits", TrainingParameters(epochs=2, **SMALL))
    state = train(halves, "digits", TrainingParameters(epochs=4, **SMALL), return_state=True)
    train(whole, "digits", TrainingParameters(epochs=4, **SMALL))

    first, second = (CheckpointManager(config, "digits").load_checkpoint("latest") for config in (halves, whole))
    assert first["epoch"] == second["epoch"] == 4
    for name, tensor in first["model_state_dict"].items():
        assert torch.equal(tensor, second["model_state_dict"][name]), name
    assert first["metrics"] == second["metrics"]
    assert state.result()["total_checkpoints"] == 4
    published = artifacts(state)
    assert published.keys() == {"training-digits", "checkpoints-digits", "metrics-digits"}
    assert published["training-digits"] == 100.0
    header, _, picture = published["metrics-digits"].partition(",")
    assert header == "data:image/svg+xml;base64"
    drawn = base64.b64decode(picture)
    assert b"<svg" in drawn
    assert drawn.count(b'<g id="axes_') == 2  # losses and accuracy


def test_training_outlives_the_progress_bar(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes no update of the progress bar costs a warning, not the training."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(_progress, "update_progress_artifact", unreachable)
    assert train(config, "digits", TrainingParameters(epochs=1, **SMALL))["total_checkpoints"] == 1


def test_training_waits_for_no_progress_bar(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs go on while the server takes its time for an update."""
    gate, updating = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> None:
        updating.set()
        assert gate.wait(60)

    monkeypatch.setattr(_progress, "update_progress_artifact", slow)
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_UPDATES", 0.0)

    @flow
    def run() -> None:
        with _progress.progress_artifact("progress", "a test", 3.0) as advance:
            advance(1.0)
            assert updating.wait(60)
            advance(1.0)  # returns while the first one waits
            gate.set()

    run()


def test_train_learns(tmp_path: Path) -> None:
    """The training is real: after four epochs more than nine in ten unseen digits are right."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path))
    train(config, "digits", TrainingParameters(epochs=4))
    best = CheckpointManager(config, "digits").get_best_checkpoint()
    assert best is not None
    assert float(best.metrics["val_accuracy"] or 0) > 0.9


def test_a_loss_spike_is_undone(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go back to the newest checkpoint, the batch is not seen again, the rate is halved, and the run tells."""
    seen: list[float] = []

    def loss_of(logits: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        if not logits.requires_grad:
            return torch.tensor(0.5)  # on the validation part
        seen.append(float("nan") if len(seen) == 30 else 0.5)
        return logits.sum() * 0 + seen[-1]

    monkeypatch.setattr(functional, "cross_entropy", loss_of)
    state = train(config, "digits", TrainingParameters(epochs=6, **SMALL), return_state=True)
    assert state.is_completed()
    assert len(seen) == 36
    assert "the loss is nan at step 30" in artifacts(state)["rollback-digits"]
    manager = CheckpointManager(config, "digits")
    saved = manager.list_checkpoints()
    assert [item.step for item in saved[-2:]] == [30, 35]
    rates = [
        manager.load_checkpoint(item.checkpoint_id)["optimizer_state_dict"]["param_groups"][0]["lr"] for item in saved
    ]
    assert rates[-1] / rates[-2] == pytest.approx(0.95 / 2)


def test_a_training_that_only_spikes_ends(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not go back for ever."""
    monkeypatch.setattr(functional, "cross_entropy", lambda logits, _: logits.sum() * float("nan"))
    CheckpointManager(config, "digits").save_state({"model_state_dict": {}}, epoch=1)
    with pytest.raises(StateMismatchError):
        train(config, "digits", TrainingParameters(epochs=2, **SMALL))
    with pytest.raises(NoValidCheckpointError, match="no checkpoint to go back to: the loss is nan at step 0"):
        train(config, "other", TrainingParameters(epochs=2, **SMALL))
