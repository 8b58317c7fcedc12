"""What all tasks have in common: options, the retry condition, and the manager they call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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
from prefect_checkpoints.tasks import _events  # noqa: F401  # it listens from now on
from prefect_checkpoints.tasks._kinds import CheckpointTask

TAGS = ["checkpoints"]
NO_TAGS: list[str] = []
"""For tasks that a training loop waits for: before a tagged task Prefect asks the server whether the tag's concurrency
is limited, and a server whose disk is busy with the very checkpoint takes seconds to answer."""

P = ParamSpec("P")
R = TypeVar("R")

REMEMBERED_FOR = timedelta(days=1)

RETRIES = 3
"""With waits of about 1, 2 and 4 seconds, each off by up to half at random: so long a store may be away."""


def is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: only when the store did not answer."""
    try:
        state.result()
    except StoreUnavailableError:
        return True
    except Exception:
        return False
    return False


def checkpoint_task(
    run_name: str, *, kind: type[CheckpointTask[..., Any]] = CheckpointTask, **options: Any
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """The ``@task`` of this package. ``run_name`` is filled with the call's parameters.

    Parameters are neither hashed for a cache key nor persisted, so that a model passed to a task stays where it is:
    the cost of a call does not depend on the model's size.
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
    """Options of a task whose outcome is remembered for a day, by what ``content`` makes of the call's parameters.

    ``content`` returns ``None`` for what must not be remembered. Keys are shared by all tasks of a server, so ``kind``
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
    """Return the manager of this flow run, or of this process outside of flows: it remembers what it has verified."""
    return _manager(config, experiment_name, flow_run.id)


@lru_cache(maxsize=16)
def _manager(config: CheckpointConfig, experiment_name: str, _run_id: str | None) -> CheckpointManager:
    return CheckpointManager(config, experiment_name)


def idempotency_key(epoch: int, step: int) -> str | None:
    """Return the key under which a save of this run looks for an earlier one; ``None`` outside of any run.

    The flow run and the retry of a task keep it. Saves with the same key are the same save if their content is, too.
    """
    run_id = flow_run.id or task_run.id
    return None if run_id is None else f"{run_id}/{epoch}/{step}"
