"""A run of the Trainer goes on through us, and on in the Trainer: to the same bits as one that nothing interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

from ckpt_lib import CheckpointConfig, CheckpointManager, convert_checkpoint
from tests.foreign.described import assert_same
from tests.peers.test_hugging_face import small_model

STEPS, IMPORTED, EXPORTED = 11, 3, 6
RATE, DECAY, BATCH = 0.01, 0.1, 2


def examples() -> list[dict[str, Any]]:
    """16 of them: an epoch has 8 batches, so that the last steps are those of a second one."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(0, 50, (8,), generator=generator), "labels": number % 2} for number in range(16)
    ]


def without_dropout() -> Any:
    model = small_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def trainer(folder: Path, model: Any, callbacks: Any = None, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        save_steps=IMPORTED,
        logging_steps=1,
        learning_rate=RATE,
        weight_decay=DECAY,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=BATCH,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    return Trainer(model, arguments, train_dataset=examples(), eval_dataset=examples(), callbacks=callbacks)


def plain_training(model: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
    """A model, optimizer and scheduler of PyTorch, in the groups that the Trainer makes: with decay, and without."""
    names = Trainer.get_decay_parameter_names(None, model)
    named = list(model.named_parameters())
    groups = [
        {"params": [parameter for name, parameter in named if name in names], "weight_decay": DECAY},
        {"params": [parameter for name, parameter in named if name not in names], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    return model, optimizer, transformers.get_linear_schedule_with_warmup(optimizer, 0, STEPS)


def train(model: Any, optimizer: torch.optim.Optimizer, scheduler: Any, steps: Sequence[int]) -> None:
    """Train in a plain loop, with the dropout of the model, as the Trainer does."""
    model.train()
    for step in steps:
        batch = examples()[BATCH * step : BATCH * (step + 1)]
        inputs = torch.stack([example["input_ids"] for example in batch])
        model(input_ids=inputs, labels=torch.tensor([example["labels"] for example in batch])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A trainer after all its steps, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    whole = trainer(folder, small_model())
    whole.train()
    return whole, folder


def parts_of(folder: Path) -> dict[str, Any]:
    """Return what a folder of the Trainer holds, as the Trainer loads it."""
    with transformers.trainer_pt_utils.safe_globals():
        parts = {
            name: torch.load(folder / name, weights_only=True)
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
        }
    parts["rng_state.pth"]["numpy"] = [*map(tuple_of, parts["rng_state.pth"]["numpy"])]
    return parts


def tuple_of(value: Any) -> Any:
    return tuple(map(int, value)) if hasattr(value, "__len__") and not isinstance(value, str) else value


def exported(source: Path, destination: Path, *, in_place: bool = False) -> Path:
    """Import a checkpoint, train on from it in a plain loop, save, and export for the Trainer."""
    store = source.parent.parent if in_place else destination.parent / "store"
    name = source.parent.name if in_place else "run"
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store), backup_checkpoints=False), name)
    manager.import_checkpoint(source, in_place=in_place)
    model, optimizer, scheduler = plain_training(small_model())
    torch.manual_seed(999)
    resumed = manager.resume(model=model, optimizer=optimizer, scheduler=scheduler)
    assert resumed is not None
    assert resumed["step"] == IMPORTED
    train(model, optimizer, scheduler, range(IMPORTED, EXPORTED))
    manager.save_checkpoint(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        epoch=resumed["epoch"],
        step=EXPORTED,
        metrics={"own_loss": 0.5},
        config=resumed["config"],
        extra_state=resumed["extra_state"],
    )
    return Path(manager.export_checkpoint("latest", destination, format="hf-trainer"))


def assert_is_whole(resumed: Trainer, whole: Trainer) -> None:
    """Compare weights, optimizer and scheduler with those of the run that nothing interrupted."""
    assert resumed.state.global_step == whole.state.global_step == STEPS
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
    assert_same(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert_same(resumed.lr_scheduler.state_dict(), whole.lr_scheduler.state_dict())


@pytest.mark.parametrize("in_place", [False, True])
def test_a_run_goes_on_through_us_and_back(uninterrupted: tuple[Trainer, Path], tmp_path: Path, in_place: bool) -> None:
    """Weights, moments, schedule and dropout are those of the run that was never interrupted, to the bit."""
    whole, folder = uninterrupted
    path = exported(folder / f"checkpoint-{IMPORTED}", tmp_path / f"checkpoint-{EXPORTED}", in_place=in_place)
    own = folder / f"checkpoint-{EXPORTED}"
    assert_same(parts_of(path), parts_of(own))
    assert {file.name for file in own.iterdir()} - {file.name for file in path.iterdir()} == {"training_args.bin"}
    resumed = trainer(tmp_path / "on", small_model())
    resumed.train(resume_from_checkpoint=str(path))
    assert_is_whole(resumed, whole)
    logged = [entry["step"] for entry in resumed.state.log_history if "loss" in entry]
    assert logged == [1, 2, 3, *range(EXPORTED + 1, STEPS + 1)]
    assert {"own_loss": 0.5, "epoch": 0.75, "step": EXPORTED} in resumed.state.log_history


def test_a_run_that_began_here_goes_on_in_the_trainer(tmp_path: Path) -> None:
    """From a checkpoint in which nothing is the Trainer's. It saves its own then, also with a callback of a state."""
    whole = trainer(tmp_path / "whole", without_dropout())
    whole.train()
    model, optimizer, scheduler = plain_training(without_dropout())
    train(model, optimizer, scheduler, range(EXPORTED))
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), backup_checkpoints=False), "run")
    intervals = {"save_steps": IMPORTED, "logging_steps": 1, "eval_steps": 100, "train_batch_size": BATCH}
    manager.save_checkpoint(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        epoch=0,
        step=EXPORTED,
        extra_state={"trainer_state": intervals},
    )
    path = manager.export_checkpoint("latest", tmp_path / "checkpoint-6", format="hf-trainer")
    stopping = EarlyStoppingCallback(early_stopping_patience=3)
    resumed = trainer(
        tmp_path / "on",
        without_dropout(),
        callbacks=[stopping],
        metric_for_best_model="loss",
        eval_strategy="steps",
        eval_steps=100,
    )
    resumed.train(resume_from_checkpoint=path)
    assert_is_whole(resumed, whole)
    assert (tmp_path / "on" / "checkpoint-9" / "trainer_state.json").exists()


def test_a_checkpoint_that_nobody_trained_on_comes_back(uninterrupted: tuple[Trainer, Path], tmp_path: Path) -> None:
    """Without a store; the Trainer's own state is as it was."""
    own = uninterrupted[1] / f"checkpoint-{EXPORTED}"
    there = convert_checkpoint(own, tmp_path / "there.pt")
    back = Path(convert_checkpoint(there.path, tmp_path / "back", format="hf-trainer").path)
    assert_same(parts_of(back), parts_of(own))
    found, expected = (json.loads((folder / "trainer_state.json").read_text()) for folder in (back, own))
    assert found["stateful_callbacks"].pop("EarlyStoppingCallback") == []
    assert found == expected
