"""``PrefectRunner``: does the jobs of ``ckpt serve --runner prefect`` as flow runs of a deployment.

A flow run has the id of its job as idempotency key, by which it is found again: by the next server as well.
"""

from __future__ import annotations

import threading
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.logs import logger
from ckpt_lib.errors import ConfigError
from ckpt_lib.web.job import Job, JobUpdate, State
from ckpt_lib.web.problems import Problem
from ckpt_lib.web.runners import RunnerHost
from prefect_checkpoints.flows._job_outcomes import outcomes_of
from prefect_checkpoints.flows._job_progress import bytes_of
from prefect_checkpoints.flows._store import refuse_relative

DEPLOYMENT = "checkpoint_job/jobs"
"""As in ``prefect.yaml``."""
SECONDS_BETWEEN_LOOKS = 1.0

_STATES: dict[StateType, State] = {
    StateType.SCHEDULED: "waiting",
    StateType.PENDING: "waiting",
    StateType.PAUSED: "waiting",
    StateType.RUNNING: "running",
    StateType.CANCELLING: "running",
    StateType.COMPLETED: "succeeded",
    StateType.FAILED: "failed",
    StateType.CANCELLED: "cancelled",
    StateType.CRASHED: "interrupted",
}
_CAN_BE_CANCELLED = {StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED, StateType.RUNNING}


@dataclass
class _Followed:
    job: Job
    was_seen: bool
    """Whether Prefect is known to have its run."""
    is_unwanted: bool = False


class PrefectRunner:
    """Creates a flow run for each job, and reports what Prefect says of it, by a thread that asks once a second.

    While Prefect does not answer, jobs wait. Runs go on when the server ends, and the next one finds them.
    """

    def __init__(self, host: RunnerHost) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` without a Prefect server, deployment or absolute store."""
        refuse_relative(host.config)
        _check_deployment()
        self._host = host
        self._lock = threading.Lock()
        self._followed: dict[str, _Followed] = {}
        self._ending = threading.Event()
        self._news = threading.Event()
        self._is_away = False
        run = partial(copy_context().run, self._run)  # Prefect keeps settings in the context
        self._thread = threading.Thread(target=run, name="ckpt-prefect-jobs", daemon=True)
        self._thread.start()

    def start(self, job: Job) -> None:
        self._follow(_Followed(job, was_seen=False))

    def resume(self, job: Job) -> bool:
        self._follow(_Followed(job, was_seen=job.url is not None or job.state == "running"))
        return True

    def cancel(self, job: Job) -> None:
        with self._lock:
            if job.job_id in self._followed:
                self._followed[job.job_id].is_unwanted = True
        self._news.set()

    def close(self) -> None:
        """Stop asking. The flow runs go on."""
        self._ending.set()
        self._news.set()
        self._thread.join()

    def _follow(self, followed: _Followed) -> None:
        with self._lock:
            self._followed[followed.job.job_id] = followed
        self._news.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            with self._lock:
                now = list(self._followed.values())
            if now:
                self._look(now)
            self._news.wait(SECONDS_BETWEEN_LOOKS if now else None)
            self._news.clear()

    def _look(self, followed: list[_Followed]) -> None:
        try:
            with get_client(sync_client=True) as client:
                runs = _runs_of(client, [item.job.job_id for item in followed])
                for item in followed:
                    self._look_at(client, item, runs.get(item.job.job_id))
            self._is_away = False
        except (httpx.HTTPError, PrefectException) as error:
            if not self._is_away:
                logger.warning("Prefect does not answer; jobs wait until it does: %r", error)
            self._is_away = True
        except Exception:  # the thread goes on: other jobs depend on it
            logger.exception("looking after jobs in Prefect failed")

    def _look_at(self, client: SyncPrefectClient, item: _Followed, run: FlowRun | None) -> None:
        if run is None and (item.was_seen or item.is_unwanted):
            self._end(item, _gone(item))
            return
        try:
            run = run or self._create(client, item.job)
        except (ObjectNotFound, PrefectHTTPStatusError) as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.is_server_error:
                raise  # it may pass
            logger.warning("Prefect refuses the job %s: %r", item.job.job_id, error)
            self._end(item, _failed(type(error).__name__, "Prefect refuses the flow run; the server's log says why"))
            return
        item.was_seen = True
        if item.is_unwanted and run.state_type in _CAN_BE_CANCELLED:
            client.set_flow_run_state(run.id, Cancelling(message="The job was cancelled."))
        update = _update_of(client, run)
        if update.ended_at is not None:
            self._end(item, update)
        else:
            self._host.update(item.job.job_id, update)

    def _create(self, client: SyncPrefectClient, job: Job) -> FlowRun:
        """Create the run of a job; the same key gives the same run."""
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        parameters = _parameters(self._host.config, job)
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters, idempotency_key=job.job_id)

    def _end(self, item: _Followed, update: JobUpdate) -> None:
        self._host.update(item.job.job_id, update)
        with self._lock:
            self._followed.pop(item.job.job_id, None)


def _check_deployment() -> None:
    if not PREFECT_API_URL.value():
        raise ConfigError(
            "jobs cannot become flow runs without a Prefect server",
            expected="its address in PREFECT_API_URL",
            hint="`prefect server start` starts one.",
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound as error:
        raise ConfigError(
            f"Prefect has no deployment {DEPLOYMENT}",
            hint="Create it by `prefect deploy`, as prefect.yaml of this project does, and start a worker.",
        ) from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ConfigError(f"Prefect does not answer: {error!r}", got=str(PREFECT_API_URL.value())) from error


def _runs_of(client: SyncPrefectClient, job_ids: list[str]) -> dict[str, FlowRun]:
    """Return the flow runs of jobs, by job."""
    chosen = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=job_ids))
    return {str(run.idempotency_key): run for run in client.read_flow_runs(flow_run_filter=chosen)}


def _parameters(config: CheckpointConfig, job: Job) -> dict[str, Any]:
    # Without the index: each machine has its own, and its URL may hold a password, which Prefect's page would show.
    plain = config.model_dump(mode="json", exclude_unset=True, exclude={"index_url"})
    return {
        "config": {"checkpoint_dir": config.checkpoint_dir} | plain,
        "experiment_name": job.experiment_name,
        "work": job.work.model_dump(mode="json"),
        "checkpoint_ids": job.checkpoint_ids,
    }


def _update_of(client: SyncPrefectClient, run: FlowRun) -> JobUpdate:
    """Return what Prefect knows of a run."""
    state = run.state
    facts: dict[str, Any] = {"url": url_for(run), "started_at": run.start_time, **bytes_of(run)}
    if state is None or not state.is_final():
        return JobUpdate(state=_STATES[run.state_type or StateType.SCHEDULED], **facts)
    facts |= {"state": _STATES[state.type], "ended_at": run.end_time or datetime.now(UTC)}
    published = outcomes_of(client, run.id)
    if published is not None:
        facts |= {"result": published.result, "problem": published.problem}
    if facts["state"] in ("failed", "interrupted") and facts.get("problem") is None:
        facts["problem"] = _failed(
            state.name or state.type.value, "the flow run did not get done; its page says why"
        ).problem
    return JobUpdate(**facts)


def _failed(kind: str, detail: str) -> JobUpdate:
    problem = Problem.of(kind, 500, detail)
    return JobUpdate(state="failed", problem=problem, ended_at=datetime.now(UTC))


def _gone(item: _Followed) -> JobUpdate:
    """Return the end of a job without a flow run."""
    if not item.was_seen:
        return JobUpdate(state="cancelled", ended_at=datetime.now(UTC))
    return _failed("InterruptedError", "its flow run was deleted").model_copy(update={"state": "interrupted"})
