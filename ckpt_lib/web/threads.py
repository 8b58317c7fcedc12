"""``ThreadRunner``: does jobs on threads of the server."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import CheckpointError
from ckpt_lib.web.job import Job, JobUpdate, ending_of
from ckpt_lib.web.problems import Problem, problem_of
from ckpt_lib.web.runners import RunnerHost

_WORKERS = 2


class _CancelledError(Exception):
    """Ends the work of a job from within its progress, where everything written is complete."""


class ThreadRunner:
    """Does two jobs at a time. They end with the server."""

    def __init__(self, host: RunnerHost) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(_WORKERS, "ckpt-job")
        self._lock = threading.Lock()
        self._asked_to_end: dict[str, threading.Event] = {}

    def start(self, job: Job) -> None:
        asked = threading.Event()
        with self._lock:
            self._asked_to_end[job.job_id] = asked
        self._pool.submit(self._run, job, asked)

    def resume(self, job: Job) -> bool:  # noqa: ARG002
        return False  # its thread ended with its server

    def cancel(self, job: Job) -> None:
        with self._lock:
            asked = self._asked_to_end.get(job.job_id)
        if asked is not None:
            asked.set()

    def close(self) -> None:
        """Cancel what waits or runs, and wait for it to end."""
        with self._lock:
            events = list(self._asked_to_end.values())
        for asked in events:
            asked.set()
        self._pool.shutdown(wait=True)

    def _run(self, job: Job, asked: threading.Event) -> None:
        ending = JobUpdate(state="cancelled")
        if not asked.is_set():
            self._host.update(job.job_id, JobUpdate(state="running", started_at=datetime.now(UTC)))
            ending = self._ending(job, asked)
        self._host.update(job.job_id, ending.model_copy(update={"ended_at": datetime.now(UTC)}))
        with self._lock:
            del self._asked_to_end[job.job_id]

    def _ending(self, job: Job, asked: threading.Event) -> JobUpdate:
        done_bytes = 0

        def step(size_bytes: int) -> None:
            nonlocal done_bytes
            if asked.is_set():
                raise _CancelledError
            done_bytes += size_bytes
            self._host.update(job.job_id, JobUpdate(done_bytes=done_bytes))

        try:
            manager = self._host.manager_of(job)
            total_bytes = job.work.total_bytes(manager, job.checkpoint_ids)
            self._host.update(job.job_id, JobUpdate(total_bytes=total_bytes))
            return ending_of(job.work.do(manager, job.checkpoint_ids, step))
        except _CancelledError:
            return JobUpdate(state="cancelled")
        except CheckpointError as error:
            return JobUpdate(state="failed", problem=problem_of(error))
        except Exception as error:
            instance = uuid.uuid4().urn
            logger.exception("the job %s failed with an unexpected error, %s", job.job_id, instance)
            detail = f"the server failed: {type(error).__name__}; its log says why"
            return JobUpdate(state="failed", problem=Problem.of("ServerError", 500, detail, instance=instance))
