"""The scripts in ``examples`` do what they say, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from ckpt_lib import CheckpointConfig, CheckpointManager

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(name: str, *arguments: str, folder: Path, **environment: str) -> str:
    """Run an example in this folder and return what it prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    ended = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_basic_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The second run trains the epochs that the first has not, and the best is found."""
    assert run("basic.py", "3", folder=tmp_path).startswith("trained epochs 1 to 3; the best is epoch 3")
    assert run("basic.py", "5", folder=tmp_path).startswith("trained epochs 4 to 5; the best is epoch 5")
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "checkpoints")), "basic")
    assert [item.epoch for item in manager.list_checkpoints()] == [3, 4, 5]


def test_a_flow_saves_by_tasks(tmp_path: Path) -> None:
    """Each epoch is saved, and the summary names the best."""
    told = run("prefect_flow.py", "3", folder=tmp_path, PREFECT_HOME=str(tmp_path / "prefect"))
    assert re.search(r"3 checkpoints, the best is checkpoint_epoch_0003", told)


def test_the_page_sees_a_live_run(tmp_path: Path) -> None:
    """It trains for the time that it is given, and saves at its interval."""
    assert re.search(r"trained \d+ epochs, saved \d+ checkpoints", run("page.py", "1", folder=tmp_path))


def test_a_file_configures_and_the_environment_overrides_it(tmp_path: Path) -> None:
    """Only what is better is saved; the environment decides how many are kept."""
    told = run("yaml_config.py", folder=tmp_path, CKPT_MAX_CHECKPOINTS="2")
    assert "epoch 3: not better, not saved" in told
    assert "kept 2, at most 2" in told


def test_the_page_of_examples_names_all() -> None:
    """Each script, notebook and configuration, and nothing that is not there."""
    named = set(re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb", ".yaml")}
    assert named == there - {"__init__.py", "run_notebook.py"}
