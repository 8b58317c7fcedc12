"""The retention plan: what a cleanup would delete, why, and what that frees. Nothing is changed."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.policies.retention import Decision, RetentionPlan
from ckpt_lib.web.access import Reader
from ckpt_lib.web.hints import in_words_of_the_api
from ckpt_lib.web.problems import refusals
from ckpt_lib.web.reading import NO_EXPERIMENT, ExperimentName, manager_of
from ckpt_lib.web.rules import MAX_CHECKPOINTS, MaxCheckpoints, rules_of

router = APIRouter(tags=["read"])
MOST_PREVIEWS = 8
"""Each reads payloads for a while, on one of the 40 threads that answer requests."""
_REFUSALS = NO_EXPERIMENT | refusals(
    {429: "Too many plans are being made, or requests were sent; `Retry-After` says when to try again."}
)


class PlannedCleanup(BaseModel):
    """The decision about each checkpoint or backup, newest first, and what comes of it."""

    decisions: tuple[Decision, ...]
    deleted_ids: tuple[str, ...]
    thinned_ids: tuple[str, ...]
    freed_bytes: int = Field(description="The bytes of what is deleted.")
    warning: str | None

    @classmethod
    def of(cls, plan: RetentionPlan, experiment: str) -> Self:
        """Return the plan for an experiment as clients see it."""
        warning = plan.warning and in_words_of_the_api(plan.warning, experiment)
        return cls(
            decisions=plan.decisions,
            deleted_ids=plan.deleted_ids,
            thinned_ids=plan.thinned_ids,
            freed_bytes=plan.freed_bytes,
            warning=warning,
        )


class RetentionPreview(PlannedCleanup):
    """A retention plan. The job ``cleanup`` with its fingerprint deletes what is shown here, and nothing else."""

    fingerprint: str
    trash_seconds: float = Field(description="How long what is deleted can be brought back.")
    backups: PlannedCleanup | None = Field(description="The backups, if max_backups is configured. They go for good.")
    backups_failed: bool = Field(description="There is no plan for the backups, though there should be one.")


@router.get("/experiments/{experiment}/retention", responses=_REFUSALS)
def preview_cleanup(
    request: Request,
    who: Reader,
    experiment: ExperimentName,
    max_checkpoints: Annotated[MaxCheckpoints, Query(description=MAX_CHECKPOINTS)] = None,
    policy: Annotated[str | None, Query(max_length=10_000, description="A retention policy as JSON.")] = None,
) -> RetentionPreview:
    """Show what a cleanup would delete, why, and what that frees; by default, by the policy of the configuration.

    The newest and the best checkpoint are read and verified. The job reads all that stay before it deletes anything.
    """
    manager = manager_of(request, experiment)
    rules = rules_of(manager, max_checkpoints, policy)
    give_back = request.app.state.previews.take(who)
    try:  # on a worker thread, as all operations here that are no coroutines
        report = manager.cleanup_checkpoints(policy=rules, dry_run=True, verify=False)
    finally:
        give_back()
    return _preview(report, manager)


def _preview(report: CleanupReport, manager: CheckpointManager) -> RetentionPreview:
    of = partial(PlannedCleanup.of, experiment=manager.experiment_name)
    return RetentionPreview(
        **dict(of(report.plan)),
        fingerprint=report.fingerprint,
        trash_seconds=manager.config.trash_seconds,
        backups=of(report.backups.plan) if report.backups else None,
        backups_failed=report.backups_error is not None,
    )
