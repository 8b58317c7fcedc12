"""Prefect automations that start flows of this package when something happens to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from ckpt_lib import CheckpointConfig
from ckpt_lib.core.metadata import check_source
from ckpt_lib.core.names import check_experiment_name
from ckpt_lib.errors import ConfigError
from prefect_checkpoints.flows._store import refuse_relative
from prefect_checkpoints.flows.evaluate import Gate
from prefect_checkpoints.tasks._events import STORE_LABEL
from prefect_checkpoints.tasks._preempted import PREEMPTED
from prefect_checkpoints.tasks.report import artifact_key, store_of

_INSTALL_ATTEMPTS = 5

ARRIVALS = {"prefect-checkpoints.checkpoint.saved", "prefect-checkpoints.checkpoint.reconciled"}
"""The events that tell of a new checkpoint in the store."""


def install_evaluation(
    config: CheckpointConfig,
    experiment_name: str,
    *,
    function: str,
    source: str,
    arguments: Mapping[str, Any] | None = None,
    gate: Gate | None = None,
    deployment: str = "evaluate_checkpoint/evaluate",
) -> UUID:
    """Evaluate each checkpoint of an experiment when it has been saved; return the id of the Prefect automation.

    The automation runs a deployment of ``evaluate_checkpoint`` with the id of the checkpoint and these parameters,
    when a flow of the experiment tells of a save, or of a checkpoint that came home from the fallback folder. The flow
    must name the store by the same path or URL. There is one automation for each store, experiment and source: calling
    this again changes it. Killed on the way, call it again.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a deployment that does not exist and for a relative folder.
    """
    check_experiment_name(experiment_name)
    refuse_relative(config)
    parameters = {
        "function": function,
        "source": check_source(source),
        "experiment_name": experiment_name,
        "config": config.model_dump(mode="json", exclude_unset=True),
        "arguments": dict(arguments or {}),
        "gate": gate.model_dump(mode="json") if gate else None,
    }
    name = artifact_key(f"evaluate-{source}", config, experiment_name)
    description = f"Evaluates new checkpoints of {experiment_name} in {store_of(config)} by {function}."
    with get_client(sync_client=True) as client:
        action = RunDeployment(
            source="selected",
            deployment_id=_deployment_named(client, deployment).id,
            job_variables=None,
            parameters={**{key: _as_json(value) for key, value in parameters.items()}, "checkpoint_id": _CHECKPOINT_ID},
        )
        automation = AutomationCore(
            name=name,
            description=description,
            enabled=True,
            trigger=_arrivals_of(config, experiment_name),
            actions=[action],
            actions_on_trigger=[],
            actions_on_resolve=[],
            tags=["checkpoints"],
        )
        return _install(client, automation)


def install_rescheduling(deployment: str) -> UUID:
    """Put each run of a deployment back when SIGTERM has ended it; return the id of the Prefect automation.

    It is the same run that goes on, as soon as a worker of the deployment's pool takes it, so a training with
    ``checkpointing`` or ``launch`` resumes. A run that failed, crashed or was cancelled stays as it is. There is one
    automation for each deployment: calling this again changes nothing. Killed on the way, call it again.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a deployment that does not exist.
    """
    with get_client(sync_client=True) as client:
        found = _deployment_named(client, deployment)
        trigger = EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(
                {"prefect.resource.id": f"prefect.deployment.{found.id}", "prefect.resource.role": "deployment"}
            ),
            expect={f"prefect.flow-run.{PREEMPTED}"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        )
        message = "SIGTERM ended the run: a worker may take it again."
        action = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=message, force=False)
        automation = AutomationCore(
            name=f"reschedule-{found.id}",
            description=f"Puts runs of {deployment} back that SIGTERM has ended.",
            enabled=True,
            trigger=trigger,
            actions=[action],
            actions_on_trigger=[],
            actions_on_resolve=[],
            tags=["checkpoints"],
        )
        return _install(client, automation)


_CHECKPOINT_ID = {"__prefect_kind": "jinja", "template": "{{ event.payload.checkpoint_id }}"}


def _as_json(value: Any) -> dict[str, str]:
    """Return a parameter that the server passes on as it is: it would take braces in a text for a template."""
    return {"__prefect_kind": "json", "value": json.dumps(value)}


def _arrivals_of(config: CheckpointConfig, experiment_name: str) -> EventTrigger:
    """Return the trigger for the experiment of that store: another store may have one of the same name."""
    return EventTrigger(
        match=ResourceSpecification(
            {
                "prefect.resource.id": f"prefect-checkpoints.experiment.{experiment_name}",
                STORE_LABEL: store_of(config),
            }
        ),
        expect=ARRIVALS,
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )


def _deployment_named(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    try:
        return client.read_deployment_by_name(name)
    except (ObjectNotFound, ValueError) as error:
        raise ConfigError(
            f"there is no deployment {name!r} on the Prefect server",
            expected="<flow>/<name>",
            hint="Deploy it first: `prefect deploy --all`, or the flow's .serve(name=...).",
        ) from error


def _install(client: SyncPrefectClient, automation: AutomationCore) -> UUID:
    """Create or change the automation of that name. Two callers at once leave one, since both keep the same.

    One that another caller has deleted meanwhile, in favour of its own, is looked for again.
    """
    for _ in range(_INSTALL_ATTEMPTS):
        found = client.read_automations_by_name(automation.name)
        if not found:
            client.create_automation(automation)
            continue
        first, *others = sorted(found, key=lambda item: item.id)
        try:
            client.update_automation(first.id, automation)
        except HTTPStatusError as error:
            if error.response.status_code != HTTPStatus.NOT_FOUND:
                raise
            continue
        for other in others:
            client.delete_automation(other.id)
        return first.id
    raise ConfigError(f"the automation {automation.name!r} changes all the time", hint="Install it once.")
