"""Progress of long work, as a Prefect artifact."""

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
    """Publish a progress bar and yield a function that advances it by a part of ``total``.

    The bar is updated at most once a second, and shows 100 % after the work succeeded. Errors of the server are logged
    and do not stop the work.
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
        logger.warning("The progress bar could not be created: %r", error)
        return None


def _update(artifact_id: UUID | None, progress: float) -> None:
    if artifact_id is None:
        return
    try:
        update_progress_artifact(artifact_id, progress=progress)
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("The progress bar could not be updated: %r", error)
