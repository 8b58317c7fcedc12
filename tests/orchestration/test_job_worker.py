"""Jobs of the REST API on a process worker of Prefect: done there, and cancelled in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.web import ServerSettings
from deployments.serve import PROJECT
from tests.orchestration.runs import EXPERIMENT
from tests.orchestration.test_automations import using
from tests.orchestration.test_deployments import SECONDS_TO_WAIT, Api, process
from tests.orchestration.test_job_runner import JOBS, job_of, until
from tests.web.running import served

pytestmark = pytest.mark.servers
POOL = "jobs-of-a-test"


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The deployment that the runner looks for, and a worker of its pool."""
    with httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=SECONDS_TO_WAIT) as client:
        api = Api(client)
        api.post("/work_pools/", {"name": POOL, "type": "process"})
        flow = api.post("/flows/", {"name": "checkpoint_job"})
        deployment = {
            "name": "jobs",
            "flow_id": flow["id"],
            "entrypoint": "tests.orchestration.slow_job.checkpoint_job",
        }
        pull = {"prefect.deployments.steps.set_working_directory": {"directory": str(PROJECT)}}
        api.post("/deployments/", {**deployment, "work_pool_name": POOL, "pull_steps": [pull]})
    command = ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    with process(command, environment, log) as found:
        yield found


def test_a_worker_does_jobs(server_environment: dict[str, str], tmp_path: Path) -> None:
    """One that is cancelled while it runs ends in the middle; another one is done to its end."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"), backup_checkpoints=False)
    manager = CheckpointManager(config, EXPERIMENT)
    manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    settings = ServerSettings(config=config, jobs_folder=tmp_path / "jobs", runner="prefect")
    with (
        using(server_environment),
        worker(server_environment, tmp_path / "worker.log"),
        served(settings) as client,
    ):
        started = client.post(JOBS, json={"operation": "validate", "names": "all"}).json()["job_id"]
        until("some bytes", lambda: job_of(client, started)["done_bytes"], seconds=SECONDS_TO_WAIT)
        assert client.delete(f"/jobs/{started}").status_code == 202
        ended = until("its end", lambda: _ended(client, started), seconds=SECONDS_TO_WAIT)
        assert ended["state"] == "cancelled", ended
        other = client.post(JOBS, json={"operation": "backup", "names": "all"}).json()["job_id"]
        ended = until("its end", lambda: _ended(client, other), seconds=SECONDS_TO_WAIT)
    assert ended["state"] == "succeeded", ended
    assert manager.backup_ids() == manager.checkpoint_ids()


def _ended(client: httpx.Client, job_id: str) -> dict[str, object] | None:
    job: dict[str, object] = job_of(client, job_id)
    return job if job["ended_at"] else None
