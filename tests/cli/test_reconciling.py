"""``ckpt reconcile``: what is in the fallback folder comes home."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import run, run_json
from tests.helpers import flip_bit


@pytest.fixture
def fallback(store: Path, tmp_path: Path) -> Path:
    """A fallback folder that holds two checkpoints of the store's experiment, and one of an experiment it has not."""
    path = tmp_path / "fallback"
    config = CheckpointConfig(checkpoint_dir=str(path), backup_checkpoints=False, save_metadata=False)
    for experiment, epochs in (("digits", (4, 5)), ("letters", (1,))):
        for epoch in epochs:
            CheckpointManager(config, experiment).save_checkpoint(model=torch.nn.Linear(4, 2), epoch=epoch)
    return path


def test_reconcile_moves_every_experiment_home(store: Path, ids: list[str], fallback: Path) -> None:
    """By option or variable; a second call has nothing to do."""
    result = run("reconcile", "--fallback", fallback, store=store)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == ["digits", "digits", "letters"]
    assert "3 checkpoints moved" in result.stderr
    listed = run_json("list", "--experiment", "digits", store=store)["checkpoints"]
    assert [item["epoch"] for item in listed] == [1, 2, 3, 4, 5]
    assert len(run_json("list", "--experiment", "letters", store=store)["checkpoints"]) == 1
    again = run_json("reconcile", store=store, env={"CKPT_FALLBACK_DIR": str(fallback)})
    assert again == {"experiments": []}


def test_reconcile_of_one_experiment(store: Path, fallback: Path) -> None:
    """The others stay; one that is not there is named."""
    (report,) = run_json("reconcile", "--fallback", fallback, "-e", "letters", store=store)["experiments"]
    assert (report["experiment_name"], len(report["moved"]), report["failed"]) == ("letters", 1, {})
    assert len(list((fallback / "digits").glob("*.pt"))) == 2
    error = run_json("reconcile", "--fallback", fallback, "-e", "digit", store=store, code=2)["error"]
    assert error["type"] == "ExperimentNotFoundError"


def test_reconcile_reports_what_stays(store: Path, fallback: Path) -> None:
    """Damage is exit code 1, as everywhere, and the others move."""
    damaged, *_ = sorted((fallback / "digits").glob("*.pt"))
    flip_bit(damaged, 300)
    result = run("reconcile", "--fallback", fallback, "-e", "digits", store=store, code=1)
    assert "stays: the checkpoint is damaged" in result.stdout
    assert damaged.exists()
    assert "1 checkpoint moved" in result.stderr


def test_reconcile_without_a_fallback_folder(store: Path, tmp_path: Path) -> None:
    """Not named is bad usage, and so is one that is not there, unless that is expected; nothing is created."""
    assert run_json("reconcile", store=store, code=2)["error"]["type"] == "ConfigError"
    missing = ("reconcile", "--fallback", tmp_path / "none")
    assert run_json(*missing, store=store, code=2)["error"]["type"] == "NotAStoreError"
    assert run_json(*missing, "--allow-missing", store=store) == {"experiments": []}
    assert not (tmp_path / "none").exists()


def test_reconcile_into_no_store(fallback: Path, tmp_path: Path) -> None:
    """A mistyped store, or the mount point of a missing disk, gets nothing, and the fallback folder keeps all."""
    before = sorted(path.name for path in fallback.rglob("*.pt"))
    for wrong in (tmp_path / "typo", tmp_path):
        error = run_json("reconcile", "--fallback", fallback, store=wrong, code=2)["error"]
        assert error["type"] == "NotAStoreError"
    assert sorted(path.name for path in fallback.rglob("*.pt")) == before
    assert not (tmp_path / "typo").exists()
