"""The commands of ``ckpt`` about all experiments of a store: experiments, find and reindex."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.cli.running import run, run_json
from tests.helpers import flip_bit, manifest_path


@pytest.fixture
def two(store: Path) -> Path:
    """A store of two experiments with the same checkpoints."""
    shutil.copytree(store / "digits", store / "letters")
    return store


def test_experiments_lists_them(two: Path, ids: list[str]) -> None:
    """It counts what each experiment of the store holds, and names its best and latest checkpoint."""
    rows = [line.split()[:2] for line in run("experiments", store=two).stdout.splitlines()[1:]]
    assert rows == [["digits", "3"], ["letters", "3"]]
    (found, _) = run_json("experiments", store=two)["experiments"]
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(two)), "digits")
    best = manager.get_checkpoint("best")
    assert found["monitor_metric"] == manager.monitor.metric
    assert (found["experiment_name"], found["latest_checkpoint"]) == ("digits", ids[2])
    assert (found["best_checkpoint"], found["best_value"]) == (best.checkpoint_id, best.metrics[manager.monitor.metric])


def test_experiments_without_a_sync_says_of_when_it_is(two: Path) -> None:
    """What was deleted since is still in the answer, and the answer has its date."""
    run("experiments", store=two)
    shutil.rmtree(two / "letters")
    found = run("experiments", "--no-sync", store=two)
    assert "letters" in found.stdout
    assert "As of" in found.stderr
    assert "letters" not in run("experiments", store=two).stdout


def test_experiments_names_those_with_damage(two: Path, ids: list[str]) -> None:
    """An unreadable manifest is not silently less."""
    flip_bit(manifest_path(CheckpointManager(CheckpointConfig(checkpoint_dir=str(two)), "letters"), ids[1]), 99)
    found = run("experiments", store=two)
    assert "letters has 1 unreadable checkpoint" in found.stderr
    assert "`ckpt doctor" in found.stderr


def test_find_looks_in_all_experiments(two: Path, ids: list[str]) -> None:
    """By the conditions of a list, page by page."""
    found = run_json("find", "--where", "epoch>=2", "--sort-by", "epoch", "-d", store=two)["checkpoints"]
    assert [(item["experiment_name"], item["epoch"]) for item in found] == [
        ("letters", 3),
        ("digits", 3),
        ("letters", 2),
        ("digits", 2),
    ]
    page = run("find", "-n", "2", store=two)
    assert page.stdout.count("digits") == 2
    assert f"There are more: --after digits/{ids[1]} shows the next." in page.stderr
    (third, *_) = run_json("find", "--after", f"digits/{ids[1]}", store=two)["checkpoints"]
    assert (third["experiment_name"], third["checkpoint_id"]) == ("digits", ids[2])


def test_find_refuses_what_nobody_has_recorded(two: Path) -> None:
    """A misspelt metric must not look as if nothing met the condition; the error names those there are."""
    error = run_json("find", "--where", "los<3", store=two, code=2)["error"]
    assert error["expected"] == "accuracy, loss"
    assert "Did you mean" in error["hint"]


def test_reindex_builds_the_index_anew(two: Path) -> None:
    """It says what it has read, and refuses where there is no index to build."""
    assert "Indexed 6 checkpoints of 2 experiments." in run("reindex", store=two).stderr
    assert run_json("reindex", store=two) == {"experiments": 2, "checkpoints": 6}
    url = {"CKPT_INDEX_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    assert "the index cannot be used" in run("reindex", store=two, env=url, code=3).stderr


@pytest.mark.parametrize("url", ["mysql://a/b", "index.sqlite", "sqlite"])
def test_a_url_of_no_database_is_refused(two: Path, url: str) -> None:
    """At the door, and not when the first large experiment is listed."""
    assert "expected sqlite:" in run("list", "-e", "digits", store=two, env={"CKPT_INDEX_URL": url}, code=2).stderr
