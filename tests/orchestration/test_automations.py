"""Evaluation on save: an event starts a run in another process, which adds metrics once, whatever happens to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.events.schemas.automations import EventTrigger
from prefect.events.schemas.events import Resource, ResourceSpecification
from prefect.settings import PREFECT_API_URL, temporary_settings
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError
from ckpt_lib.events import Event
from deployments.serve import PROJECT
from prefect_checkpoints.flows import Gate, evaluate_checkpoint
from prefect_checkpoints.flows.automations import install_evaluation
from prefect_checkpoints.tasks._events import resource_of
from tests.orchestration import evaluators, saving_run, serving_evaluation
from tests.orchestration.runs import is_running
from tests.orchestration.test_deployments import Api, finished, process, wait_for

FUNCTION, SOURCE = f"{evaluators.__name__}:accuracy_by_epoch", "eval/test"


class Evaluation:
    """An experiment on a server whose checkpoints are evaluated when they are saved."""

    def __init__(self, api: Api, environment: dict[str, str], folder: Path, name: str) -> None:
        self.api, self.environment, self.name = api, environment, name
        self.config = CheckpointConfig(checkpoint_dir=str(folder / "store"))
        self.log, self.gate_open, self._serve_log = folder / "evaluations", folder / "go on", folder / "serve.log"

    def serve(self) -> Any:
        """A process that runs what the automation starts."""
        return process([serving_evaluation.__name__], self.environment, self._serve_log)

    def is_served(self) -> bool:
        """Whether the deployment is there, and polled for."""
        return "is being served" in self._serve_log.read_text()

    def install(self, **options: Any) -> UUID:
        """Install the automation."""
        arguments = {"log": str(self.log), **options}
        gate = Gate(where=("accuracy>0.9",))
        return install_evaluation(
            self.config, self.name, function=FUNCTION, source=SOURCE, arguments=arguments, gate=gate
        )

    def save(self, epoch: int, config: CheckpointConfig | None = None) -> str:
        """Save a checkpoint in a process of its own, in the experiment's store or another one; return its id."""
        config = config or self.config
        command = [sys.executable, "-m", saving_run.__name__, config.checkpoint_dir, self.name, str(epoch)]
        subprocess.run(command, cwd=PROJECT, env=self.environment, check=True, timeout=120, capture_output=True)
        latest = CheckpointManager(config, self.name).get_latest_checkpoint()
        assert latest is not None
        return latest.checkpoint_id

    def runs(self) -> list[dict[str, Any]]:
        """The runs that evaluate this experiment, oldest first."""
        found = self.api.runs_of(self.api.deployments()["evaluate"])
        mine = [run for run in found if run["parameters"]["experiment_name"] == self.name]
        return sorted(mine, key=lambda run: str(run["created"]))

    def wait_for_runs(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many runs were made; return them."""
        found: list[dict[str, Any]] = wait_for(
            f"{count} runs", lambda: found if len(found := self.runs()) >= count else None
        )
        return found

    def evaluated(self) -> list[str]:
        """The id of each checkpoint that the function was called with."""
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def events(self, kind: str, count: int) -> list[str]:
        """The checkpoints that events of a kind tell of, once there are so many, and all that came before were written.

        The server writes some at a time, in their order; what is sent last of all shows that the others were written.
        """
        last = f"checkpoint-{uuid4()}"
        self._send("marker", last)
        wait_for("the events to be written", lambda: last in self._events("marker"))
        found: list[str] = wait_for(
            f"{count} events {kind}", lambda: found if len(found := self._events(kind)) >= count else None
        )
        return found

    def _events(self, kind: str) -> list[str]:
        wanted = {
            "event": {"name": [f"prefect-checkpoints.checkpoint.{kind}"]},
            "resource": {"id": [f"prefect-checkpoints.experiment.{self.name}"]},
            "order": "ASC",
        }
        return [
            item["payload"]["checkpoint_id"] for item in self.api.post("/events/filter", {"filter": wanted})["events"]
        ]

    def repeat_event(self, checkpoint_id: str) -> None:
        """Tell of a save once more, as a process does whose answer was lost."""
        self._send("saved", checkpoint_id)

    def _send(self, kind: str, checkpoint_id: str) -> None:
        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": f"prefect-checkpoints.checkpoint.{kind}",
            "resource": {
                "prefect.resource.id": f"prefect-checkpoints.experiment.{self.name}",
                "prefect-checkpoints.store": self.config.checkpoint_dir,
            },
            "payload": {"checkpoint_id": checkpoint_id},
        }
        with httpx.Client(base_url=self.environment["PREFECT_API_URL"]) as client:
            client.post("/events", json=[event]).raise_for_status()


@contextmanager
def using(environment: dict[str, str]) -> Iterator[None]:
    """Let this process use the server of ``environment``."""
    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        yield


@pytest.fixture
def evaluation(
    server_environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Evaluation]:
    """An experiment of the test's own, on the server of this project."""
    environment = {**server_environment, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=60) as client, using(environment):
        yield Evaluation(Api(client), environment, tmp_path, re.sub(r"\W", "-", request.node.name))


@pytest.mark.servers
def test_a_save_is_evaluated_once_by_another_process(evaluation: Evaluation) -> None:
    """The best changes by what was measured; the event that comes twice changes not a byte."""
    with evaluation.serve():
        wait_for("the deployment", evaluation.is_served)
        assert evaluation.install() == evaluation.install()
        manager = CheckpointManager(evaluation.config, evaluation.name)
        evaluation.save(1, CheckpointConfig(checkpoint_dir=f"{evaluation.config.checkpoint_dir}-2"))  # starts nothing
        first = evaluation.save(epoch=1)
        (run,) = evaluation.wait_for_runs(1)
        assert finished(evaluation.api, run["id"])["parameters"]["checkpoint_id"] == first
        assert manager.get_checkpoint("best").checkpoint_id == first
        second = evaluation.save(epoch=2)
        finished(evaluation.api, evaluation.wait_for_runs(2)[-1]["id"])
        best = manager.get_checkpoint("best")
        assert (best.checkpoint_id, best.metrics, best.tags) == (second, {"accuracy": 1.0}, ("promoted",))
        assert [(item.name, item.value, item.source) for item in best.added_metrics] == [("accuracy", 1.0, SOURCE)]
        assert "promoted" not in manager.get_checkpoint(first).tags
        manifest = Path(evaluation.config.checkpoint_dir, evaluation.name, f"{second}.json")
        before = manifest.read_bytes()
        evaluation.repeat_event(second)
        finished(evaluation.api, evaluation.wait_for_runs(3)[-1]["id"])
        assert manifest.read_bytes() == before
    assert evaluation.evaluated() == [first, second]
    for kind in ("metrics_added", "best_changed"):
        assert evaluation.events(kind, 2) == [first, second], kind


@pytest.mark.servers
def test_an_evaluation_that_was_killed_is_started_again(evaluation: Evaluation) -> None:
    """With the process that serves: nothing was recorded, and the next run of the same parameters records it once."""
    with evaluation.serve() as server:
        wait_for("the deployment", evaluation.is_served)
        evaluation.install(wait=str(evaluation.gate_open))
        saved = evaluation.save(epoch=2)
        wait_for("the evaluation to begin", evaluation.evaluated)
        pid = int(evaluation.log.read_text().split()[1])
        for number in (server.pid, pid):
            os.kill(number, signal.SIGKILL)
        server.wait(timeout=60)
        wait_for("the process to be gone", lambda: not is_running(pid))
    manager = CheckpointManager(evaluation.config, evaluation.name)
    assert not manager.get_checkpoint(saved).added_metrics
    (killed,) = evaluation.runs()
    with evaluation.serve():
        wait_for("the deployment", evaluation.is_served)
        again = evaluation.api.start(evaluation.api.deployments()["evaluate"], killed["parameters"])
        finished(evaluation.api, again)
    found = manager.get_checkpoint("promoted")
    assert (found.checkpoint_id, found.is_best) == (saved, True)
    assert [(item.value, item.source) for item in found.added_metrics] == [(1.0, SOURCE)]
    assert evaluation.evaluated() == [saved, saved]
    for kind in ("saved", "metrics_added", "best_changed"):
        assert evaluation.events(kind, 1) == [saved], kind


@pytest.mark.servers
def test_what_a_killed_evaluation_did_not_tell_is_told(evaluation: Evaluation) -> None:
    """Its metrics are recorded, and its process is killed before it tells of the best: another run does, once."""
    with evaluation.serve():
        wait_for("the deployment", evaluation.is_served)
        evaluation.install(die_at="checkpoint.metrics_added")
        saved = evaluation.save(epoch=2)
        wait_for("the evaluation to begin", evaluation.evaluated)
        pid = int(evaluation.log.read_text().split()[1])
        wait_for("the process to be gone", lambda: not is_running(pid))
        manager = CheckpointManager(evaluation.config, evaluation.name)
        assert [item.value for item in manager.get_checkpoint(saved).added_metrics] == [1.0]
        (killed,) = evaluation.runs()
        for _ in range(2):
            run_id = evaluation.api.start(evaluation.api.deployments()["evaluate"], killed["parameters"])
            finished(evaluation.api, run_id)
    assert manager.get_checkpoint("promoted").checkpoint_id == saved
    assert evaluation.evaluated() == [saved]
    for kind in ("metrics_added", "best_changed"):
        assert evaluation.events(kind, 1) == [saved], kind


@pytest.fixture
def deployment_id(own_results: None) -> Iterator[UUID]:
    """The deployment that an automation runs, on Prefect's test server."""
    found = RunnerDeployment.from_flow(evaluate_checkpoint, name="evaluate").apply()
    assert isinstance(found, UUID)
    yield found
    with get_client(sync_client=True) as client:
        client.delete_deployment(found)


def test_installing_twice_changes_the_one_automation(config: CheckpointConfig, deployment_id: UUID) -> None:
    """One for each store, experiment and source; a text with braces reaches the flow as it is."""
    options: dict[str, Any] = {"function": FUNCTION, "source": SOURCE}
    with get_client(sync_client=True) as client:
        earlier = {item.id for item in client.read_automations()}  # of other tests
    first = install_evaluation(config, "run", **options)
    again = install_evaluation(config, "run", **options, arguments={"log": "{{ x }}"}, gate=Gate(where=("a>1",)))
    others = {
        install_evaluation(config, "run", function=FUNCTION, source="eval/other"),
        install_evaluation(config, "other", **options),
        install_evaluation(CheckpointConfig(checkpoint_dir=f"{config.checkpoint_dir}-2"), "run", **options),
    }
    assert first == again
    with get_client(sync_client=True) as client:
        found = {item.id: item for item in client.read_automations() if item.id not in earlier}
        for automation_id in found:
            client.delete_automation(automation_id)
    assert found.keys() == {first, *others}
    (action,) = found[first].actions
    assert action.deployment_id == deployment_id  # type: ignore[union-attr]
    assert action.parameters["arguments"] == {"__prefect_kind": "json", "value": '{"log": "{{ x }}"}'}  # type: ignore[union-attr, index]


def test_equal_names_in_two_stores_do_not_meet(config: CheckpointConfig, deployment_id: UUID) -> None:
    """The trigger takes the events of its own store: the id of another store's checkpoint would not be found here."""
    other = CheckpointConfig(checkpoint_dir=f"{config.checkpoint_dir}-2")
    told: list[Event] = []
    for store in (config, other):
        manager = CheckpointManager(store, "run")
        manager.on_event(told.append)
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=1)
    automation_id = install_evaluation(config, "run", function=FUNCTION, source=SOURCE)
    with get_client(sync_client=True) as client:
        (automation,) = (item for item in client.read_automations() if item.id == automation_id)
        client.delete_automation(automation_id)
    trigger = automation.trigger
    assert isinstance(trigger, EventTrigger)
    assert isinstance(trigger.match, ResourceSpecification)
    resources = [Resource(resource_of(event)) for event in told if event.kind == "checkpoint.saved"]
    assert [trigger.match.matches(resource) for resource in resources] == [True, False]


def test_what_cannot_be_installed_is_refused(config: CheckpointConfig, own_results: None) -> None:
    """A deployment that is not there, a name of none, and a store that a worker would not find."""
    options: dict[str, Any] = {"function": FUNCTION, "source": SOURCE}
    for name in ("evaluate_checkpoint/none", "none"):
        with pytest.raises(ConfigError, match="prefect deploy"):
            install_evaluation(config, "run", **options, deployment=name)
    with pytest.raises(ConfigError, match="checkpoint_dir is relative"):
        install_evaluation(CheckpointConfig(), "run", **options)
