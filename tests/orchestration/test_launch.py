"""The flow that launches training commands, on Prefect's test server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, LaunchError
from ckpt_lib.launch.report import LaunchReport
from prefect_checkpoints.flows import launch
from tests.orchestration.runs import EXPERIMENT, artifacts, descriptions

pytestmark = [
    pytest.mark.usefixtures("own_results"),
    pytest.mark.skipif(sys.platform != "linux", reason="commands are launched on Linux only"),
]
QUICK: dict[str, Any] = {"restart_delay_seconds": 0, "stop_deadline_seconds": 5}

TRAINING = """
import os, sys
from torch import nn
from ckpt_lib import CheckpointManager
manager = CheckpointManager.from_env()
model = nn.Linear(2, 1)
found = manager.resume(model)
epoch = found["next_epoch"] if found else 1
print("epoch", epoch, "of attempt", os.environ["CKPT_LAUNCH_ATTEMPT"])
manager.save_checkpoint(model=model, epoch=epoch, metrics={"val_loss": 1.0})
sys.exit(0 if epoch == 2 else "an epoch is enough for this process")
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_training_is_restarted_until_it_is_done(config: CheckpointConfig, caplog: pytest.LogCaptureFixture) -> None:
    """It fails after its first epoch, resumes and is done: state, result, artifact and log say so."""
    with caplog.at_level(logging.INFO, "prefect.flow_runs"):
        state: State[Any] = launch(config, EXPERIMENT, python(TRAINING), **QUICK, return_state=True)
    report = state.result()
    assert isinstance(report, LaunchReport)
    assert [attempt.outcome for attempt in report.attempts] == ["failed", "done"]
    assert report.checkpoint_ids == tuple(CheckpointManager(config, EXPERIMENT).checkpoint_ids())
    assert len(report.checkpoint_ids) == 2
    assert state.name == "Completed"
    assert state.message == "done: exit code 0, 1 restart, 2 new checkpoints; the command has ended"
    assert report.launch_id == str(state.state_details.flow_run_id)
    assert {"epoch 1 of attempt 1", "epoch 2 of attempt 2", "an epoch is enough for this process"} <= {*caplog.messages}
    rows = artifacts(state)[f"launch-{EXPERIMENT}"]
    assert '"outcome": "done"' in rows
    assert '"outcome": "failed"' in rows
    assert state.message in descriptions(state)[f"launch-{EXPERIMENT}"]


def test_a_crash_loop_ends_in_a_failed_run(config: CheckpointConfig) -> None:
    """Two attempts without a checkpoint are enough: the state says why, and the error has the report."""
    state: State[Any] = launch(config, EXPERIMENT, python("raise SystemExit('no data')"), **QUICK, return_state=True)
    assert state.is_failed()
    assert "failed: exit code 1, 1 restart, 0 new checkpoints; 2 attempts in a row made no" in str(state.message)
    with pytest.raises(LaunchError) as raised:
        state.result()
    assert raised.value.report is not None
    assert raised.value.report.attempts[-1].last_lines == ("no data",)
    assert "no data" in artifacts(state)[f"launch-{EXPERIMENT}"]


def test_a_preempted_training_is_neither_done_nor_restarted(config: CheckpointConfig) -> None:
    """Somebody else asked it to stop: the run fails, so that a retry or a person launches it again."""
    state: State[Any] = launch(config, EXPERIMENT, "sh -c 'exit 143'", **QUICK, return_state=True)
    assert state.is_failed()
    assert "preempted: exit code 143: SIGTERM asked it to stop, 0 new" in str(state.message)


def test_what_cannot_run_fails_at_once(config: CheckpointConfig, tmp_path: Path) -> None:
    """Nothing is started, and nothing is written, for a command that does not exist."""
    state: State[Any] = launch(config, EXPERIMENT, "no-such-program", return_state=True)
    with pytest.raises(ConfigError, match="program was not found"):
        state.result()
    assert not (tmp_path / "store").exists()


def test_the_form_takes_text_and_lists() -> None:
    """Parameters are plain values, which a form or a YAML file holds."""
    schema = launch.parameters.model_dump()
    assert schema["required"] == ["config", "experiment_name", "command"]
    kinds = [item.get("type") for item in schema["properties"]["command"]["anyOf"]]
    assert kinds == ["array", "string"]
    for command in ("torchrun train.py", ["torchrun", "train.py"]):
        given = {"config": {}, "experiment_name": "x", "command": command}
        assert launch.validate_parameters(given)["command"] == command
