"""Progress of long work, as a Prefect artifact."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
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

    The bar is updated at most once a second, on a thread of its own: a server that is away keeps no training waiting.
    It shows 100 % after the work succeeded. Errors of the server are logged and do not stop the work.
    """
    artifact_id = _create(key, description)
    done, last_update = 0.0, time.monotonic()
    updating: threading.Thread | None = None

    def advance(amount: float) -> None:
        nonlocal done, last_update, updating
        done += amount
        is_due = time.monotonic() - last_update >= SECONDS_BETWEEN_UPDATES
        if is_due and not (updating and updating.is_alive()):
            last_update = time.monotonic()
            percent = min(100.0, 100 * done / total) if total else 100.0
            updating = threading.Thread(target=copy_context().run, args=(_update, artifact_id, percent), daemon=True)
            updating.start()

    yield advance
    if updating:
        updating.join()
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
