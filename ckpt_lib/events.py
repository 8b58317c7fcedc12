"""Events about checkpoints, for people and programs that watch a training.

Each event is logged by the logger ``ckpt_lib.events``, with the event as ``record.event``, and passed to every
listener. An error of a listener never fails the save.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ckpt_lib.core.logs import ForkSafeLogger
from ckpt_lib.core.metadata import CheckpointMetadata

logger = ForkSafeLogger(logging.getLogger("ckpt_lib.events"))

EventKind = Literal[
    "save.retried",
    "save.degraded",
    "save.failed",
    "store.full",
    "store.reclaimed",
    "checkpoint.saved",
    "checkpoint.stranded",
    "checkpoint.reconciled",
    "checkpoint.backed_up",
    "checkpoint.validated",
    "checkpoint.corrupted",
    "checkpoint.repaired",
    "checkpoint.quarantined",
    "checkpoint.thinned",
    "checkpoint.unthinned",
    "checkpoint.deleted",
    "checkpoint.metrics_added",
    "checkpoint.best_changed",
    "training.preempted",
]
"""The kinds of events.

- ``save.retried``: the store did not answer, and the save is retried.
- ``save.degraded``: the store failed, and the save goes to the fallback folder.
- ``save.failed``: nothing was saved.
- ``store.full``: there was too little space for a save.
- ``store.reclaimed``: checkpoints were deleted to free space.
- ``checkpoint.saved``: a checkpoint was saved to the store.
- ``checkpoint.stranded``: a checkpoint was saved to the fallback folder.
- ``checkpoint.reconciled``: it was moved to the store.
- ``checkpoint.backed_up``: a backup of it was made, or a damaged one replaced.
- ``checkpoint.validated``: it was read and is intact; told once by each manager, until it is found damaged.
- ``checkpoint.corrupted``: it was read and is damaged; told once by each manager, until it is found intact.
- ``checkpoint.repaired``: damaged bytes were brought back from the other copy.
- ``checkpoint.quarantined``: it was set aside.
- ``checkpoint.thinned``: it lost all but its weights, by hand or by retention.
- ``checkpoint.unthinned``: all that it had lost came back from the trash.
- ``checkpoint.deleted``: it was deleted, by hand or by retention.
- ``checkpoint.metrics_added``: metrics were added to it after its save, or replaced.
- ``checkpoint.best_changed``: another checkpoint is the best now.

The detail ``is_backup`` says that an event about damage or its repair is about the backup of the checkpoint.
- ``training.preempted``: a signal asked training to stop.
"""

_QUIET: set[EventKind] = {
    "store.reclaimed",
    "checkpoint.saved",
    "checkpoint.reconciled",
    "checkpoint.backed_up",
    "checkpoint.validated",
    "checkpoint.repaired",
    "checkpoint.thinned",
    "checkpoint.unthinned",
    "checkpoint.deleted",
    "checkpoint.metrics_added",
    "checkpoint.best_changed",
}


class Event(BaseModel):
    """An event about the checkpoints of an experiment."""

    model_config = ConfigDict(frozen=True)

    kind: EventKind
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    experiment_name: str
    store: str
    """Where the store of the experiment is: an absolute path or a URL, also for what happened to a backup."""
    checkpoint_id: str | None = None
    checkpoint: CheckpointMetadata | None = None
    """The checkpoint's metadata, in events about a checkpoint that is in the store or has just been deleted."""
    message: str
    key: str | None = None
    """The same in each event about the same change, where one may be emitted again; ``None`` for most kinds."""
    details: dict[str, Any] = {}
    """Plain values, such as numbers of bytes, paths, and the type and text of an error."""


Listener = Callable[[Event], object]

_listeners: list[Listener] = []


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call ``listener`` with every event of this process, on the thread of the event; return a function that stops it.

    The listener should be quick, since a save waits for it. Its errors are logged.
    """
    return _subscribe(_listeners, listener)


def _subscribe(listeners: list[Listener], listener: Listener) -> Callable[[], None]:
    listeners.append(listener)

    def unsubscribe() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return unsubscribe


class Events:
    """Emits the events of one manager: to the log, to its own listeners and to those of the process."""

    def __init__(self, experiment_name: str, store: str) -> None:
        self._experiment_name = experiment_name
        self._store = store
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` as :func:`subscribe` does, with the events of this manager alone."""
        return _subscribe(self._listeners, listener)

    def emit(
        self,
        kind: EventKind,
        message: str,
        *,
        checkpoint_id: str | None = None,
        checkpoint: CheckpointMetadata | None = None,
        key: str | None = None,
        **details: Any,
    ) -> None:
        """Log an event and tell every listener; never raises an ``Exception``."""
        try:
            event = Event(
                kind=kind,
                message=message,
                experiment_name=self._experiment_name,
                store=self._store,
                checkpoint_id=checkpoint.checkpoint_id if checkpoint else checkpoint_id,
                checkpoint=checkpoint,
                key=key,
                details=details,
            )
            level = logging.INFO if kind in _QUIET else logging.ERROR if kind == "save.failed" else logging.WARNING
            logger.log(level, "%s: %s", kind, message, extra={"event": event.model_dump(mode="json")})
        except Exception:  # nor because of a detail that is not plain
            logger.exception("the event %s could not be told: %s", kind, message)
            return
        for listener in (*self._listeners, *_listeners):
            try:
                listener(event)
            except Exception:  # training must not fail because of a listener
                logger.exception("a listener failed at %s", kind)
