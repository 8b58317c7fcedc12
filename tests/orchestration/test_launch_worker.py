"""Launched trainings on a process worker: kills of ranks, of the run's process and of the worker; stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from ckpt_lib.launch.processes import descendants, table
from deployments.serve import PROJECT
from prefect_checkpoints.flows.automations import install_rescheduling
from tests.launch.running import processes_of, wait_until
from tests.launch.steps import SAVE_EVERY
from tests.launch.test_torchrun import Run
from tests.orchestration.test_automations import using
from tests.orchestration.test_deployments import SECONDS_TO_WAIT, Api, ended

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(sys.platform != "linux", reason="commands are launched on Linux only"),
]
KILLS = int(os.environ.get("CKPT_TEST_LAUNCH_KILLS", "10"))


class Pool:
    """A deployment of ``launch`` in a work pool of its own, and a worker that can be killed."""

    def __init__(self, api: Api, environment: dict[str, str], folder: Path, name: str) -> None:
        self.api, self.name = api, name
        self._environment, self._folder = environment, folder
        self._children: list[subprocess.Popen[bytes]] = []
        self.worker: subprocess.Popen[bytes] | None = None
        api.post("/work_pools/", {"name": name, "type": "process"})
        flow = api.post("/flows/", {"name": "launch"})
        deployment = {"name": name, "flow_id": flow["id"], "entrypoint": "prefect_checkpoints.flows.launch"}
        pull = {"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}
        self.deployment = api.post("/deployments/", {**deployment, "work_pool_name": name, "pull_steps": [pull]})

    def start_worker(self) -> None:
        self.worker = self._prefect("worker", "start", "--pool", self.name, "--type", "process")

    def execute(self, run_id: str) -> subprocess.Popen[bytes]:
        """Execute a run as a container does."""
        return self._prefect("flow-run", "execute", run_id)

    def _prefect(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "prefect.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=PROJECT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def launch(self, run: Run, **parameters: Any) -> str:
        options = {
            "command": list(run.request.command),
            "experiment_name": "run",
            "config": {"checkpoint_dir": str(run.store)},
            "environment": {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            "working_directory": str(PROJECT),
            "restart_delay_seconds": 0,
            "stop_deadline_seconds": 20,
            "max_restarts": KILLS,
        }
        return self.api.start(self.deployment, options | parameters)

    def process_of(self, run_id: str) -> int:
        """The flow run's process: what the supervisor of its command is a child of."""

        def found() -> int:
            everyone = table()
            supervisors = [pid for pid in everyone if b"ckpt_lib.launch.supervisor" in _read(pid, "cmdline")]
            parents = [everyone[pid].parent for pid in supervisors]
            return next(
                (pid for pid in parents if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in _read(pid, "environ")), 0
            )

        return int(wait_until("the run's process", found))

    def stop(self) -> None:
        """End what was started here, and what that has started."""
        for child in self._children:
            below = [item.pid for item in descendants(child.pid, table().values())]
            for pid in (child.pid, *below) if child.poll() is None else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            child.wait()


def _read(pid: int, name: str) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


@pytest.fixture
def api(server_environment: dict[str, str]) -> Iterator[Api]:
    with httpx.Client(base_url=server_environment["PREFECT_API_URL"], timeout=SECONDS_TO_WAIT) as client:
        yield Api(client)


@contextmanager
def work_pool(api: Api, environment: dict[str, str], folder: Path, name: str) -> Iterator[Pool]:
    found = Pool(api, environment, folder, name)
    found.start_worker()
    try:
        yield found
    finally:
        found.stop()


def test_training_survives_kills_of_everything(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """Of a rank: restarted. Of the run's process: nothing is left, and the next run resumes. Of the worker: goes on."""
    run = Run(tmp_path, last_step=15 * KILLS)
    with work_pool(api, server_environment, tmp_path, "kills") as pool:
        run_id = pool.launch(run)
        for kill in range(KILLS):
            run.await_steps(SAVE_EVERY + kill % 3)
            if kill % 3 == 0:
                os.kill(run.ranks()[kill % 2].pid, signal.SIGKILL)
            elif kill % 3 == 1:
                os.kill(pool.process_of(run_id), signal.SIGKILL)
                wait_until("the end of the orphans", lambda: not processes_of(run.request), 10)
                run_id = pool.launch(run)
            else:
                assert pool.worker is not None
                pool.worker.kill()
                pool.worker.wait()
                run.await_steps(1)
                pool.start_worker()
        wait_until("the last step", lambda: run.trained_steps()[-1] == run.last_step, 300)
        wait_until("the end", lambda: not processes_of(run.request))
        found = ended(api, run_id)
    assert found["state_type"] == "COMPLETED", found["state"]
    assert "launch-run" in api.artifact_keys(run_id)
    run.check_end(kills=KILLS)


def test_a_cancelled_run_saves_and_leaves_nothing(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """Cancelled on the page, the ranks save where they are, all processes end, and the run is Cancelled."""
    run = Run(tmp_path, last_step=10_000)
    with work_pool(api, server_environment, tmp_path, "cancelled") as pool:
        run_id = pool.launch(run)
        run.await_steps(SAVE_EVERY + 2)
        api.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}})
        assert ended(api, run_id)["state_type"] == "CANCELLED"
        wait_until("the end", lambda: not processes_of(run.request), 10)
    latest = run.manager.get_latest_checkpoint()
    assert latest is not None
    assert latest.step == run.trained_steps()[-1]
    assert "launch-run" in api.artifact_keys(run_id)


def test_a_preempted_run_is_put_back(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """SIGTERM to the run's process: its state says so and names the newest checkpoint, and an automation puts it back.

    The worker takes the same run again, and no step is repeated.
    """
    run = Run(tmp_path, last_step=40)
    with work_pool(api, server_environment, tmp_path, "preempted") as pool:
        with using(server_environment):
            first = install_rescheduling("launch/preempted")
            assert install_rescheduling("launch/preempted") == first
        run_id = pool.launch(run)
        run.await_steps(SAVE_EVERY + 2)
        os.kill(pool.process_of(run_id), signal.SIGTERM)
        wait_until("the second run", lambda: api.run(run_id)["run_count"] == 2, 120)
        found = ended(api, run_id)
        states = api.states(run_id)
    assert (found["state_type"], found["run_count"]) == ("COMPLETED", 2), found["state"]
    (preempted,) = [state for state in states if state["type"] == "CRASHED"]
    assert preempted["name"] == "Preempted"
    stopped_at = next(item for item in run.manager.list_checkpoints() if item.checkpoint_id in preempted["message"])
    assert preempted["message"].startswith("SIGTERM ended the launch (")
    assert "asked to stop" not in preempted["message"]
    assert 0 < stopped_at.step < run.last_step
    assert run.trained_steps() == list(range(1, run.last_step + 1))
    run.check_end(kills=0)


def test_a_rescheduled_run_resumes(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """With Prefect's setting, SIGTERM saves and puts the same run back; executed again, it repeats nothing."""
    environment = {**server_environment, "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}
    run = Run(tmp_path, last_step=40)
    pool = Pool(api, environment, tmp_path, "rescheduled")
    run_id = pool.launch(run)
    try:
        first = pool.execute(run_id)
        run.await_steps(SAVE_EVERY + 2)
        first.terminate()
        assert first.wait(60) == 0
        assert api.run(run_id)["state_name"] == "AwaitingRetry"
        assert processes_of(run.request) == []
        assert run.trained_steps()[-1] < run.last_step
        assert pool.execute(run_id).wait(180) == 0
    finally:
        pool.stop()
    found = api.run(run_id)
    assert (found["state_type"], found["run_count"]) == ("COMPLETED", 2), found["state"]
    assert run.trained_steps() == list(range(1, run.last_step + 1))
    run.check_end(kills=0)
