"""Operations that take long: each is a job, whose progress can be read, and which can be cancelled."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response, status
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel, ConfigDict, Field

from ckpt_lib.core.wording import shown
from ckpt_lib.errors import ConfigError
from ckpt_lib.index.places import microseconds_of
from ckpt_lib.web.access import Reader, Writer, authorize, bearer
from ckpt_lib.web.idempotency import IdempotencyKey, key_in
from ckpt_lib.web.job import Job, JobSummary
from ckpt_lib.web.jobs import Jobs
from ckpt_lib.web.operations import AnyWork
from ckpt_lib.web.problems import refusals
from ckpt_lib.web.reading import ExperimentName, Page

router = APIRouter()
_STARTS = refusals(
    {
        404: "There is no such experiment, checkpoint or upload.",
        409: "The record of a checkpoint is damaged, or an upload is not complete.",
        413: "The body is larger than 1 MiB.",
        422: "The request is not as described here, or its `Idempotency-Key` belongs to another request.",
        429: "Too many jobs wait, or the token has sent too many requests; `Retry-After` says when to try again.",
        507: "The store is full.",
    }
)
_NO_JOB = refusals({404: "There is no such job, or it was forgotten."})
JobId = Annotated[str, Path(description="The id of a job.", max_length=100)]


class PageOfJobs(BaseModel):
    """A page of the list of jobs."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=50, ge=1, le=500, description="The most items of a page.")
    after: str | None = Field(default=None, max_length=100, description="The ``next`` of the page before.")


def jobs_of(request: Request) -> Jobs:
    """Return the jobs of the server."""
    jobs: Jobs = request.app.state.jobs
    return jobs


@router.post(
    "/experiments/{experiment}/jobs",
    status_code=status.HTTP_202_ACCEPTED,
    tags=["read", "write"],
    responses=_STARTS,
)
def start_job(
    request: Request,
    response: Response,
    *,
    _: Reader,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    experiment: ExperimentName,
    work: AnyWork,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Start long work. To validate and export needs the scope read, to clean up delete, all else write.

    `Location` is the address of the job. With an `Idempotency-Key`, the same request starts no second one.
    """
    who = authorize(request, work.scope, credentials.credentials if credentials else None)
    jobs, key = jobs_of(request), key_in(idempotency_key)
    job = jobs.started_before(experiment, work, who, key)  # before its uploads and names, which may be gone by now
    if job is None:
        work.prepare(request.app.state.transfers, who)
        job = jobs.start(experiment, work, who, key=key)
    response.headers["Location"] = str(request.url_for("get_job", job_id=job.job_id).path)
    return job.for_clients()


@router.get("/jobs", tags=["read"])
def list_jobs(request: Request, _: Reader, asked: Annotated[PageOfJobs, Query()]) -> Page[JobSummary]:
    """List jobs without their results, the newest first."""
    jobs = jobs_of(request)
    found = jobs.all()
    if asked.after is not None:
        place = _place_in(asked.after)
        found = [job for job in found if _order(job) < place]
    items = [job.summary().for_clients() for job in found[: asked.limit]]
    is_last = len(found) <= asked.limit
    return Page(items=items, next=None if is_last else "-".join(map(str, _order(items[-1]))))


def _order(job: JobSummary) -> tuple[int, str]:
    return microseconds_of(job.created_at), job.job_id


def _place_in(after: str) -> tuple[int, str]:
    """Return where a page of jobs ended: its last job may be forgotten by now."""
    microseconds, _, job_id = after.partition("-")
    if not (microseconds.isdecimal() and microseconds.isascii() and job_id):
        raise ConfigError(
            "a page cannot begin after this",
            expected="the `next` of the page before, as it is",
            got=shown(after),
            hint="Begin with the first page.",
        )
    return int(microseconds), job_id


@router.get("/jobs/{job_id}", tags=["read"], responses=_NO_JOB)
def get_job(request: Request, _: Reader, job_id: JobId) -> Job:
    """Show how far a job is."""
    return jobs_of(request).get(job_id).for_clients()


@router.delete("/jobs/{job_id}", status_code=status.HTTP_202_ACCEPTED, tags=["write"], responses=_NO_JOB)
def cancel_job(request: Request, _: Writer, job_id: JobId) -> Job:
    """Cancel a job. It ends at its next step, and each checkpoint is complete or untouched."""
    return jobs_of(request).cancel(job_id).for_clients()
