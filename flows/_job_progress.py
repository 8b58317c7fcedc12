"""Progress of a job: as a bar for people and, for the server that started it, as labels of the flow run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectException
from prefect.logging import get_logger
from prefect.runtime import flow_run

from prefect_checkpoints.tasks._progress import SECONDS_BETWEEN_UPDATES, progress_artifact

logger = get_logger(__name__)

_DONE_BYTES, _TOTAL_BYTES = "ckpt.done_bytes", "ckpt.total_bytes"


class JobProgress:
    """Counts the bytes of a job."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.done_bytes = 0
        self._advance = advance

    def __call__(self, size_bytes: int) -> None:
        self.done_bytes += size_bytes
        self._advance(size_bytes)

    def rewind(self, done_bytes: int) -> None:
        """Count from ``done_bytes`` again, for another attempt."""
        self(done_bytes - self.done_bytes)


@contextmanager
def job_progress(key: str, description: str, total_bytes: int | None) -> Iterator[JobProgress]:
    """Yield what counts the bytes of this flow run, and publish the count once a second.

    There is a bar only if the total is known. Errors of the server are logged and do not stop the work.
    """
    with ExitStack() as stack:
        advance: Callable[[float], None] = lambda _: None  # noqa: E731
        if total_bytes:
            advance = stack.enter_context(progress_artifact(key, description, total_bytes))
        progress = JobProgress(advance)
        stack.enter_context(_labelled(progress, total_bytes))
        yield progress


def bytes_of(run: FlowRun) -> dict[str, int]:
    """Return how far a run of a job is, as the fields of a ``JobUpdate``; what is not known is left out."""
    named = {"done_bytes": run.labels.get(_DONE_BYTES), "total_bytes": run.labels.get(_TOTAL_BYTES)}
    return {name: value for name, value in named.items() if isinstance(value, int)}


@contextmanager
def _labelled(progress: JobProgress, total_bytes: int | None) -> Iterator[None]:
    """Keep the labels of this flow run up to date by a thread, so that a server that is away keeps no work waiting."""
    run_id, ending = UUID(flow_run.id), threading.Event()

    def publish() -> None:
        published = None
        is_last = False
        while not is_last:
            is_last = ending.wait(SECONDS_BETWEEN_UPDATES)
            if progress.done_bytes != published:
                published = progress.done_bytes
                _label(run_id, published, total_bytes)

    thread = threading.Thread(target=copy_context().run, args=(publish,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _label(run_id: UUID, done_bytes: int, total_bytes: int | None) -> None:
    labels: dict[str, bool | int | float | str] = {_DONE_BYTES: done_bytes}
    if total_bytes is not None:
        labels[_TOTAL_BYTES] = total_bytes
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(run_id, labels)
    except (httpx.HTTPError, PrefectException) as error:
        logger.warning("The progress of the job could not be published: %r", error)
