"""Deployments: sent to a work pool and run by a worker, or served from this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ckpt_lib import CheckpointConfig, CheckpointManager
from deployments.serve import PROJECT
from tests.helpers import build
from tests.orchestration.runs import is_running

pytestmark = pytest.mark.servers
SECONDS_TO_WAIT = 300.0  # reached only when something is wrong
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Api:
    """The few calls of the server's REST API that these tests make."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def post(self, path: str, content: Any = None) -> Any:
        # The server answers 503 while its SQLite database is busy; Prefect's own client asks again, too.
        response = wait_for("the server", lambda: _unless_busy(self._client.post(path, json=content or {})))
        response.raise_for_status()
        return response.json()

    def deployments(self) -> dict[str, dict[str, Any]]:
        return {item["name"]: item for item in self.post("/deployments/filter")}

    def start(self, deployment: dict[str, Any], parameters: dict[str, Any]) -> str:
        run = self.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self._client.get(f"/flow_runs/{run_id}").json()
        return run

    def states(self, run_id: str) -> list[dict[str, Any]]:
        """The states that a run has had."""
        found: list[dict[str, Any]] = self._client.get(f"/flow_run_states/?flow_run_id={run_id}").json()
        return found

    def runs_of(self, deployment: dict[str, Any]) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = self.post(
            "/flow_runs/filter", {"deployments": {"id": {"any_": [deployment["id"]]}}}
        )
        return runs

    def places_taken(self, deployment_id: str) -> int:
        """How many runs count under the deployment's limit."""
        limits = {item["name"]: item for item in self.post("/v2/concurrency_limits/filter")}
        return int(limits[f"deployment:{deployment_id}"]["active_slots"])

    def artifact_keys(self, run_id: str) -> set[str]:
        found = self.post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
        return {artifact["key"].rpartition("-")[0] for artifact in found if artifact["key"]}  # results have none


def _unless_busy(response: httpx.Response) -> httpx.Response | None:
    return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response


@pytest.fixture
def api(server_environment: dict[str, str]) -> Iterator[Api]:
    with httpx.Client(base_url=server_environment["PREFECT_API_URL"], timeout=SECONDS_TO_WAIT) as client:
        yield Api(client)


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.5)
    raise AssertionError(f"waited {SECONDS_TO_WAIT:.0f} s for {what}")


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child of this test's own, ended as Ctrl-C would."""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield child
        finally:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def prefect(*arguments: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def finished(api: Api, run_id: str) -> dict[str, Any]:
    """Wait until the run has ended, and insist that it ended well."""
    run = ended(api, run_id)
    assert run["state_type"] == "COMPLETED", run["state"]
    return run


def failed(api: Api, run_id: str) -> str:
    """Wait until the run has ended, and insist that it failed; return the message of its state."""
    run = ended(api, run_id)
    assert run["state_type"] == "FAILED", run["state"]
    return str(run["state"]["message"])


def ended(api: Api, run_id: str) -> dict[str, Any]:
    """Wait until the run has ended."""

    def found() -> dict[str, Any] | None:
        run = api.run(run_id)
        return run if run["state_type"] in ENDED else None

    run: dict[str, Any] = wait_for("the run to end", found)
    return run


def with_store(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment from which ``prefect.yaml`` takes its store."""
    folders = {"CKPT_CHECKPOINT_DIR": str(folder / "store"), "CKPT_EXPORT_DIR": str(folder / "exports")}
    return {**environment, **folders}


def store_with_checkpoints(path: Path) -> None:
    """Make a small store."""
    config = CheckpointConfig(checkpoint_dir=str(path))
    for epoch in (1, 2):
        parts = build()
        CheckpointManager(config, "digits").save_checkpoint(model=parts.model, epoch=epoch, metrics={"val_loss": 1.0})


def test_deployed_flows_run_on_a_worker(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """`prefect deploy --all` registers every deployment, and a process worker trains by one of them."""
    environment = with_store(server_environment, tmp_path)
    prefect("work-pool", "create", "checkpoints", "--type", "process", environment=environment)
    prefect("deploy", "--all", environment=environment)
    declared = yaml.safe_load((PROJECT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    deployed = api.deployments()
    assert deployed.keys() >= {item["name"] for item in declared}
    assert deployed["nightly"]["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    assert deployed["nightly"]["parameters"]["config"]["checkpoint_dir"] == str(tmp_path / "store")
    run_id = api.start(deployed["digits"], {"training": {"epochs": 2, "channels": 4}})
    relative = api.start(deployed["nightly"], {"config": {"checkpoint_dir": "checkpoints"}})
    missing = api.start(deployed["hourly"], {"config": {"checkpoint_dir": str(tmp_path / "unmounted")}})
    worker = ["prefect", "worker", "start", "--pool", "checkpoints", "--type", "process", "--limit", "1"]
    with process(worker, environment, tmp_path / "worker.log"):
        finished(api, run_id)
        assert "checkpoint_dir is relative" in failed(api, relative)
        assert "no checkpoints are stored here" in failed(api, missing)
    store = CheckpointConfig(checkpoint_dir=str(tmp_path / "store"))
    assert len(CheckpointManager(store, "digits").list_checkpoints()) == 2
    assert api.artifact_keys(run_id) == {"training-digits", "checkpoints-digits", "metrics-digits"}


def test_served_flows_run_and_schedules_fire(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """Served, every flow started from the page completes, a schedule fires by itself, and Ctrl-C ends it all."""
    store_with_checkpoints(tmp_path / "store")
    parameters: dict[str, dict[str, Any]] = {
        "digits": {"training": {"epochs": 3, "channels": 4}, "experiment_name": "served"},
        "on-demand": {},
        "nightly": {},
        "hourly": {},
    }
    environment = with_store(server_environment, tmp_path)
    with process(["deployments.serve"], environment, tmp_path / "serve.log") as server:
        wait_for("the deployments", lambda: "cleanup_store/hourly" in (tmp_path / "serve.log").read_text())
        deployed = wait_for("them to be registered", lambda: _all_ready(api, set(parameters)))
        runs = {name: api.start(deployed[name], own) for name, own in parameters.items()}
        for name, run_id in runs.items():
            finished(api, run_id)
            assert api.artifact_keys(run_id), name
        before = {run["id"] for run in api.runs_of(deployed["hourly"])}
        # Once a minute: runs that begin faster than they end would leave the server no time to answer.
        soon = (datetime.now(UTC) + timedelta(seconds=15)).isoformat()
        schedule = {"active": True, "schedule": {"interval": 60, "anchor_date": soon}}
        api.post(f"/deployments/{deployed['hourly']['id']}/schedules", [schedule])
        wait_for(
            "the schedule to fire",
            lambda: any(
                run["auto_scheduled"] and run["state_type"] == "COMPLETED" and run["id"] not in before
                for run in api.runs_of(deployed["hourly"])
            ),
        )
        served = (tmp_path / "serve.log").read_text()
        os.kill(server.pid, signal.SIGINT)
        assert server.wait(timeout=60) == 0
    assert (tmp_path / "exports").is_dir()
    # Only what the interrupt printed: a busy server may answer a completed run's last report so late that Prefect
    # sends it again, is told that the run has ended, and prints a traceback for the result it then lacks.
    ending = (tmp_path / "serve.log").read_text().removeprefix(served)
    assert ending.endswith("\nStopped.\n")
    assert "Traceback" not in ending


@contextmanager
def training_under_way(
    environment: dict[str, str], api: Api, log: Path
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """Serve, and start a training that would take for ever; yields the server and the run, which is at work."""
    with process(["deployments.serve"], environment, log) as server:
        wait_for("the worker", lambda: "started!" in log.read_text())
        run_id = api.start(api.deployments()["digits"], {"training": {"epochs": 100_000, "channels": 4}})
        wait_for("the run to begin", lambda: api.run(run_id)["state_type"] == "RUNNING")
        wait_for("its process to be known", lambda: api.run(run_id)["infrastructure_pid"])
        yield server, api.run(run_id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_runs_under_way_end_with_the_server(
    server_environment: dict[str, str], api: Api, tmp_path: Path, number: signal.Signals
) -> None:
    """Stopped while a run is under way, serving ends with a cancelled run, whose process and place are gone."""
    environment = with_store(server_environment, tmp_path)
    with training_under_way(environment, api, tmp_path / "serve.log") as (server, run):
        server.send_signal(number)
        assert server.wait(timeout=60) == 0
    assert api.run(run["id"])["state_type"] == "CANCELLED"
    assert not is_running(int(run["infrastructure_pid"]))
    assert api.places_taken(run["deployment_id"]) == 0


def test_runs_that_died_are_marked(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """What was killed with its worker is marked as crashed when serving begins again, and the next run may run."""
    environment = with_store(server_environment, tmp_path)
    with training_under_way(environment, api, tmp_path / "killed.log") as (server, run):
        worker = worker_of(server.pid)
        for pid in (server.pid, worker, int(run["infrastructure_pid"])):
            os.kill(pid, signal.SIGKILL)
        server.wait(timeout=60)
    assert api.run(run["id"])["state_type"] == "RUNNING"
    assert api.places_taken(run["deployment_id"]) == 1
    with process(["deployments.serve"], environment, tmp_path / "serve.log"):
        wait_for("the worker", lambda: "started!" in (tmp_path / "serve.log").read_text())
        assert api.run(run["id"])["state_type"] == "CRASHED"
        finished(api, api.start(api.deployments()["digits"], {"training": {"epochs": 1, "channels": 4}}))


def test_places_of_dead_runs_outlive_the_server(server_environment: dict[str, str], api: Api, tmp_path: Path) -> None:
    """The next server finds on disk until when a run holds its place, and frees it then."""
    environment = with_store(server_environment, tmp_path)
    with training_under_way(environment, api, tmp_path / "serve.log") as (_, run):
        lease = run["state"]["state_details"]["deployment_concurrency_lease_id"]
        assert (Path(environment["PREFECT_HOME"]) / "concurrency_leases" / f"{lease}.json").exists()


def worker_of(pid: int) -> int:
    """The only child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _all_ready(api: Api, names: set[str]) -> dict[str, dict[str, Any]] | None:
    found = api.deployments()
    ready = {name for name in names & found.keys() if found[name]["status"] == "READY"}
    return found if ready == names else None
