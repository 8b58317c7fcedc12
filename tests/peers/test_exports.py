"""What we export and convert, read by the libraries that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import transformers

from ckpt_lib import CheckpointConfig, CheckpointManager, convert_checkpoint
from tests.foreign.described import assert_same


class Module(lightning.LightningModule):  # type: ignore[misc]
    """A model whose every step is noted."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)
        self.trained: list[tuple[int, int]] = []

    def training_step(self, batch: Any, number: int) -> Any:
        self.trained.append((self.current_epoch, number))
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def train_dataloader(self) -> Any:
        torch.manual_seed(0)
        samples: Any = list(torch.randn(12, self.hparams["width"]))
        return torch.utils.data.DataLoader(samples, batch_size=3)


def trainer(folder: Path, epochs: int) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def by_hand(epochs: int) -> tuple[Module, torch.optim.Optimizer, Any]:
    """Train in a plain loop, as Lightning does."""
    torch.manual_seed(0)
    model = Module()
    (optimizer,), (scheduler,) = model.configure_optimizers()
    for _ in range(epochs):
        for batch in model.train_dataloader():
            optimizer.zero_grad()
            model.layer(batch).square().mean().backward()
            optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def manager_in(folder: Path) -> CheckpointManager:
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(folder / "store"), backup_checkpoints=False), "e")


def test_lightning_goes_on_from_a_checkpoint_of_ours(tmp_path: Path) -> None:
    """With the next epoch, and to the same weights as a training that was never interrupted."""
    model, optimizer, scheduler = by_hand(2)
    manager = manager_in(tmp_path)
    manager.save_checkpoint(model=model, optimizer=optimizer, scheduler=scheduler, epoch=1, step=8, config={"width": 4})
    path = manager.export_checkpoint("latest", tmp_path / "x.ckpt", format="lightning")
    resumed, resumer = Module(), trainer(tmp_path, 4)
    resumer.fit(resumed, ckpt_path=path)
    assert resumed.trained == [(epoch, number) for epoch in (2, 3) for number in range(4)]
    assert resumer.global_step == 16
    expected, *_ = by_hand(4)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor)
    assert resumer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**4)


def test_lightning_loads_weights_with_their_hyperparameters(tmp_path: Path) -> None:
    """Also cast, and of weights alone."""
    model, optimizer, _ = by_hand(1)
    manager = manager_in(tmp_path)
    manager.save_checkpoint(model=model, optimizer=optimizer, epoch=0, config={"width": 4, "lr": 3})
    several: tuple[dict[str, Any], ...] = ({}, {"only": "model"}, {"dtype": "bf16"})
    for number, options in enumerate(several):
        path = manager.export_checkpoint("latest", tmp_path / f"{number}.ckpt", format="lightning", **options)
        found = Module.load_from_checkpoint(path)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name].float(), tensor, atol=0.01, rtol=0.01)


def test_a_checkpoint_of_lightning_comes_back_from_torch(tmp_path: Path) -> None:
    """Lightning's trainer goes on from it as from its own."""
    first = trainer(tmp_path, 2)
    first.fit(Module())
    first.save_checkpoint(tmp_path / "own.ckpt")
    there = convert_checkpoint(tmp_path / "own.ckpt", tmp_path / "there.pt")
    back = convert_checkpoint(there.path, tmp_path / "back.ckpt")
    own, found = (torch.load(path, weights_only=True) for path in (tmp_path / "own.ckpt", back.path))
    assert found.keys() == own.keys()
    for key in own:
        assert_same(found[key], own[key])
    resumed = Module()
    trainer(tmp_path, 3).fit(resumed, ckpt_path=back.path)
    assert resumed.trained == [(2, number) for number in range(4)]


def small_gpt() -> tuple[Any, Any]:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=16)
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(config).eval(), config


@pytest.mark.parametrize("shard_size", ["5GB", "8KB"])
def test_from_pretrained_reads_a_folder(tmp_path: Path, shard_size: str) -> None:
    """With its tied head and its configuration, in one file or in shards; each output is the same."""
    model, config = small_gpt()
    manager = manager_in(tmp_path)
    manager.save_checkpoint(model=model, epoch=0, config={"lr": 0.1, "model": config.to_dict()})
    path = manager.export_checkpoint("latest", tmp_path / "hf", format="hf-folder", only="model", shard_size=shard_size)
    found, loading = transformers.AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    tokens = torch.arange(10)[None]
    assert torch.equal(found.eval()(tokens).logits, model(tokens).logits)


def test_a_folder_of_transformers_comes_back(tmp_path: Path) -> None:
    """Through a file of torch, with the configuration, and cast as from_pretrained casts."""
    model, _ = small_gpt()
    model.save_pretrained(tmp_path / "own")
    weights = convert_checkpoint(tmp_path / "own", tmp_path / "w.pt")
    back = convert_checkpoint(weights.path, tmp_path / "back", format="hf-folder", dtype="bf16", only="model")
    found = transformers.AutoModelForCausalLM.from_pretrained(back.path)
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "own", dtype=torch.bfloat16)
    assert_same(dict(found.state_dict()), dict(expected.state_dict()))
