"""How flows run mapped tasks."""

from __future__ import annotations

from typing import Any, cast

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

MAX_WORKERS = 4
"""Hashing and reading release the interpreter's lock, so threads serve; more than this many would wait for the disk."""


def thread_runner() -> TaskRunner[PrefectFuture[Any]]:
    """A few threads: the default runner starts as many as there are tasks."""
    return cast(TaskRunner[PrefectFuture[Any]], ThreadPoolTaskRunner[Any](max_workers=MAX_WORKERS))
