"""Progress of long work as an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException
from prefect.logging import get_logger

logger = get_logger(__name__)

SECONDS_BETWEEN_UPDATES = 1.0


@contextmanager
def progress_artifact(key: str, description: str, total: float) -> Iterator[Callable[[float], None]]:
    """Publish a bar and yield a function that advances it, by as much of ``total`` as was done.

    The bar is updated at most once a second, and stands at 100 % when the work has ended without an error.
    A server that takes neither the bar nor an update does not stop the work.
    """
    artifact_id = _create(key, description)
    done, last_update = 0.0, time.monotonic()

    def advance(amount: float) -> None:
        nonlocal done, last_update
        done += amount
        if time.monotonic() - last_update >= SECONDS_BETWEEN_UPDATES:
            last_update = time.monotonic()
            _update(artifact_id, min(100.0, 100 * done / total) if total else 100.0)

    yield advance
    _update(artifact_id, 100.0)


def _create(key: str, description: str) -> UUID | None:
    try:
        return cast(UUID, create_progress_artifact(progress=0.0, key=key, description=description))
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("There is no progress bar: %r", error)
        return None


def _update(artifact_id: UUID | None, progress: float) -> None:
    if artifact_id is None:
        return
    try:
        update_progress_artifact(artifact_id, progress=progress)
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("The progress bar was not updated: %r", error)
