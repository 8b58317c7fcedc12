"""Progress of long work as an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

SECONDS_BETWEEN_UPDATES = 1.0


@contextmanager
def progress_artifact(key: str, description: str, total: float) -> Iterator[Callable[[float], None]]:
    """Publish a bar and yield a function that advances it, by as much of ``total`` as was done.

    The bar is updated at most once a second, and stands at 100 % when the work has ended without an error.
    """
    artifact_id = cast(UUID, create_progress_artifact(progress=0.0, key=key, description=description))
    done, last_update = 0.0, time.monotonic()

    def advance(amount: float) -> None:
        nonlocal done, last_update
        done += amount
        if time.monotonic() - last_update >= SECONDS_BETWEEN_UPDATES:
            last_update = time.monotonic()
            update_progress_artifact(artifact_id, progress=min(100.0, 100 * done / total) if total else 100.0)

    yield advance
    update_progress_artifact(artifact_id, progress=100.0)
