"""Jobs: long work that goes on while nobody waits. Each is written down, so that an interrupted one is told as such."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from ckpt_lib.core.logs import logger
from ckpt_lib.core.owners import Owner, is_proven_dead
from ckpt_lib.errors import AlreadyRunningError, CheckpointError, CheckpointNotFoundError
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.operations import AnyWork
from ckpt_lib.web.problems import Problem, problem_of

State = Literal["waiting", "running", "succeeded", "failed", "cancelled", "interrupted"]
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
MOST_WAITING = 100
_KEPT = 1_000
_WORKERS = 2


class Job(BaseModel):
    """One piece of long work, and how far it is."""

    job_id: str
    experiment_name: str
    work: AnyWork
    who: str = Field(description="Whose token started it.")
    owner: Owner = Field(description="The process that does it.")
    state: State = "waiting"
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    done_bytes: int = 0
    total_bytes: int | None = Field(default=None, description="Null where nobody knows.")
    result: Any = Field(default=None, description="What it has found; null until it has succeeded.")
    problem: Problem | None = Field(default=None, description="Why it failed.")


class _CancelledError(Exception):
    """Ends the work of a job from within its progress, where all that is written is whole."""


class Jobs:
    """The jobs of a server, done on threads of its own, and written down in a folder.

    A job that another process had begun and not ended was interrupted: the work of a checkpoint is whole or undone, and
    doing it again does the rest.
    """

    def __init__(self, folder: Path, manager_of: Callable[[str], CheckpointManager]) -> None:
        self._folder = folder
        self._manager_of = manager_of
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._cancelled: set[str] = set()
        self._pool = ThreadPoolExecutor(_WORKERS, "ckpt-job")
        self._read()

    def start(self, experiment_name: str, work: AnyWork, who: str) -> Job:
        """Write a job down and let it wait for its turn. Raises :class:`~ckpt_lib.errors.AlreadyRunningError`."""
        self._manager_of(experiment_name)
        with self._lock:
            if sum(job.state not in ENDED for job in self._jobs.values()) >= MOST_WAITING:
                raise AlreadyRunningError(
                    "too many jobs are waiting", expected=f"at most {MOST_WAITING}", hint="Try again later."
                )
        job_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        now, owner = datetime.now(UTC), Owner.current()
        job = Job(job_id=job_id, experiment_name=experiment_name, work=work, who=who, owner=owner, created_at=now)
        self._put(job)
        self._pool.submit(self._run, job_id)
        return job

    def get(self, job_id: str) -> Job:
        """Return a job as it is now. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""
        with self._lock:
            found = self._jobs.get(job_id)
        if found is None:
            raise CheckpointNotFoundError("there is no such job", hint="The oldest jobs are forgotten.")
        return found

    def all(self) -> list[Job]:
        """Return all jobs, the newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: job.created_at, reverse=True)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end; it does so at its next step. One that has ended stays as it is."""
        job = self.get(job_id)
        if job.state not in ENDED:
            self._cancelled.add(job_id)
        return job

    def close(self) -> None:
        """End: jobs that wait are not begun, those that run are cancelled."""
        self._cancelled |= {job.job_id for job in self.all() if job.state not in ENDED}
        self._pool.shutdown(wait=True)

    def _run(self, job_id: str) -> None:
        job = self.get(job_id)
        if job_id in self._cancelled:
            self._put(job.model_copy(update={"state": "cancelled", "ended_at": datetime.now(UTC)}))
            return
        self._put(job := job.model_copy(update={"state": "running", "started_at": datetime.now(UTC)}))
        outcome: dict[str, Any]
        try:
            manager = self._manager_of(job.experiment_name)
            self._change(job_id, total_bytes=job.work.total_bytes(manager))
            outcome = {"state": "succeeded", "result": job.work.do(manager, lambda done: self._step(job_id, done))}
        except _CancelledError:
            outcome = {"state": "cancelled"}
        except CheckpointError as error:
            outcome = {"state": "failed", "problem": problem_of(error)}
        except Exception as error:
            logger.exception("the job %s failed with an error that nobody expected", job_id)
            title = f"the server failed: {type(error).__name__}; its log says why"
            outcome = {"state": "failed", "problem": Problem(type="ServerError", title=title, status=500)}
        self._put(self.get(job_id).model_copy(update={**outcome, "ended_at": datetime.now(UTC)}))

    def _step(self, job_id: str, done_bytes: int) -> None:
        if job_id in self._cancelled:
            raise _CancelledError
        with self._lock:
            job = self._jobs[job_id]
            self._jobs[job_id] = job.model_copy(update={"done_bytes": job.done_bytes + done_bytes})

    def _change(self, job_id: str, **facts: Any) -> None:
        with self._lock:
            self._jobs[job_id] = self._jobs[job_id].model_copy(update=facts)

    def _put(self, job: Job) -> None:
        """Write a job down, all of it or nothing, and remember it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".job-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(job.model_dump_json())
        Path(name).replace(self._path(job.job_id))
        with self._lock:
            self._jobs[job.job_id] = job
            ended = sorted(item.job_id for item in self._jobs.values() if item.state in ENDED)
            forgotten = ended[: max(0, len(self._jobs) - _KEPT)]
            for job_id in forgotten:
                del self._jobs[job_id]
        for job_id in forgotten:
            self._path(job_id).unlink(missing_ok=True)

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _read(self) -> None:
        """Read what earlier servers wrote down; what none of them has ended was interrupted."""
        for path in sorted(self._folder.glob("*.json")):
            with suppress(OSError, ValidationError, json.JSONDecodeError):
                job = Job.model_validate_json(path.read_bytes())
                if job.state not in ENDED and is_proven_dead(job.owner):
                    self._put(job.model_copy(update={"state": "interrupted", "ended_at": datetime.now(UTC)}))
                else:
                    self._jobs[job.job_id] = job
        for path in self._folder.glob(".job-*"):
            path.unlink(missing_ok=True)
