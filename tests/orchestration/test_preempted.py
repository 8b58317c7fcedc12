"""Training flows whose process is stopped: the same flow run goes on elsewhere, and ends as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.launch.processes import descendants, table
from deployments.serve import PROJECT
from tests.orchestration.preempted_training import BATCHES, EPOCHS, SAVE_EVERY
from tests.orchestration.test_deployments import SECONDS_TO_WAIT, Api, wait_for

pytestmark = pytest.mark.servers


@pytest.fixture
def api(server_environment: dict[str, str]) -> Iterator[Api]:
    with httpx.Client(base_url=server_environment["PREFECT_API_URL"], timeout=SECONDS_TO_WAIT) as client:
        yield Api(client)


class Machine:
    """Executes flow runs, as a container does, and may lose its disk."""

    def __init__(self, api: Api, environment: dict[str, str], folder: Path) -> None:
        self.api, self.folder = api, folder
        self._environment = environment
        self.config = CheckpointConfig(
            checkpoint_dir=str(folder / "disk"), backup_dir=str(folder / "elsewhere"), max_backups=20
        )
        flow = api.post("/flows/", {"name": "slow-training"})
        entrypoint = "tests/orchestration/preempted_training.py:slow_training"
        pull = {"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}
        content = {"name": folder.name, "flow_id": flow["id"], "entrypoint": entrypoint, "pull_steps": [pull]}
        self._deployment = api.post("/deployments/", content)

    def create(self) -> str:
        """A run that nothing has executed yet."""
        given = {"checkpoint_dir": self.config.checkpoint_dir, "backup_dir": self.config.backup_dir, "max_backups": 20}
        return self.api.start(self._deployment, {"config": given, "result": str(self.folder / "result")})

    def execute(self, run_id: str) -> subprocess.Popen[bytes]:
        with (self.folder / "prefect.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", "flow-run", "execute", run_id],
                cwd=PROJECT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "result").read_text())
        return found

    def steps_saved(self) -> list[int]:
        manager = CheckpointManager(self.config, "run")
        return [item.step for item in manager.list_checkpoints()] if Path(self.config.checkpoint_dir).exists() else []

    def wait_for_step(self, step: int) -> None:
        wait_for(f"step {step}", lambda: max(self.steps_saved(), default=0) >= step)


@pytest.fixture(scope="module")
def expected(server_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a training that nothing stops."""
    with httpx.Client(base_url=server_environment["PREFECT_API_URL"], timeout=SECONDS_TO_WAIT) as client:
        machine = Machine(Api(client), server_environment, tmp_path_factory.mktemp("whole"))
        assert machine.execute(machine.create()).wait(180) == 0
        found = machine.result()
    assert found["steps"] == list(range(1, EPOCHS * BATCHES + 1))
    return found


def test_sigterm_moves_the_run_to_a_machine_without_its_disk(
    server_environment: dict[str, str], api: Api, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """Stopped in the middle of an epoch, the same flow run resumes from the backup, and repeats no step."""
    environment = {**server_environment, "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    machine = Machine(api, environment, tmp_path)
    run_id = machine.create()
    first = machine.execute(run_id)
    machine.wait_for_step(SAVE_EVERY)
    first.send_signal(signal.SIGTERM)
    assert first.wait(90) == 0
    assert api.run(run_id)["state_name"] == "AwaitingRetry"
    saved = max(machine.steps_saved())
    shutil.rmtree(machine.config.checkpoint_dir)
    assert machine.execute(run_id).wait(180) == 0
    found = machine.result()
    assert api.run(run_id)["state_type"] == "COMPLETED"
    assert found["steps"] == list(range(saved + 1, EPOCHS * BATCHES + 1))
    assert found["digests"] == expected["digests"]


def test_a_killed_run_that_is_run_again_repeats_one_interval(
    server_environment: dict[str, str], api: Api, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """SIGKILL leaves the run as it is; put back by hand, it goes on from its last save."""
    machine = Machine(api, server_environment, tmp_path)
    run_id = machine.create()
    first = machine.execute(run_id)
    machine.wait_for_step(2 * SAVE_EVERY)
    below = descendants(first.pid, table().values())
    for pid in (first.pid, *(item.pid for item in below)):
        os.kill(pid, signal.SIGKILL)
    first.wait(30)
    saved = max(machine.steps_saved())
    api.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    assert machine.execute(run_id).wait(180) == 0
    found = machine.result()
    assert found["steps"] == list(range(saved + 1, EPOCHS * BATCHES + 1))
    assert found["digests"] == expected["digests"]


def test_without_that_setting_the_run_is_called_preempted(
    server_environment: dict[str, str], api: Api, tmp_path: Path
) -> None:
    """The state of a run whose own process gets the signal says what happened, and which checkpoint is the newest."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"))
    code = (
        "import sys; from ckpt_lib import CheckpointConfig\n"
        "from tests.orchestration.preempted_training import slow_training\n"
        "slow_training(CheckpointConfig(checkpoint_dir=sys.argv[1]), sys.argv[1] + '/result', 0.2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, config.checkpoint_dir], cwd=PROJECT, env=server_environment)
    manager = CheckpointManager(config, "run")
    wait_for("a checkpoint", lambda: Path(config.checkpoint_dir).exists() and manager.list_checkpoints())
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) != 0
    (run,) = api.post("/flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Preempted"]}}}})
    newest = manager.get_checkpoint("latest")
    assert run["state_type"] == "CRASHED"
    assert newest.checkpoint_id in run["state"]["message"]
    assert f"at step {newest.step}" in run["state"]["message"]
    assert not (tmp_path / "store" / "result").exists()
