"""The task runner of flows."""

from __future__ import annotations

from typing import Any, cast

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

MAX_WORKERS = 4
"""Hashing and reading release the interpreter's lock, so threads suffice; more would only wait for the disk."""


def thread_runner() -> TaskRunner[PrefectFuture[Any]]:
    """Return a runner with a few threads; the default one starts a thread for each task."""
    return cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner[Any](max_workers=MAX_WORKERS))
