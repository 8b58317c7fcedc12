"""Events that reach Prefect: one per happening, with the experiment as resource, and none outside of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow, get_client

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StoreUnavailableError
from prefect_checkpoints import tasks
from tests.orchestration.runs import SECONDS_TO_WAIT, ByReference, flip_a_byte, in_flow, saved

pytestmark = pytest.mark.usefixtures("own_results")


def prefect_events(experiment: str, until: str) -> list[dict[str, Any]]:
    """The events of an experiment that the server has heard of, once one of the kind ``until`` is among them."""
    resource = {"id": [f"prefect-checkpoints.experiment.{experiment}"]}
    wanted = {"filter": {"event": {"prefix": ["prefect-checkpoints."]}, "resource": resource, "order": "ASC"}}
    deadline = time.monotonic() + SECONDS_TO_WAIT
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = client._client.post("/events/filter", json=wanted).json()["events"]
            if any(event["event"] == f"prefect-checkpoints.{until}" for event in found):
                return found
            time.sleep(0.1)
    raise AssertionError(f"the server has not heard of {until}")


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"].partition(".")[2] for event in events]


def test_events_reach_prefect(degraded: CheckpointConfig) -> None:
    """With the experiment as resource and the run beside it, so that an automation can react."""
    name = "telling"
    in_flow(lambda: tasks.save_checkpoint(degraded, name, model=ByReference(), epoch=1, return_state=True)).result()
    found = prefect_events(name, until="checkpoint.stranded")
    assert kinds_of(found) == ["save.degraded", "checkpoint.stranded"]
    assert found[0]["payload"]["details"]["error"] == "StoreError"
    assert found[1]["resource"]["prefect.resource.id"] == f"prefect-checkpoints.experiment.{name}"
    assert found[1]["resource"]["prefect-checkpoints.store"] == degraded.checkpoint_dir
    related = {item["prefect.resource.role"] for item in found[1]["related"]}
    assert {"flow-run", "task-run"} <= related


def test_a_retried_run_tells_prefect_once(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event per checkpoint and kind, though the task and the flow are tried again; its metadata goes with it."""
    name = "retried"
    failures = iter([StoreUnavailableError("the store did not answer")])
    real = CheckpointManager.save_checkpoint

    def answer_lost(self: CheckpointManager, *objects: Any, **arguments: Any) -> str | None:
        saved = real(self, *objects, **arguments)
        if error := next(failures, None):
            raise error
        return saved

    monkeypatch.setattr(CheckpointManager, "save_checkpoint", answer_lost)
    quick = tasks.save_checkpoint.with_options(retry_delay_seconds=0)
    attempts: list[str | None] = []

    @flow(retries=1)
    def training() -> None:
        torch.manual_seed(0)
        attempts.append(quick(config, name, model=ByReference(), epoch=1, metrics={"val_loss": 1.0}))
        attempts.append(quick(config, name, model=ByReference(), epoch=2))
        if len(attempts) == 2:
            raise RuntimeError("the machine went away")
        tasks.validate_checkpoint(config, name)
        CheckpointManager(config, name).delete_checkpoint("latest")

    training()
    first, second = attempts[:2]
    assert attempts[2:] == [first, second]
    found = prefect_events(name, until="checkpoint.deleted")
    assert [(kind, event["payload"]["checkpoint_id"]) for kind, event in zip(kinds_of(found), found, strict=True)] == [
        ("checkpoint.saved", first),
        ("checkpoint.best_changed", first),
        ("checkpoint.backed_up", first),
        ("checkpoint.saved", second),
        ("checkpoint.backed_up", second),
        ("checkpoint.deleted", second),
    ]
    assert found[0]["payload"]["checkpoint"]["metrics"] == {"val_loss": 1.0}


def test_prefect_hears_of_a_verdict_that_changes(config: CheckpointConfig) -> None:
    """Damage once in a run, however often it is found, and that it is gone; intact ones are no news."""
    name = "verdicts"
    (checkpoint_id, _) = saved(config, name, losses=(1.0, 0.5))
    path = Path(config.checkpoint_dir) / name / f"{checkpoint_id}.pt"

    @flow
    def night() -> None:
        tasks.validate_checkpoint(config, name, checkpoint_id)
        flip_a_byte(path)
        for _ in range(2):
            tasks.scrub_checkpoints(config, name, restart=True)
            tasks.validate_checkpoint(config, name, checkpoint_id)
        tasks.repair_checkpoint(config, name, checkpoint_id)
        tasks.scrub_checkpoints(config, name, restart=True)

    night()
    found = prefect_events(name, until="checkpoint.validated")
    assert kinds_of(found) == ["checkpoint.corrupted", "checkpoint.repaired", "checkpoint.validated"]
    assert {event["payload"]["checkpoint_id"] for event in found} == {checkpoint_id}


def test_outside_of_a_run_prefect_hears_nothing(degraded: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager that is used by itself asks no server for anything."""
    monkeypatch.setattr("prefect_checkpoints.tasks._events.emit_event", lambda **_: pytest.fail("an event"))
    saved(degraded, losses=(1.0,))
