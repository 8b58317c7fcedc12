"""The outcomes of a job as a table of its flow run, which the server that started it reads."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType

from ckpt_lib.web.job import JobUpdate, ending_of
from ckpt_lib.web.operations import Outcome
from ckpt_lib.web.problems import Problem
from prefect_checkpoints.tasks.report import report_task


@report_task("report the outcomes")
def report_outcomes(key: str, description: str, outcomes: list[Outcome]) -> None:
    """Publish one row for each checkpoint, with its result or problem as JSON."""
    _publish(key, description, [_row(item.checkpoint_id, item.result, item.problem) for item in outcomes])


@report_task("report the problem")
def report_problem(key: str, description: str, problem: Problem) -> None:
    """Publish why a job could not do anything, in a row without a checkpoint."""
    _publish(key, description, [_row(None, None, problem)])


def outcomes_of(client: SyncPrefectClient, flow_run_id: UUID) -> JobUpdate | None:
    """Return how a job ended by what its run has published; ``None`` if it has published nothing."""
    chosen = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]), type=ArtifactFilterType(any_=["table"])
    )
    found = client.read_artifacts(artifact_filter=chosen)
    if not found:
        return None
    rows = json.loads(str(found[0].data))
    outcomes = [_outcome(row) for row in rows]
    if outcomes and outcomes[0].problem is not None and not outcomes[0].checkpoint_id:
        return JobUpdate(state="failed", problem=outcomes[0].problem)
    return ending_of(outcomes)


def _publish(key: str, description: str, rows: list[dict[str, Any]]) -> None:
    create_table_artifact(table=rows, key=key, description=description)


def _row(checkpoint_id: str | None, result: Any, problem: Problem | None) -> dict[str, str]:
    # As JSON in a text: Prefect's page cannot show nested values, and changes numbers that are not finite.
    outcome = Outcome(checkpoint_id=checkpoint_id, result=result, problem=problem)
    return {
        "checkpoint": checkpoint_id or "",
        "problem": problem.detail if problem else "",
        "outcome": outcome.model_dump_json(exclude={"checkpoint_id"}),
    }


def _outcome(row: dict[str, str]) -> Outcome:
    return Outcome(checkpoint_id=row["checkpoint"], **json.loads(row["outcome"]))
