"""Advice about folders of checkpoints of other programs."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckpt_lib
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.advice.described import Described
from ckpt_lib.advice.results import Advice, Suggestion
from ckpt_lib.advice.runs import series_of
from ckpt_lib.advice.trees import FoundCheckpoint
from ckpt_lib.errors import CheckpointError, ConfigError, NotACheckpointError
from tests.helpers import snapshot

OLD = time.time() - 10 * 86_400


def weights(seed: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((64, 64), float(seed)), "bias": torch.zeros(64)}


def adam(seed: int) -> dict[str, Any]:
    """What an optimizer's state looks like: twice the weights."""
    state = {
        0: {"step": torch.tensor(1.0), "exp_avg": torch.full((64, 64), float(seed)), "exp_avg_sq": torch.ones(64, 64)}
    }
    return {"state": state, "param_groups": [{"lr": 0.1, "params": [0]}]}


def save(path: Path, epoch: int, age: int = 0, **more: Any) -> None:
    """Write a checkpoint as many training scripts do; a larger ``age`` makes it older."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": epoch, "state_dict": weights(epoch), "optimizer": adam(epoch), **more}, path)
    os.utime(path, (OLD - age, OLD - age))


def trainer(folder: Path, losses: dict[int, float], best: int) -> None:
    """Write checkpoints of the Trainer of Hugging Face for some steps."""
    history = []
    for step, loss in losses.items():
        found = folder / f"checkpoint-{step}"
        found.mkdir(parents=True)
        save_file(weights(step), found / "model.safetensors")
        torch.save(adam(step), found / "optimizer.pt")
        history.append({"eval_loss": loss, "eval_runtime": float(step), "step": step, "epoch": step / 100})
        state = {"log_history": history, "global_step": step, "epoch": step / 100, "best_metric": min(losses.values())}
        state["best_model_checkpoint"] = f"/elsewhere/checkpoint-{best}"
        (found / "trainer_state.json").write_text(json.dumps(state))
        for path in found.iterdir():
            os.utime(path, (OLD + step, OLD + step))


def by_name(advice: Advice) -> dict[str, Suggestion]:
    """The suggestions by name, each once; all bytes are counted once."""
    assert advice.total_bytes == advice.freed_bytes + advice.kept_bytes
    assert len({item.name for item in advice.suggestions}) == len(advice.suggestions)
    return {item.name: item for item in advice.suggestions}


def kinds(advice: Advice) -> dict[str, str]:
    return {name: item.kind for name, item in by_name(advice).items()}


def test_nothing_is_changed_and_the_paths_free_what_is_said(tmp_path: Path) -> None:
    """Removing the named paths frees the bytes to the last one; the advice itself reads only."""
    for epoch in range(6):
        save(tmp_path / f"epoch_{epoch}.pt", epoch, age=6 - epoch, val_loss=[0.9, 0.8, 0.3, 0.7, 0.6, 0.5][epoch])
    shutil.copy(tmp_path / "epoch_5.pt", tmp_path / "last.pt")
    (tmp_path / "epoch_7.pt.tmp").write_bytes(b"half")
    os.utime(tmp_path / "epoch_7.pt.tmp", (OLD, OLD))
    (tmp_path / "broken.ckpt").write_bytes((tmp_path / "epoch_0.pt").read_bytes()[:5000])
    os.utime(tmp_path / "broken.ckpt", (OLD, OLD))
    before = snapshot(tmp_path)
    advice = ckpt_lib.advise(tmp_path)
    assert snapshot(tmp_path) == before
    assert kinds(advice) == {
        "epoch_7.pt.tmp": "leftover",
        "broken.ckpt": "damaged",
        "epoch_5.pt": "duplicate",
        "epoch_0.pt": "dominated",
        "epoch_1.pt": "dominated",
        "epoch_3.pt": "dominated",
    }
    assert {item.name for item in advice.kept} == {"last.pt", "epoch_4.pt", "epoch_2.pt"}
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir())
    for item in advice.suggestions:
        for path in item.paths:
            Path(path).unlink()
    assert sizes - sum(path.stat().st_size for path in tmp_path.iterdir()) == advice.freed_bytes
    assert by_name(advice)["broken.ckpt"].certainty == "likely"


def test_a_folder_that_is_a_checkpoint_counts_as_one(tmp_path: Path) -> None:
    """The Trainer's checkpoints are folders; its last model lies beside them, and does not own them."""
    trainer(tmp_path / "out", {100: 0.9, 200: 0.4, 300: 0.6, 400: 0.5}, best=200)
    save_file(weights(9), tmp_path / "out" / "model.safetensors")
    (tmp_path / "out" / "config.json").write_text("{}")
    advice = ckpt_lib.advise(tmp_path)
    found = by_name(advice)
    assert {name: item.kind for name, item in found.items()} == {
        "out/checkpoint-100": "dominated",
        "out/checkpoint-300": "dominated",
    }
    assert found["out/checkpoint-100"].paths == (str(tmp_path / "out" / "checkpoint-100"),)
    reasons = {item.name: item.reason for item in advice.kept}
    assert reasons["out/checkpoint-200"] == "the trainer took it for the best"
    assert set(reasons) == {"out", "out/checkpoint-200", "out/checkpoint-400"}
    assert [item.is_saved for item in advice.best] == [True]


def test_optimizers_of_older_ones_can_go(tmp_path: Path) -> None:
    """All but the newest three; the files that hold nothing else are named, with their exact size."""
    trainer(tmp_path / "out", {step: 0.1 * step for step in (100, 200, 300, 400, 500)}, best=100)
    for epoch in range(5):
        save(tmp_path / "own" / f"epoch_{epoch}.pt", epoch, age=5 - epoch)
    found = by_name(ckpt_lib.advise(tmp_path))
    optimizer = tmp_path / "out" / "checkpoint-200" / "optimizer.pt"
    assert found["out/checkpoint-200"].paths == (str(optimizer),)
    assert found["out/checkpoint-200"].freed_bytes == optimizer.stat().st_size
    assert found.keys() == {"out/checkpoint-200", "own/epoch_0.pt", "own/epoch_1.pt"}
    assert found["own/epoch_0.pt"].paths == ()
    whole = tmp_path / "own" / "epoch_0.pt"
    size = whole.stat().st_size
    torch.save({"epoch": 0, "state_dict": weights(0)}, whole)
    assert size - whole.stat().st_size == pytest.approx(found["own/epoch_0.pt"].freed_bytes, rel=0.08)


def test_a_best_value_that_was_never_saved_is_told(tmp_path: Path) -> None:
    """By Lightning's log: the step and the value; with all epochs saved, that it was."""
    folder = tmp_path / "version_0" / "checkpoints"
    losses = [0.9, 0.3, 0.1, 0.5]
    rows = [
        f"{epoch},{epoch * 100 + 99},,{loss}\n{epoch},{epoch * 100 + 99},{loss},\n" for epoch, loss in enumerate(losses)
    ]
    for epoch in (0, 1, 3):
        save(folder / f"epoch={epoch}-step={epoch * 100 + 100}.ckpt", epoch, age=4 - epoch)
    (tmp_path / "version_0" / "metrics.csv").write_text("epoch,step,train_loss,val_loss\n" + "".join(rows))
    best = ckpt_lib.advise(tmp_path).best[0]
    assert (best.metric, best.value, best.step, best.epoch, best.is_saved) == ("val_loss", 0.1, 299, 2, False)
    assert best.saved_value == 0.3
    assert "never saved" in best.message
    save(folder / "epoch=2-step=300.ckpt", 2, age=2)
    assert ckpt_lib.advise(tmp_path).best[0].is_saved is True
    (tmp_path / "version_0" / "metrics.csv").unlink()
    assert ckpt_lib.advise(tmp_path).best == ()


def test_links_and_shared_files_are_left(tmp_path: Path) -> None:
    """What a link leads to stays, and of a file with two names nothing is freed, so nothing is suggested."""
    for epoch in range(5):
        save(tmp_path / f"epoch_{epoch}.pt", epoch, age=5 - epoch, val_loss=[0.9, 0.8, 0.7, 0.1, 0.2][epoch])
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "model.pt").symlink_to(tmp_path / "epoch_0.pt")
    os.link(tmp_path / "epoch_1.pt", tmp_path / "chosen" / "other.pt")
    advice = ckpt_lib.advise(tmp_path)
    assert kinds(advice) == {"epoch_2.pt": "dominated"}
    assert {item.name: item.reason for item in advice.kept}["epoch_0.pt"] == "a link leads to it"
    assert advice.total_bytes == sum(path.stat().st_size for path in tmp_path.glob("epoch_*.pt"))


def test_models_of_other_names_are_not_compared(tmp_path: Path) -> None:
    """Two models in one folder: none is worse than one of the other; nor is one without epoch and step."""
    save(tmp_path / "small_1.pt", 1, age=9, val_loss=0.9)
    save(tmp_path / "large_2.pt", 2, age=8, val_loss=0.1)
    torch.save({"state_dict": weights(1), "val_loss": 5.0}, tmp_path / "other.pt")
    assert kinds(ckpt_lib.advise(tmp_path)) == {}


def test_folds_and_seeds_are_series_of_their_own(tmp_path: Path) -> None:
    """The only model of a fold stays, whatever the others measure; within one seed the worse ones go."""
    for fold in range(3):
        save(tmp_path / "fold" / f"fold{fold}.pth", 10 + fold, age=3 - fold, val_loss=0.9 - 0.1 * fold)
        save(tmp_path / "same" / f"fold{fold}.pth", 1 + fold, age=3 - fold, val_loss=0.9 - 0.1 * fold)
        save(tmp_path / "plain" / f"m{fold}.pth", 1, age=3 - fold, val_loss=0.9 - 0.1 * fold)
    for seed in (1, 2, 3):
        for epoch in (0, 1, 2):
            name, value = f"seed{seed}_ep{epoch}.pth", 1.0 - 0.1 * epoch - 0.05 * seed
            save(tmp_path / "seeds" / name, epoch, age=100 - 10 * seed - epoch, val_loss=value)
    found = by_name(ckpt_lib.advise(tmp_path))
    assert found.keys() == {f"seeds/seed{seed}_ep{epoch}.pth" for seed in (1, 2, 3) for epoch in (0, 1)}
    assert all(f"seeds/seed{name[10]}_ep2.pth" in item.why for name, item in found.items())


def test_policies_rank_within_a_series(tmp_path: Path) -> None:
    """Of two folds in one folder each keeps its newest and best, however much better the other one is."""
    for fold in range(2):
        for epoch in range(1, 7):
            name = f"fold{fold}_epoch{epoch}.pth"
            save(tmp_path / name, epoch, age=10 - epoch, val_loss=fold + 1 / epoch)
    save(tmp_path / "model.pth", 1, age=50)
    policies = {item.policy: item for item in ckpt_lib.advise(tmp_path).policies}
    outcome = policies["max_checkpoints=3 of each series"]
    assert (outcome.kept_count, outcome.deleted_count) == (2 * 3 + 1, 2 * 3)
    assert policies["max_checkpoints=10 of each series"].deleted_count == 0


def test_what_says_neither_epoch_nor_step_is_not_compared(tmp_path: Path) -> None:
    """A number in the name alone may be that of a fold."""
    for number, loss in enumerate([0.9, 0.8, 0.7]):
        torch.save({"state_dict": weights(number), "val_loss": loss}, tmp_path / f"epoch_{number}.pt")
    advice = ckpt_lib.advise(tmp_path)
    assert advice.suggestions == ()
    assert all("neither its epoch nor its step" in item.reason for item in advice.kept)


@pytest.mark.parametrize(
    ("name", "epoch", "step", "series"),
    [
        ("epoch_3.pt", 3, None, "epoch_\0epoch+0.pt"),
        ("epoch_4.pt", 3, None, "epoch_\0epoch+1.pt"),
        ("epoch_5.pt", 3, None, "epoch_5.pt"),
        ("e2_m2.pt", 2, None, "e2_m\0epoch+0.pt"),
        ("seed2_e2.pt", 2, None, "seed2_e\0epoch+0.pt"),
        ("e2-seed-2.pt", 2, None, "e\0epoch+0-seed-2.pt"),
        ("epoch=0-step=0100.ckpt", 0, 100, "epoch=\0epoch+0-step=\0step+0.ckpt"),
        ("epoch=0-step=1.ckpt", 0, 1, "epoch=\0epoch+0-step=\0step+0.ckpt"),
        ("lr1e-5_v1.5.pt", 5, None, "lr1e-5_v1.5.pt"),
        ("epoch_3.pt", None, None, None),
    ],
)
def test_only_the_numbers_of_epoch_and_step_are_masked(
    name: str, epoch: int | None, step: int | None, series: str | None
) -> None:
    """All others are part of the name of a series, which a parsed name alone never tells."""
    found = FoundCheckpoint(f"folder_7/{name}", {})
    assert series_of(Described(found, epoch=9, step=9, said_epoch=epoch, said_step=step)) == series


@pytest.mark.parametrize(
    ("metrics", "compared"),
    [
        ({"best_acc1": [0.5, 0.9, 0.9, 0.9], "loss": [1.0, 0.8, 0.6, 0.5]}, False),
        ({"loss": [1.0, 0.8, 0.6, 0.5]}, False),
        ({"train_loss": [1.0, 0.8, 0.6, 0.5], "train_acc": [0.1, 0.2, 0.3, 0.4]}, False),
        ({"val_loss": [1.0, 0.8, 0.6, 0.5], "score_of_mine/metric": [1, 2, 3, 4]}, True),
        ({"val_loss": [1.0, 0.8, 0.6, 0.5], "own_metric": [4, 3, 2, 1]}, False),
        ({"val_loss": [1.0, 0.8, 0.6, 0.5], "best_acc": [0.5, 0.9, 0.9, 0.9]}, False),
        ({"val_loss": [1.0, 0.8, 0.6, 0.5], "best_val_loss": [1.0, 0.8, 0.6, 0.5]}, True),
        ({"val_loss": [1.0, 0.8, 0.6, 0.5], "loss": [0.1, 0.2, 0.3, 0.4]}, True),
    ],
)
def test_a_loss_of_the_training_decides_nothing(
    tmp_path: Path, metrics: dict[str, list[float]], compared: bool
) -> None:
    """Nor is anything compared of which a metric is not understood, or tells of another checkpoint."""
    for epoch in range(4):
        values = {name: column[epoch] for name, column in metrics.items()}
        save(tmp_path / f"e{epoch}.pth", epoch, age=4 - epoch, **values)
    advice = ckpt_lib.advise(tmp_path)
    worse = {item.name for item in advice.of_kind("dominated")}
    assert worse == ({"e0.pth", "e1.pth", "e2.pth"} if compared else set())


def test_a_file_that_is_being_written_stays(tmp_path: Path) -> None:
    """What was changed within a day and cannot be read may be half of a save that goes on: it is in no sum of these."""
    save(tmp_path / "epoch_1.pt", 1)
    half = tmp_path / "epoch_2.pt"
    half.write_bytes((tmp_path / "epoch_1.pt").read_bytes()[:4000])
    (tmp_path / "epoch_3.pt.tmp").write_bytes(b"half")
    advice = ckpt_lib.advise(tmp_path)
    assert (advice.suggestions, advice.freed_bytes) == ((), 0)
    assert "may be being written" in {item.name: item.reason for item in advice.kept}["epoch_2.pt"]
    os.utime(half, (OLD, OLD))
    assert [item.certainty for item in ckpt_lib.advise(tmp_path).suggestions] == ["likely"]


def test_stores_are_left_out(tmp_path: Path) -> None:
    """A store in the folder is named, and none of its files is: it knows more of them than these do."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "store")), "run")
    manager.save_checkpoint(model=torch.nn.Linear(2, 2), epoch=1)
    save(tmp_path / "epoch_1.pt", 1)
    advice = ckpt_lib.advise(tmp_path)
    assert [item.name for item in advice.kept] == ["epoch_1.pt"]
    assert "ckpt advise" in advice.remarks[0]
    assert "store" in advice.remarks[0]


def test_hostile_files_raise_nothing(tmp_path: Path) -> None:
    """Logs and checkpoints that are nonsense are no reason to say nothing of the others."""
    save(tmp_path / "epoch_1.pt", 1)
    for name, data in {
        "zeros.pt": bytes(5000),
        "empty.ckpt": b"",
        "text.pth": b"hello" * 1000,
        "header.safetensors": (2**40).to_bytes(8, "little") + b"{",
        "metrics.csv": b'epoch,step\n"' + b"x" * 200_000,
        "log.txt": b'{"epoch": 1e999, "loss": NaN}\n{"epoch": 1, "loss": ' + b"9" * 5000 + b"}\n[[[",
        "results.csv": b"\xff\xfe\x00epoch\n1\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        os.utime(tmp_path / name, (OLD, OLD))
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_bytes(b"[" * 100_000)
    (tmp_path / "loop").symlink_to(tmp_path)
    advice = ckpt_lib.advise(tmp_path)
    assert {"zeros.pt", "empty.ckpt"} <= by_name(advice).keys()
    assert "epoch_1.pt" in {item.name for item in advice.kept}


@pytest.mark.parametrize(
    ("place", "error"),
    [("missing", NotACheckpointError), ("s3://bucket/folder", ConfigError), ("file.pt", NotACheckpointError)],
)
def test_what_is_no_folder_is_refused(tmp_path: Path, place: str, error: type[CheckpointError]) -> None:
    """A mistyped path does not look like a folder without anything to free."""
    save(tmp_path / "file.pt", 1)
    with pytest.raises(error):
        ckpt_lib.advise(place if "://" in place else tmp_path / place)


def test_only_what_may_be_the_same_is_read_whole(tmp_path: Path) -> None:
    """Checkpoints of one size that differ at their beginning are told apart by samples."""
    for epoch in range(4):
        save(tmp_path / f"epoch_{epoch}.pt", epoch)
    read: list[int] = []
    ckpt_lib.advise(tmp_path, progress=read.append)
    assert sum(read) == 0
    shutil.copy(tmp_path / "epoch_3.pt", tmp_path / "copy.pt")
    ckpt_lib.advise(tmp_path, progress=read.append)
    assert sum(read) == 2 * (tmp_path / "copy.pt").stat().st_size
