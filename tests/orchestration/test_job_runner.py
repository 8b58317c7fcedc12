"""Jobs of the REST API as flow runs: the runner ``prefect``, with Prefect's own test server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.runner import RunnerDeployment
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Crashed, Running

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, StoreUnavailableError
from ckpt_lib.store.local import LocalStore
from ckpt_lib.web import ServerSettings
from prefect_checkpoints import job_runner
from prefect_checkpoints.flows import checkpoint_job
from tests.orchestration.runs import EXPERIMENT, artifacts, damage, saved
from tests.web.running import served

pytestmark = pytest.mark.usefixtures("own_results")
JOBS = f"/experiments/{EXPERIMENT}/jobs"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_runner, "SECONDS_BETWEEN_LOOKS", 0.05)


@pytest.fixture
def deployment_id(own_results: None) -> Iterator[UUID]:
    """The deployment that the runner looks for; no worker runs it."""
    found = RunnerDeployment.from_flow(checkpoint_job, name="jobs").apply()
    assert isinstance(found, UUID)
    yield found
    with get_client(sync_client=True) as client:
        client.delete_deployment(found)


@pytest.fixture
def settings(config: CheckpointConfig, tmp_path: Path, deployment_id: UUID) -> ServerSettings:
    saved(config)
    return ServerSettings(config=config, jobs_folder=tmp_path / "jobs", runner="prefect")


@pytest.fixture
def client(settings: ServerSettings) -> Iterator[httpx.Client]:
    with served(settings) as client:
        yield client


def job_of(client: httpx.Client, job_id: str) -> Any:
    return client.get(f"/jobs/{job_id}").json()


def awaited(client: httpx.Client, job_id: str, *states: str) -> Any:
    """The job, once it is in one of these states."""
    return until(f"{job_id} in {states}", lambda: found if (found := job_of(client, job_id))["state"] in states else 0)


def until(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited for {what}")


def started(client: httpx.Client, operation: str, *names: str) -> tuple[str, FlowRun]:
    """A new job, and the flow run that Prefect has of it."""
    response = client.post(JOBS, json={"operation": operation, "names": list(names) or "all"})
    assert response.status_code == 202, response.text
    job_id = str(response.json()["job_id"])
    return job_id, until("the run", lambda: next(iter(runs_of(job_id)), None))


def runs_of(job_id: str) -> list[FlowRun]:
    chosen = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[job_id]))
    with get_client(sync_client=True) as api:
        return api.read_flow_runs(flow_run_filter=chosen)


def execute(run: FlowRun) -> Any:
    """Do a run as a worker would, in this process; its final state."""
    parameters = checkpoint_job.validate_parameters(run.parameters)
    return run_flow(checkpoint_job, flow_run=run, parameters=parameters, return_type="state")


def test_a_job_is_a_flow_run(client: httpx.Client, config: CheckpointConfig) -> None:
    """Its outcomes, bytes and times are those of the run, to which it links; damage is a result, as without Prefect."""
    ids = CheckpointManager(config, EXPERIMENT).checkpoint_ids()
    damage(config, ids[1])
    job_id, run = started(client, "validate")
    assert awaited(client, job_id, "waiting")["runner"] == "prefect"
    state = execute(run)
    assert state.is_completed()
    job = awaited(client, job_id, "succeeded")
    assert [item["result"]["is_valid"] for item in job["result"]] == [True, False, True]
    assert job["result"][1]["result"]["damages"]
    assert job["done_bytes"] == job["total_bytes"] > 0
    assert str(run.id) in job["url"]
    assert job["started_at"] <= job["ended_at"]
    assert {"job-run", "job-progress-run"} <= set(artifacts(state))


def test_one_bad_checkpoint_does_not_lose_the_others(client: httpx.Client, config: CheckpointConfig) -> None:
    """The run has failed and says why; the others were copied."""
    ids = CheckpointManager(config, EXPERIMENT).checkpoint_ids()
    shutil.rmtree(Path(config.checkpoint_dir, EXPERIMENT, "backups"))
    damage(config, ids[0])
    job_id, run = started(client, "backup")
    state = execute(run)
    assert state.is_failed()
    assert "1 of 3 checkpoints failed" in str(state.message)
    job = awaited(client, job_id, "failed")
    copied = {"kind": "backup", "done": "copied"}
    assert [item["result"] for item in job["result"]] == [None, copied, copied]
    assert job["problem"]["type"] == "CorruptCheckpointError"
    assert CheckpointManager(config, EXPERIMENT).backup_ids() == ids[1:]


def test_a_store_that_does_not_answer_is_asked_again(
    client: httpx.Client, config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the task of that checkpoint alone, whose bytes are counted once."""
    original, calls = LocalStore.open_read, []

    def failing(store: LocalStore, key: str) -> Any:
        if key.endswith(".pt"):
            calls.append(key)
            if len(calls) == 2:
                raise StoreUnavailableError("the store does not answer")
        return original(store, key)

    monkeypatch.setattr(LocalStore, "open_read", failing)
    job_id, run = started(client, "validate")
    assert execute(run).is_completed()
    job = awaited(client, job_id, "succeeded")
    assert [item["result"]["is_valid"] for item in job["result"]] == [True, True, True]
    assert job["done_bytes"] == job["total_bytes"]
    tried = [sum(item["checkpoint_id"] in key for key in calls) for item in job["result"]]
    assert tried == [4, 2, 2]


def test_an_experiment_that_is_gone(client: httpx.Client, config: CheckpointConfig) -> None:
    """The problem is that of the library, without a path of the machine that found it."""
    job_id, run = started(client, "validate")
    shutil.rmtree(Path(config.checkpoint_dir, EXPERIMENT))
    assert execute(run).is_failed()
    job = awaited(client, job_id, "failed")
    assert job["problem"]["type"] == "ExperimentNotFoundError"
    assert config.checkpoint_dir not in str(job)


def test_cancelled_here_it_is_cancelled_in_prefect(client: httpx.Client) -> None:
    """One that waits never begins."""
    job_id, _ = started(client, "validate")
    assert client.delete(f"/jobs/{job_id}").status_code == 202
    awaited(client, job_id, "cancelled")
    (found,) = runs_of(job_id)
    assert found.state is not None
    assert found.state.is_cancelled()


@pytest.mark.parametrize(("state", "told"), [(Cancelled(), "cancelled"), (Crashed(message="killed"), "interrupted")])
def test_what_happens_in_prefect_is_told_here(client: httpx.Client, state: Any, told: str) -> None:
    """A run that is cancelled on Prefect's page, or whose process is killed."""
    job_id, run = started(client, "validate")
    with get_client(sync_client=True) as api:
        api.set_flow_run_state(run.id, Running(), force=True)
        assert awaited(client, job_id, "running")["started_at"]
        api.set_flow_run_state(run.id, state, force=True)
    assert awaited(client, job_id, told)["ended_at"]


def test_the_next_server_finds_running_jobs_again(settings: ServerSettings) -> None:
    """They go on while no server is there: one ends meanwhile, one later, and none is called interrupted."""
    with served(settings) as client:
        first, second = started(client, "validate"), started(client, "backup")
        third, lost = started(client, "validate")
        with get_client(sync_client=True) as api:
            api.set_flow_run_state(second[1].id, Running(), force=True)
        awaited(client, second[0], "running")
        until("the link", lambda: job_of(client, third)["url"])
    assert execute(first[1]).is_completed()
    with get_client(sync_client=True) as api:
        api.delete_flow_run(lost.id)
    with served(settings) as client:
        assert len(awaited(client, first[0], "succeeded")["result"]) == 3
        assert awaited(client, third, "interrupted")["problem"]["detail"] == "its flow run was deleted"
        assert job_of(client, second[0])["state"] == "running"
        assert len(runs_of(second[0])) == 1
    with served(settings.model_copy(update={"runner": "threads"})) as client:
        assert job_of(client, second[0])["state"] == "interrupted"
        assert "runner prefect" in job_of(client, second[0])["problem"]["detail"]


def test_while_prefect_does_not_answer_jobs_wait(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost or done twice when it answers again, and the log says so once."""
    original, failures = job_runner._runs_of, []

    def away(*_: Any) -> Any:
        failures.append(1)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(job_runner, "_runs_of", away)
    job_id = client.post(JOBS, json={"operation": "validate", "names": "all"}).json()["job_id"]
    until("three failures", lambda: len(failures) >= 3)
    assert job_of(client, job_id)["state"] == "waiting"
    monkeypatch.setattr(job_runner, "_runs_of", original)
    run = until("the run", lambda: next(iter(runs_of(job_id)), None))
    assert execute(run).is_completed()
    awaited(client, job_id, "succeeded")


def test_what_a_server_needs(config: CheckpointConfig, tmp_path: Path, own_results: None) -> None:
    """Without a deployment, or with a store that workers would look for elsewhere, it does not start."""
    saved(config)
    settings = ServerSettings(config=config, jobs_folder=tmp_path / "jobs", runner="prefect")
    with pytest.raises(ConfigError, match="no deployment checkpoint_job/jobs"), served(settings):
        pass
    relative = settings.model_copy(update={"config": CheckpointConfig(checkpoint_dir="somewhere")})
    with pytest.raises(ConfigError, match="relative"), served(relative):
        pass
    with (
        pytest.raises(ConfigError, match="one of prefect, threads"),
        served(settings.model_copy(update={"runner": "other"})),
    ):
        pass
