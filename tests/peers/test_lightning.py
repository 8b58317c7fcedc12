"""Checkpoints of Lightning, made by a real run: weights, optimizer and facts are those of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lib.foreign import materialise, open_checkpoint
from ckpt_lib.testing.payloads import assert_same


class Regression(lightning.LightningModule):  # type: ignore[misc]  # the library is not there for mypy
    """A tiny model with a buffer, hyperparameters, an optimizer and a scheduler."""

    def __init__(self, width: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        inputs, wanted = batch
        loss = nn.functional.mse_loss(self.net(inputs), wanted)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Regression, Any, Path]:
    """A model after two epochs, its trainer, and a checkpoint of its end."""
    folder = tmp_path_factory.mktemp("run")
    lightning.seed_everything(1, verbose=False)
    data = DataLoader(TensorDataset(torch.randn(12, 2), torch.randn(12, 1)), batch_size=4)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=folder, monitor="train_loss")],
    )
    model = Regression()
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "end.ckpt")
    return model, trainer, folder / "end.ckpt"


def test_a_run_is_read_to_the_bit(trained: tuple[Regression, Any, Path]) -> None:
    """Model, optimizer and scheduler are those that the run ended with."""
    model, trainer, path = trained
    with open_checkpoint(path) as found:
        assert (found.kind, found.obstacle) == ("lightning", None)
        assert found.payload is not None
        payload = materialise(found.payload)
    assert_same(dict(payload["model_state_dict"]), dict(model.state_dict()))
    assert_same(payload["optimizer_state_dict"], trainer.optimizers[0].state_dict())
    assert_same(payload["scheduler_state_dict"], trainer.lr_scheduler_configs[0].scheduler.state_dict())


def test_facts_are_those_of_the_run(trained: tuple[Regression, Any, Path]) -> None:
    """Epoch, step, hyperparameters and the version of Lightning are found; callbacks are kept beside them."""
    _, trainer, path = trained
    with open_checkpoint(path) as found:
        facts = found.facts
    assert facts.writer == f"lightning {lightning.__version__}"
    assert (facts.epoch, facts.step, facts.config) == (trainer.current_epoch, 6, {"width": 4, "lr": 0.1})
    assert found.payload is not None
    (callback,) = found.payload["extra_state"]["callbacks"]
    assert callback.startswith("ModelCheckpoint")
    assert found.left_out == ()
