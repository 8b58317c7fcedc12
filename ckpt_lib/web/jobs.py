"""Jobs: long work that a server does in the background. Each is stored, so that an interrupted one is reported."""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.errors import AlreadyRunningError, CheckpointError, CheckpointNotFoundError
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.operations import AnyWork, Outcome
from ckpt_lib.web.problems import Problem, problem_of

State = Literal["waiting", "running", "succeeded", "failed", "cancelled", "interrupted"]
ENDED: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "interrupted"})
MOST_WAITING = 100
_KEPT = 1_000
_WORKERS = 2


class JobSummary(BaseModel):
    """The progress of one piece of long work."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    job_id: str
    experiment_name: str
    work: AnyWork
    who: str = Field(description="The name of the token that started it.")
    state: State = "waiting"
    created_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    done_bytes: int = 0
    total_bytes: int | None = Field(default=None, description="Null if it is not known.")
    problem: Problem | None = Field(default=None, description="Why it failed.")


class Job(JobSummary):
    """One piece of long work, with its outcomes."""

    checkpoint_ids: list[str] = Field(description="What the names stood for when the job was started.")
    result: list[Outcome] | None = Field(default=None, description="One outcome for each id; null until it has ended.")


class _CancelledError(Exception):
    """Ends the work of a job from within its progress, where everything written is complete."""


class Jobs:
    """The jobs of a server, done on its own threads, and stored in a folder that one server at a time uses.

    A job that a server had not ended when it was killed is interrupted: every checkpoint is complete or untouched, and
    the same job started again does the rest.
    """

    def __init__(self, folder: Path, manager_of: Callable[[str], CheckpointManager]) -> None:
        self._folder = folder
        self._manager_of = manager_of
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._cancelled: set[str] = set()
        self._pool = ThreadPoolExecutor(_WORKERS, "ckpt-job")
        self._held: IO[str] | None = None

    def open(self) -> None:
        """Take the folder and read what earlier servers have stored. Does nothing if it is open.

        Raises :class:`~ckpt_lib.errors.AlreadyRunningError` if another server uses the folder. The kernel releases the
        lock when the server ends, also by a kill.
        """
        if self._held is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        held = (self._folder / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            held.close()
            raise AlreadyRunningError(
                "another server stores its jobs in this folder",
                path=str(self._folder),
                hint="End that server, or give this one another jobs_folder.",
            ) from error
        self._held = held
        self._read()

    def start(self, experiment_name: str, work: AnyWork, who: str) -> Job:
        """Store a job that waits for its turn. Names are resolved now.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` for a name, and
        :class:`~ckpt_lib.errors.AlreadyRunningError` if too many jobs wait.
        """
        checkpoint_ids = work.resolve(self._manager_of(experiment_name))
        now = datetime.now(UTC)
        job = Job(
            job_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}",
            experiment_name=experiment_name,
            work=work,
            checkpoint_ids=checkpoint_ids,
            who=who,
            created_at=now,
        )
        with self._lock:
            if sum(other.state not in ENDED for other in self._jobs.values()) >= MOST_WAITING:
                raise AlreadyRunningError(
                    "too many jobs are waiting", expected=f"at most {MOST_WAITING}", hint="Try again later."
                )
            self._jobs[job.job_id] = job
        self._write(job)
        self._pool.submit(self._run, job.job_id)
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
            return sorted(self._jobs.values(), key=lambda job: (job.created_at, job.job_id), reverse=True)

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end; it does so at its next step. One that has ended stays as it is."""
        job = self.get(job_id)
        with self._lock:
            if self._jobs.get(job_id, job).state not in ENDED:
                self._cancelled.add(job_id)
        return job

    def close(self) -> None:
        """Cancel what waits or runs, wait for it to end, and release the folder."""
        for job in self.all():
            self.cancel(job.job_id)
        self._pool.shutdown(wait=True)
        if self._held is not None:
            self._held.close()
            self._held = None

    def _run(self, job_id: str) -> None:
        facts: dict[str, Any] = {"state": "cancelled"}
        if job_id not in self._cancelled:
            self._put(job_id, state="running", started_at=datetime.now(UTC))
            facts = self._outcome(self.get(job_id))
        self._put(job_id, **facts, ended_at=datetime.now(UTC))
        with self._lock:
            self._cancelled.discard(job_id)

    def _outcome(self, job: Job) -> dict[str, Any]:
        try:
            manager = self._manager_of(job.experiment_name)
            self._change(job.job_id, total_bytes=job.work.total_bytes(manager, job.checkpoint_ids))
            result = job.work.do(manager, job.checkpoint_ids, lambda done: self._step(job.job_id, done))
        except _CancelledError:
            return {"state": "cancelled"}
        except CheckpointError as error:
            return {"state": "failed", "problem": problem_of(error)}
        except Exception as error:
            logger.exception("the job %s failed with an unexpected error", job.job_id)
            title = f"the server failed: {type(error).__name__}; its log says why"
            return {"state": "failed", "problem": Problem(type="ServerError", title=title, status=500)}
        problems = [outcome.problem for outcome in result if outcome.problem is not None]
        if not problems:
            return {"state": "succeeded", "result": result}
        title = f"{len(problems)} of {len(result)} checkpoints failed; the first: {problems[0].title}"
        return {"state": "failed", "result": result, "problem": problems[0].model_copy(update={"title": title})}

    def _step(self, job_id: str, done_bytes: int) -> None:
        with self._lock:
            if job_id in self._cancelled:
                raise _CancelledError
            job = self._jobs[job_id]
            self._jobs[job_id] = job.model_copy(update={"done_bytes": job.done_bytes + done_bytes})

    def _change(self, job_id: str, **facts: Any) -> Job:
        with self._lock:
            self._jobs[job_id] = changed = self._jobs[job_id].model_copy(update=facts)
        return changed

    def _put(self, job_id: str, **facts: Any) -> None:
        """Change a job in memory, store it, and forget the oldest that have ended."""
        self._write(self._change(job_id, **facts))
        with self._lock:
            ended = sorted(item.job_id for item in self._jobs.values() if item.state in ENDED)
            forgotten = ended[: max(0, len(self._jobs) - _KEPT)]
            for old_id in forgotten:
                del self._jobs[old_id]
        for old_id in forgotten:
            with failures_logged(f"forgetting the job {old_id}"):
                self._path(old_id).unlink(missing_ok=True)

    def _write(self, job: Job) -> None:
        """Store a job whole or not at all. A failure is logged: the work itself is not lost by it."""
        with failures_logged(f"storing the job {job.job_id}"):
            descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".job-")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(job.model_dump_json())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path(job.job_id))

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _read(self) -> None:
        """Read stored jobs. Those that have not ended were interrupted: this server alone holds the folder."""
        for leftover in self._folder.glob(".job-*"):
            leftover.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("*.json")):
            try:
                job = Job.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                logger.warning("the job file %s cannot be read, and is kept as %s.unreadable: %s", path, path, error)
                with failures_logged(f"renaming {path}"):
                    path.rename(f"{path}.unreadable")
                continue
            self._jobs[job.job_id] = job
            if job.state not in ENDED:
                self._put(job.job_id, state="interrupted", ended_at=datetime.now(UTC))
