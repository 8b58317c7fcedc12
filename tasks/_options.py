"""Options of all tasks, the retry condition, and the manager that tasks call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.cache_policies import NO_CACHE, CacheKeyFnPolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import flow_run, task_run
from prefect.tasks import exponential_backoff

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StoreUnavailableError
from prefect_checkpoints.tasks import _events  # noqa: F401  # importing it subscribes it
from prefect_checkpoints.tasks._kinds import CheckpointTask

TAGS = ["checkpoints"]
NO_TAGS: list[str] = []
"""For tasks that a training loop waits for. Before a tagged task, Prefect asks the server for concurrency limits, which
takes seconds if the server's disk is busy with the checkpoint."""

P = ParamSpec("P")
R = TypeVar("R")

REMEMBERED_FOR = timedelta(days=1)

RETRIES = 3
"""Retries wait about 1, 2 and 4 seconds, varied at random by up to half."""


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether a retry may help: only if the store did not answer."""
    try:
        state.result()
    except StoreUnavailableError:
        return True
    except Exception:
        return False
    return False


def checkpoint_task(
    run_name: str | Callable[[], str], *, kind: type[CheckpointTask[..., Any]] = CheckpointTask, **options: Any
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return the ``@task`` decorator of this package. ``run_name`` is formatted with the call's parameters, or
    called in the task's run.

    Parameters are neither hashed for a cache key nor persisted, so the cost of a call does not depend on the size of
    the model.
    """
    common: dict[str, Any] = {
        "task_run_name": run_name,
        "tags": TAGS,
        "retries": RETRIES,
        "retry_delay_seconds": exponential_backoff(backoff_factor=1),
        "retry_jitter_factor": 0.5,
        "retry_condition_fn": is_transient,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return cast(Task[P, R], kind(function, **{**common, **options}))

    return decorate


def remembered(kind: str, content: Callable[[dict[str, Any]], str | None]) -> dict[str, Any]:
    """Return options that cache a task's result for a day, under what ``content`` makes of the call's parameters.

    ``content`` returns ``None`` for calls that must not be cached. All tasks of a server share their keys, so ``kind``
    tells them apart.
    """

    def key(_context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
        text = content(parameters)
        return None if text is None else f"ckpt-{kind}-v1-{hashlib.sha256(text.encode()).hexdigest()}"

    return {
        "cache_policy": CacheKeyFnPolicy(cache_key_fn=key),
        "cache_expiration": REMEMBERED_FOR,
        "persist_result": True,
        "result_serializer": "json",
    }


def manager_for(config: CheckpointConfig, experiment_name: str) -> CheckpointManager:
    """Return the manager of this flow run or, outside of flows, of this process. It caches what it has verified."""
    kept = _kept.get((config, experiment_name, flow_run.id))
    return kept or _manager(config, experiment_name, flow_run.id)


@lru_cache(maxsize=16)
def _manager(config: CheckpointConfig, experiment_name: str, _run_id: str | None) -> CheckpointManager:
    return CheckpointManager(config, experiment_name)


_kept: dict[tuple[CheckpointConfig, str, str | None], CheckpointManager] = {}


@contextmanager
def keep_manager(manager: CheckpointManager) -> Iterator[None]:
    """Let the tasks of this flow run use ``manager`` for its experiment while the context lasts."""
    key = manager.config, manager.experiment_name, flow_run.id
    _kept[key] = manager
    try:
        yield
    finally:
        _kept.pop(key, None)


def idempotency_key(epoch: int, step: int) -> str | None:
    """Return the idempotency key of a save in this run, or ``None`` outside of runs.

    Retries of a flow run or task have the same key. Saves with the same key and content are the same save.
    """
    run_id = flow_run.id or task_run.id
    return None if run_id is None else f"{run_id}/{epoch}/{step}"
