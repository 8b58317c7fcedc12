"""``ckpt thin`` and what other commands say of checkpoints that hold only their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.cli import trash
from ckpt_lib.core.wording import size_text
from tests.cli.running import on_posix, run, run_json, run_on_terminal


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, list[str]]:
    """A store with three checkpoints of a model with its optimizer."""
    store, model = tmp_path / "trained", nn.Linear(64, 64)
    optimizer = torch.optim.Adam(model.parameters())
    torch.autograd.backward(model(torch.randn(2, 64)).sum())
    optimizer.step()
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store)), "run")
    options: dict[str, Any] = {"model": model, "optimizer": optimizer}
    made = [manager.save_checkpoint(**options, epoch=epoch, metrics={"val_loss": epoch}) for epoch in (1, 2, 3)]
    return store, [str(checkpoint_id) for checkpoint_id in made]


def test_thin_and_undo(trained: tuple[Path, list[str]]) -> None:
    """Each command says what the checkpoints hold now, and what can come back."""
    store, (first, second, _) = trained
    result = run("thin", first, second, "--yes", store=store)
    assert result.stdout.count("weights only") == 2
    assert "2 checkpoints thinned" in result.stderr
    assert "are freed when the trash is emptied, in 1 d. Until then, `ckpt thin --undo ID" in " ".join(
        result.stderr.split()
    )
    assert "weights only" in run("list", store=store).stdout
    shown = " ".join(run("show", first, store=store).stderr.split())
    assert "only its weights are left" in shown
    assert f"`ckpt thin --undo {first}`" in shown
    shown = " ".join(run("trash", store=store).stderr.split())
    assert "2 other checkpoints in the trash" in shown
    assert "ckpt thin --undo ID" in shown
    assert "everything" in run("thin", "--undo", first, store=store).stdout
    assert run_json("thin", second, "--yes", store=store)["checkpoints"][0]["is_thinned"] is True
    assert set(run_json("trash", store=store)["dropped_bytes"]) == {first, second}
    assert "freed" in run("trash", "--empty", "--yes", store=store).stderr
    assert run_json("trash", store=store)["dropped_bytes"] == {}
    assert f"`ckpt restore {second}`" in " ".join(run("show", second, store=store).stderr.split())
    assert "has been removed" in run("thin", "--undo", second, store=store, code=2).stderr
    assert run_json("restore", second, store=store)
    assert run_json("show", second, store=store)["is_thinned"] is False


def test_what_was_freed_is_told_whatever_comes_meanwhile(
    trained: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another program thins while a person is asked stays in the trash, and is not taken off."""
    store, (first, second, _) = trained
    run("thin", first, "--yes", store=store)
    (lost_bytes,) = run_json("trash", store=store)["dropped_bytes"].values()
    monkeypatch.setattr(trash, "confirm", lambda _: run("thin", second, "--yes", store=store))
    monkeypatch.setattr(trash, "refuse_to_ask", lambda **_: None)
    assert f"{size_text(lost_bytes)} freed" in run("trash", "--empty", store=store).stderr
    assert set(run_json("trash", store=store)["dropped_bytes"]) == {second}


def test_the_trash_offers_to_undo_what_can_be_undone(trained: tuple[Path, list[str]]) -> None:
    """After an undo it holds the weights that were instead, and nothing is left to bring back."""
    store, (first, *_) = trained
    run("thin", first, "--yes", store=store)
    run("thin", "--undo", first, store=store)
    shown = run("trash", store=store).stderr
    assert "1 other checkpoint in the trash" in shown
    assert "--undo" not in shown
    advised = " ".join(run("advise", store=store).stdout.split())
    assert "Its thinning was undone; a copy of its payload is left." in advised


def test_a_dry_run_says_what_would_become_of_them(trained: tuple[Path, list[str]]) -> None:
    """Not only which are selected."""
    store, (first, *_) = trained
    shown = " ".join(run("thin", first, "--dry-run", store=store).stderr.split())
    assert "1 selected. Nothing was changed: without --dry-run, they keep only their weights." in shown


@on_posix
def test_thin_asks_and_tells_what_a_run_would_go_on_from(trained: tuple[Path, list[str]]) -> None:
    """Before the change, as for a deletion, and where it is not asked, after it; undone, it is the newest again."""
    store, (first, second, third) = trained
    assert "needs a confirmation" in run("thin", third, store=store, code=4).stderr
    code, output = run_on_terminal("thin", third, "--store", store, columns=200, answer="n\n")
    assert (code, f"A run would go on from {second}." in output) == (4, True)
    assert run_json("show", third, store=store)["is_thinned"] is False
    assert "go on from" not in run("thin", first, "--yes", store=store).stderr
    assert f"A run would go on from {second}." in run("thin", "latest", "--yes", store=store).stderr
    assert "No checkpoint is left to resume from" in run("thin", second, "--yes", store=store).stderr
    assert f"A run would go on from {third}." in run("thin", "--undo", third, store=store).stderr


def test_thin_backups(trained: tuple[Path, list[str]]) -> None:
    """The backups of these ids alone; to undo that is not offered."""
    store, (first, *_) = trained
    assert "1 backup thinned" in run("thin", "--backups", first, "--yes", store=store).stderr
    assert run_json("show", first, store=store)["is_thinned"] is False
    assert "cannot be combined" in run("thin", "--backups", "--undo", first, store=store, code=2).stderr


def test_cleanup_plans_and_thins(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    """With thin_after, the plan says which ones, and the report what came of it."""
    store, (_, second, _) = trained
    config = tmp_path / "ckpt.yaml"
    config.write_text(f"{{checkpoint_dir: '{store}', thin_after: 1}}")
    planned = run("cleanup", "--dry-run", "--config", config)
    assert f"{second}  thin" in planned.stdout
    assert "keep only the weights of 1 checkpoint" in planned.stderr
    assert "1 thinned" in run("cleanup", "--yes", "--config", config).stderr
    assert run_json("show", second, store=store)["is_thinned"] is True


def test_thin_tells_when_there_is_nothing_to_drop(store: Path, ids: list[str]) -> None:
    """They were saved without an optimizer."""
    assert "Nothing was dropped" in run("thin", ids[0], "--yes", store=store).stderr
