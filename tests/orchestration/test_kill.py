"""Training that is killed again and again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment.locations import Locations
from tests.orchestration import training_run

pytestmark = pytest.mark.servers
KILLS = int(os.environ.get("CKPT_TEST_KILLS", "20"))
SEED = int(os.environ.get("CKPT_TEST_SEED", "20261124"))


@contextmanager
def training(environment: dict[str, str], store: Path, epochs: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", training_run.__name__, str(store), str(epochs)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def acknowledged_until_killed(process: subprocess.Popen[str], seconds: float) -> int:
    """Kill the process this long after its first acknowledged save; return the last epoch it acknowledged."""
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("acknowledged"), "the training ended before it saved anything"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    lines = [first, *process.stdout]
    # The last line may have been cut off by the kill.
    return max(int(line.split()[1]) for line in lines if line.startswith("acknowledged ") and line.endswith("\n"))


@pytest.mark.parametrize("first_seed", [SEED])
def test_training_resumes_after_every_kill(server_environment: dict[str, str], tmp_path: Path, first_seed: int) -> None:
    """Killed at 20 random moments, each run resumes from a valid checkpoint; no killed save leaves anything."""
    random_moment = random.Random(first_seed)
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path), max_checkpoints=4), "digits")
    last_acknowledged = 0
    for kill in range(KILLS):
        with training(server_environment, tmp_path, epochs=100_000) as process:
            acknowledged = acknowledged_until_killed(process, random_moment.uniform(0, 0.5))
        latest = manager.get_latest_checkpoint()
        assert latest is not None
        assert latest.epoch >= acknowledged > last_acknowledged, f"kill {kill}"
        assert all(manager.validate_all()), f"kill {kill}"
        last_acknowledged = acknowledged

    with training(server_environment, tmp_path, epochs=last_acknowledged + 3) as process:
        assert process.wait(timeout=120) == 0
    manager.empty_trash()
    assert not manager.list_deleted()
    locations = Locations(manager.config, "digits")
    for experiment, folder in ((locations.home, tmp_path / "digits"), (locations.backups, tmp_path / "digits/backups")):
        view = experiment.index.view()
        assert {claim.state for claim in view.claims} <= {"gone"}
        named = {file.name for manifest in (*view.manifests, *view.deleted) for file in manifest.files}
        assert {path.name for path in folder.glob("*.pt")} == named
    latest = manager.get_latest_checkpoint()
    assert latest is not None
    assert latest.epoch >= last_acknowledged + 3
    # What a run has resumed from stays for an hour.
    assert sum(item.in_use_until is None for item in locations.home.index.manifests()) <= 5
