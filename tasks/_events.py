"""Forwards events of ``ckpt_lib`` to Prefect, where automations can react to them."""

from __future__ import annotations

import threading
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect.context import FlowRunContext, TaskRunContext
from prefect.events import emit_event
from prefect.runtime import flow_run, task_run

from ckpt_lib.events import Event, EventKind, subscribe

REPEATABLE: set[EventKind] = {
    "checkpoint.saved",
    "checkpoint.backed_up",
    "checkpoint.validated",
    "checkpoint.corrupted",
    "checkpoint.repaired",
    "checkpoint.quarantined",
    "checkpoint.thinned",
    "checkpoint.unthinned",
    "checkpoint.deleted",
    "checkpoint.best_changed",
}
"""What a task may do again when it is retried: Prefect hears of each such kind once per checkpoint and run."""

STORE_LABEL = "prefect-checkpoints.store"
"""The label of the resource that tells experiments of one name in several stores apart."""

_lock = threading.Lock()
_emitted: dict[UUID, None] = {}
_MAX_REMEMBERED = 10_000


def _emit(event: Event) -> None:
    """Emit a Prefect event, inside a run only: elsewhere there may be no server."""
    if TaskRunContext.get() is None and FlowRunContext.get() is None:
        return
    if event.kind == "checkpoint.validated" and not event.details.get("was_damaged"):
        return  # that a checkpoint is as it was saved is no news
    event_id = _id_of(event)
    if event_id is not None and not _is_first(event_id):
        return
    emit_event(
        event=f"prefect-checkpoints.{event.kind}",
        resource=resource_of(event),
        occurred=event.time,
        payload=event.model_dump(mode="json", include={"message", "checkpoint_id", "checkpoint", "details"}),
        id=event_id,
    )


def resource_of(event: Event) -> dict[str, str]:
    """Return the resource that a Prefect event is about: the experiment, with its store as a label."""
    return {
        "prefect.resource.id": f"prefect-checkpoints.experiment.{event.experiment_name}",
        "prefect.resource.name": event.experiment_name,
        STORE_LABEL: event.store,
    }


def _id_of(event: Event) -> UUID | None:
    """Return an id that the event has again in another attempt of this run, or of any run where the event has a key.

    The server keeps one event of an id.
    """
    if event.key is not None:
        return uuid5(
            NAMESPACE_URL, f"prefect-checkpoints:{event.store}/{event.experiment_name}/{event.kind}/{event.key}"
        )
    if event.kind not in REPEATABLE:
        return None
    run_id = flow_run.id or task_run.id
    of_backup = bool(event.details.get("is_backup"))
    what = f"{run_id}/{event.store}/{event.experiment_name}/{event.kind}/{event.checkpoint_id}/{of_backup}"
    return uuid5(NAMESPACE_URL, f"prefect-checkpoints:{what}")


def _is_first(event_id: UUID) -> bool:
    """Return True when this process has not emitted the event before: automations would react to each one."""
    with _lock:
        if event_id in _emitted:
            return False
        _emitted[event_id] = None
        if len(_emitted) > _MAX_REMEMBERED:
            del _emitted[next(iter(_emitted))]
        return True


subscribe(_emit)
