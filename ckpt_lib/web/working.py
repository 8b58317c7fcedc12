"""Operations that take long: each is a job, which is asked about, and may be cancelled."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response, status
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel

from ckpt_lib.web.access import Reader, Writer, authorize, bearer
from ckpt_lib.web.jobs import Job, Jobs
from ckpt_lib.web.operations import AnyWork
from ckpt_lib.web.reading import ExperimentName

router = APIRouter()
JobId = Annotated[str, Path(max_length=100)]


class JobList(BaseModel):
    """All jobs that are remembered, the newest first."""

    items: list[Job]


def jobs_of(request: Request) -> Jobs:
    """Return the jobs of the server."""
    jobs: Jobs = request.app.state.jobs
    return jobs


@router.post("/experiments/{experiment}/jobs", status_code=status.HTTP_202_ACCEPTED, tags=["read", "write"])
def start_job(
    request: Request,
    response: Response,
    _: Reader,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    experiment: ExperimentName,
    work: AnyWork,
) -> Job:
    """Start long work. To validate needs a token to read, all else one to write. `Location` is where to ask for it."""
    who = authorize(request, work.scope, credentials.credentials if credentials else None)
    job = jobs_of(request).start(experiment, work, who)
    response.headers["Location"] = str(request.url_for("get_job", job_id=job.job_id).path)
    return job


@router.get("/jobs", tags=["read"])
def list_jobs(request: Request, _: Reader) -> JobList:
    """List jobs, the newest first."""
    return JobList(items=jobs_of(request).all())


@router.get("/jobs/{job_id}", tags=["read"])
def get_job(request: Request, _: Reader, job_id: JobId) -> Job:
    """Show how far a job is."""
    return jobs_of(request).get(job_id)


@router.delete("/jobs/{job_id}", status_code=status.HTTP_202_ACCEPTED, tags=["write"])
def cancel_job(request: Request, _: Writer, job_id: JobId) -> Job:
    """Cancel a job. It ends at its next step, and what it is writing is whole or not there."""
    return jobs_of(request).cancel(job_id)
