"""A runner of jobs as another package would bring one: it does nothing by itself."""

from __future__ import annotations

from typing import ClassVar

from ckpt_lib.web.job import Job, JobUpdate
from ckpt_lib.web.runners import JobRunner, RunnerHost


class OwnRunner:
    """Calls every job running, and remembers some of them when the server ends."""

    remembered: ClassVar[set[str]] = set()

    def __init__(self, host: RunnerHost) -> None:
        self._host = host

    def start(self, job: Job) -> None:
        self._host.update(job.job_id, JobUpdate(state="running", url=f"https://runs.example/{job.job_id}"))

    def resume(self, job: Job) -> bool:
        return job.job_id in self.remembered

    def cancel(self, job: Job) -> None:
        self._host.update(job.job_id, JobUpdate(state="cancelled", ended_at=job.created_at))

    def close(self) -> None:
        pass


_: type[JobRunner] = OwnRunner
