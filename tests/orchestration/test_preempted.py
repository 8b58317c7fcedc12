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
from tests.launch.running import wait_until
from tests.orchestration.preempted_training import BATCHES, EPOCHS, MIDDLE, SAVE_EVERY
from tests.orchestration.test_deployments import SECONDS_TO_WAIT, Api

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

    def create(self, wait_at_step: int = 0) -> str:
        """A run that nothing has executed yet."""
        given = {"checkpoint_dir": self.config.checkpoint_dir, "backup_dir": self.config.backup_dir, "max_backups": 20}
        parameters = {"config": given, "result": str(self.folder / "result"), "wait_at_step": wait_at_step}
        return self.api.start(self._deployment, parameters)

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

    def wait_for_the_middle(self) -> None:
        wait_until("the middle of an epoch", (self.folder / "result.waits").exists, SECONDS_TO_WAIT)

    def last_backup(self) -> int:
        """The step of the newest checkpoint among the backups."""
        return max((item.step for item in CheckpointManager(self.config, "run").list_backups()), default=0)

    def lose_disk(self) -> None:
        shutil.rmtree(self.config.checkpoint_dir)

    def check_end(self, resumed_from: int, expected: dict[str, Any]) -> None:
        """It went on from a step in the middle of an epoch, repeated none, and came to the end of the whole one."""
        assert resumed_from % BATCHES != 0
        found = self.result()
        assert found["steps"] == list(range(resumed_from + 1, EPOCHS * BATCHES + 1))
        assert found["digests"] == expected["digests"]


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
    """Stopped in the middle of an epoch, a run saves that step; the same run resumes from the backup of it."""
    environment = {**server_environment, "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    machine = Machine(api, environment, tmp_path)
    run_id = machine.create(wait_at_step=MIDDLE)
    first = machine.execute(run_id)
    machine.wait_for_the_middle()
    first.send_signal(signal.SIGTERM)
    assert first.wait(90) == 0
    assert api.run(run_id)["state_name"] == "AwaitingRetry"
    machine.lose_disk()
    assert machine.last_backup() == MIDDLE
    assert machine.execute(run_id).wait(180) == 0
    assert api.run(run_id)["state_type"] == "COMPLETED"
    machine.check_end(MIDDLE, expected)


def test_a_killed_run_that_is_run_again_repeats_one_interval(
    server_environment: dict[str, str], api: Api, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """SIGKILL leaves the run as it is; put back by hand, elsewhere, it goes on from the backup of its last save."""
    machine = Machine(api, server_environment, tmp_path)
    run_id = machine.create(wait_at_step=MIDDLE)
    first = machine.execute(run_id)
    machine.wait_for_the_middle()
    saved = MIDDLE - MIDDLE % SAVE_EVERY
    wait_until("the backup", lambda: machine.last_backup() == saved)
    below = descendants(first.pid, table().values())
    for pid in (first.pid, *(item.pid for item in below)):
        os.kill(pid, signal.SIGKILL)
    first.wait(30)
    machine.lose_disk()
    api.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    assert machine.execute(run_id).wait(180) == 0
    machine.check_end(saved, expected)


def test_without_that_setting_the_run_is_called_preempted(
    server_environment: dict[str, str], api: Api, tmp_path: Path
) -> None:
    """The state of a run whose own process gets the signal says what happened, and which checkpoint is the newest."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"))
    code = (
        "import sys; from ckpt_lib import CheckpointConfig\n"
        "from tests.orchestration.preempted_training import MIDDLE, slow_training\n"
        "slow_training(CheckpointConfig(checkpoint_dir=sys.argv[1]), sys.argv[2], MIDDLE)"
    )
    result = tmp_path / "result"
    command = [sys.executable, "-c", code, config.checkpoint_dir, str(result)]
    process = subprocess.Popen(command, cwd=PROJECT, env=server_environment)
    wait_until("the middle of an epoch", Path(f"{result}.waits").exists, SECONDS_TO_WAIT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) != 0
    (run,) = api.post("/flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Preempted"]}}}})
    newest = CheckpointManager(config, "run").get_checkpoint("latest")
    assert run["state_type"] == "CRASHED"
    assert newest.checkpoint_id in run["state"]["message"]
    assert f"at step {MIDDLE}" in run["state"]["message"]
    assert newest.step == MIDDLE
    assert not result.exists()
