"""The Trainer and Accelerate write checkpoints, and what is read of them is what they load themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from tests.foreign.described import assert_same, read


def small_model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=50, max_position_embeddings=16, **sizes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A trainer after four steps, and its last checkpoint."""
    folder = tmp_path_factory.mktemp("trainer")
    examples = [{"input_ids": torch.randint(0, 50, (8,)), "labels": number % 2} for number in range(16)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        eval_steps=2,
        eval_strategy="steps",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        report_to=[],
        per_device_train_batch_size=4,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(small_model(), arguments, train_dataset=examples, eval_dataset=examples)
    trainer.train()
    return trainer, folder / "checkpoint-4"


def test_a_checkpoint_of_the_trainer_is_read_as_it_is(trained: tuple[Any, Path]) -> None:
    """Each part is what the library that wrote it loads, and the facts are those of the training."""
    trainer, folder = trained
    found = read(folder)
    facts = found.checkpoint.facts
    assert found.checkpoint.kind == "hf-trainer"
    loaded = BertForSequenceClassification.from_pretrained(folder)
    assert_same(found.payload["model_state_dict"], dict(loaded.state_dict()))
    assert_same(found.payload["optimizer_state_dict"], torch.load(folder / "optimizer.pt"))
    assert_same(found.payload["scheduler_state_dict"], torch.load(folder / "scheduler.pt"))
    assert (facts.step, facts.epoch) == (trainer.state.global_step, 1)
    assert facts.metrics["best_metric"] == trainer.state.best_metric
    assert facts.config["hidden_size"] == 16
    assert [name.partition(" ")[0] for name in found.checkpoint.left_out] == ["training_args.bin"]


def test_the_state_resumes_a_training(trained: tuple[Any, Path]) -> None:
    """A new model and optimizer of PyTorch take the states."""
    payload = read(trained[1]).payload
    model = small_model()
    model.load_state_dict(payload["model_state_dict"])
    optimizer = trained[0].create_optimizer()
    optimizer.load_state_dict(payload["optimizer_state_dict"])
    assert_same(optimizer.state_dict()["state"], payload["optimizer_state_dict"]["state"])


def test_a_model_in_shards_is_read_as_it_is(tmp_path: Path) -> None:
    """``save_pretrained`` splits the weights; all shards are one model."""
    model = small_model()
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = read(tmp_path)
    assert_same(found.payload["model_state_dict"], dict(model.state_dict()))
    assert found.checkpoint.findings == ()


class Counter:
    """A custom object that Accelerate saves."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 3, "mean": torch.ones(2)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_a_folder_of_accelerate_is_read_as_it_is(tmp_path: Path, safe_serialization: bool) -> None:
    """Two models, an optimizer, a scheduler and a custom object come back as they were when they were saved."""
    accelerator = Accelerator(cpu=True)
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(first.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(8, 3)), batch_size=2, shuffle=True)
    first, second, optimizer, scheduler, batches = accelerator.prepare(first, second, optimizer, scheduler, batches)
    accelerator.register_for_checkpointing(Counter())
    first(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    accelerator.save_state(str(tmp_path / "state"), safe_serialization=safe_serialization)
    found = read(tmp_path / "state")
    assert found.checkpoint.kind == "accelerate"
    models = {"model": dict(first.state_dict()), "model_1": dict(second.state_dict())}
    assert_same(found.payload["model_state_dict"], models)
    assert_same(found.payload["optimizer_state_dict"], optimizer.state_dict())
    assert_same(found.payload["scheduler_state_dict"], scheduler.state_dict())
    assert_same(found.payload["others"], {"custom_checkpoint_0": Counter().state_dict()})
    assert torch.equal(found.payload["rng_state"][0]["torch"], torch.get_rng_state())
