"""``Jobs``: the jobs of a server. Each is stored, so that one that a kill has interrupted is reported."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.errors import JobNotFoundError, LimitError
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.idempotency import job_of_key
from ckpt_lib.web.job import Job, JobUpdate
from ckpt_lib.web.job_folder import JobFolder
from ckpt_lib.web.managers import Managers
from ckpt_lib.web.operations import AnyWork
from ckpt_lib.web.problems import Problem
from ckpt_lib.web.runners import DEFAULT_RUNNER, JobRunner, RunnerHost, runner_factory

MOST_WAITING = 100
_KEPT = 1_000
_KEPT_CHECKPOINTS = 100_000
"""Of how many checkpoints ended jobs are kept: each takes about 2 KB of memory, and anyone who reads may start jobs."""

Listener = Callable[[Job], object]


class Jobs:
    """The jobs of a server, done by a runner, and stored in a folder that one server at a time uses.

    What needs uploads or exports of the server is done on its threads, whatever the runner.

    A job that had not ended when its server was killed goes on if the runner still knows it. Otherwise it is
    interrupted: every checkpoint is complete or untouched, and the same job started again does the rest.
    """

    def __init__(self, folder: Path, managers: Managers, runner: str = DEFAULT_RUNNER) -> None:
        self._folder = JobFolder(folder)
        self._managers = managers
        self._runner_name = runner
        self._runners: dict[str, JobRunner] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with each job that is new or in another state, on the thread that has changed it."""
        self._listeners.append(listener)

    def open(self) -> None:
        """Take the folder, read what earlier servers have stored, and start the runner. Does nothing if it is open.

        Raises :class:`~ckpt_lib.errors.AlreadyRunningError` if another server uses the folder, and
        :class:`~ckpt_lib.errors.ConfigError` if it cannot be written to, or if the runner cannot start.
        """
        if self._folder.is_open:
            return
        factories = {name: runner_factory(name) for name in (DEFAULT_RUNNER, self._runner_name)}
        host = RunnerHost(self._managers.config, self._manager_of, self.update)
        self._folder.open()
        try:
            self._jobs = {job.job_id: job for job in self._folder.read()}
            for name, factory in factories.items():
                self._runners[name] = factory(host)
        except BaseException:
            self.close()
            raise
        for job in self.unfinished():
            runner = self._runners.get(job.runner)
            if runner is None or not runner.resume(job):
                self.update(job.job_id, _interrupted(job, is_known=runner is not None))

    def start(self, experiment_name: str, work: AnyWork, who: str, *, key: str | None = None) -> Job:
        """Store a job that waits for its turn. Names are resolved now.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` for a name, and
        :class:`~ckpt_lib.errors.LimitError` if too many jobs wait. With a ``key`` it returns, and raises, as
        :meth:`started_before`.
        """
        runner = DEFAULT_RUNNER if work.needs_transfers else self._runner_name
        now = datetime.now(UTC)
        job = Job(
            job_id=f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(4)}",
            experiment_name=experiment_name,
            work=work,
            checkpoint_ids=work.resolve(self._managers.for_job(experiment_name, may_create=work.may_create)),
            who=who,
            runner=runner,
            created_at=now,
            idempotency_key=key,
        )
        with self._lock:  # one after the other, so that no two take the last place, or have the same key
            if before := job_of_key(self._jobs.values(), key, who, experiment_name, work):
                return before
            _require_place([other for other in self._jobs.values() if not other.has_ended], who)
            self._jobs[job.job_id] = job
        self._store(job.job_id)
        self._runners[runner].start(job)
        return job

    def started_before(self, experiment_name: str, work: AnyWork, who: str, key: str | None) -> Job | None:
        """Return the job that the same request with the same key has started, as it is now.

        Raises :class:`~ckpt_lib.errors.IdempotencyKeyError` for the key of another request.
        """
        with self._lock:
            return job_of_key(self._jobs.values(), key, who, experiment_name, work)

    def _manager_of(self, job: Job) -> CheckpointManager:
        return self._managers.for_job(job.experiment_name, may_create=job.work.may_create)

    def get(self, job_id: str) -> Job:
        """Return a job as it is now. Raises :class:`~ckpt_lib.errors.JobNotFoundError`."""
        with self._lock:
            found = self._jobs.get(job_id)
        if found is None:
            raise JobNotFoundError("there is no such job", hint="The oldest jobs are forgotten.")
        return found

    def all(self) -> list[Job]:
        """Return all jobs, the newest first."""
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: (job.created_at, job.job_id), reverse=True)

    def unfinished(self) -> list[Job]:
        """Return the jobs that wait or run."""
        with self._lock:
            return [job for job in self._jobs.values() if not job.has_ended]

    def cancel(self, job_id: str) -> Job:
        """Ask a job to end; it does so at its next step. One that has ended stays as it is."""
        job = self.get(job_id)
        if not job.has_ended:
            self._runners[job.runner].cancel(job)
        return job

    def update(self, job_id: str, update: JobUpdate) -> None:
        """Change a job as its runner tells; what comes after its end is ignored. Each new state is stored."""
        with self._lock:
            before = self._jobs.get(job_id)
            if before is None or before.has_ended:
                return
            told = {name: getattr(update, name) for name in update.model_fields_set}
            job = self._jobs[job_id] = before.model_copy(update=told)
        if (job.state, job.url) != (before.state, before.url):
            self._store(job_id)

    def tell(self, job_id: str) -> None:
        """Call the listeners with a job that has gone on, unless it has ended: they know that already."""
        with self._writing:  # so that an older state is not told last
            job = self._jobs.get(job_id)
            if job is not None and not job.has_ended:
                self._tell(job)

    def _tell(self, job: Job) -> None:
        for listener in self._listeners:
            with failures_logged(f"telling of the job {job.job_id}"):
                listener(job)

    def close(self) -> None:
        """End the runners, and release the folder."""
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()
        self._folder.close()

    def _store(self, job_id: str) -> None:
        """Store a job as it is now, tell the listeners, and forget the oldest that have ended."""
        with self._writing:  # so that an older state is not written last
            job = self._jobs.get(job_id)
            if job is None:  # forgotten meanwhile
                return
            self._folder.write(job)
            self._tell(job)
        with self._lock:
            forgotten = _too_old(self._jobs)
            for old_id in forgotten:
                del self._jobs[old_id]
        for old_id in forgotten:
            self._folder.remove(old_id)


def _require_place(unfinished: Sequence[Job], who: str) -> None:
    """Raise :class:`~ckpt_lib.errors.LimitError` for one job too many: no token gets more than half of the places."""
    most_each = max(1, MOST_WAITING // 2)
    own = sum(job.who == who for job in unfinished)
    if own >= most_each or len(unfinished) >= MOST_WAITING:
        whose = f", and {most_each} of one token" if own >= most_each else ""
        raise LimitError(
            "too many jobs are waiting",
            expected=f"at most {MOST_WAITING} in all{whose}",
            hint="Wait for some to end, or cancel some.",
        )


def _too_old(jobs: Mapping[str, Job]) -> list[str]:
    """Return the ids of the oldest jobs that have ended, of which there are too many or on too many checkpoints."""
    ended = sorted((job for job in jobs.values() if job.has_ended), key=lambda job: (job.created_at, job.job_id))
    count, checkpoints = len(jobs), sum(len(job.checkpoint_ids) for job in ended)
    forgotten: list[str] = []
    for job in ended[:-1]:  # whoever waits for the newest sees how it ended
        if count <= _KEPT and checkpoints <= _KEPT_CHECKPOINTS:
            break
        count, checkpoints = count - 1, checkpoints - len(job.checkpoint_ids)
        forgotten.append(job.job_id)
    return forgotten


def _interrupted(job: Job, *, is_known: bool) -> JobUpdate:
    """Return the end of a job that nobody here goes on with; ``is_known`` says whether its runner is."""
    detail = "the server ended before the job did"
    if not is_known:
        detail = f"the server was started without the runner {job.runner}, which may still do the job"
    problem = Problem.of("InterruptedError", 500, detail, hint="Start the same job again.")
    return JobUpdate(state="interrupted", ended_at=datetime.now(UTC), problem=problem)
