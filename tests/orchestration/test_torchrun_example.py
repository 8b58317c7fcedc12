"""The whole script of the documentation: by ``torchrun``, interrupted and resumed, and by the flow ``launch``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from deployments.serve import PROJECT
from prefect_checkpoints.flows import launch
from tests.launch.running import wait_until

SCRIPT = PROJECT / "examples" / "torchrun_training.py"
EPOCHS = 40
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def command() -> list[str]:
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    return [torchrun, "--standalone", "--nproc-per-node", "2", str(SCRIPT), str(EPOCHS)]


def start(config: CheckpointConfig, log: Path) -> subprocess.Popen[bytes]:
    """Run the script as a user does, in a shell that names store and experiment."""
    variables = {"CKPT_CHECKPOINT_DIR": config.checkpoint_dir, "CKPT_EXPERIMENT": "by-hand", **ENVIRONMENT}
    with log.open("ab") as file:
        return subprocess.Popen(command(), env={**os.environ, **variables}, stdout=file, stderr=file)


@pytest.mark.servers
@pytest.mark.usefixtures("own_results")
@pytest.mark.skipif(sys.platform != "linux", reason="commands are launched on Linux only")
def test_a_script_that_was_stopped_ends_like_one_that_was_launched(config: CheckpointConfig, tmp_path: Path) -> None:
    """All ranks save the step that SIGTERM found them at, and the weights are those of an uninterrupted training."""
    report = launch(config, "launched", command(), environment=ENVIRONMENT)
    assert report.outcome == "done"
    log, by_hand = tmp_path / "log", CheckpointManager(config, "by-hand")
    stopped = start(config, log)
    try:
        wait_until("epochs", lambda: "epoch 3" in log.read_text(), 120)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(60) != 0
        latest = by_hand.get_latest_checkpoint()
        assert latest is not None
        assert 3 <= latest.epoch < EPOCHS
        resumed = start(config, log)
        assert resumed.wait(120) == 0, log.read_text()
    finally:
        stopped.kill()
    found, expected = (
        CheckpointManager(config, name).load_checkpoint("latest")["model_state_dict"]
        for name in ("by-hand", "launched")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_the_page_shows_the_script_as_it_is() -> None:
    """What a reader copies is what the other test runs."""
    _, code = SCRIPT.read_text(encoding="utf-8").split('"""\n\n', 1)
    assert f"```python\n{code}```" in (PROJECT / "docs/how-to/data-parallel.md").read_text(encoding="utf-8")
