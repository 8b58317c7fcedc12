"""Events about checkpoints, for people and programs that watch a training.

Each event is logged by the logger ``ckpt_lib.events``, with the event as ``record.event``, and passed to every
listener. An error of a listener never fails the save.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

logger = logging.getLogger("ckpt_lib.events")

EventKind = Literal[
    "save.retried",
    "save.degraded",
    "save.failed",
    "store.full",
    "store.reclaimed",
    "checkpoint.stranded",
    "checkpoint.reconciled",
    "training.preempted",
]
"""The kinds of events.

- ``save.retried``: the store did not answer, and the save is retried.
- ``save.degraded``: the store failed, and the save goes to the fallback folder.
- ``save.failed``: nothing was saved.
- ``store.full``: there was too little space for a save.
- ``store.reclaimed``: checkpoints were deleted to free space.
- ``checkpoint.stranded``: a checkpoint was saved to the fallback folder.
- ``checkpoint.reconciled``: it was moved to the store.
- ``training.preempted``: a signal asked training to stop.
"""

_QUIET: set[EventKind] = {"store.reclaimed", "checkpoint.reconciled"}


class Event(BaseModel):
    """An event about the checkpoints of an experiment."""

    model_config = ConfigDict(frozen=True)

    kind: EventKind
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    experiment_name: str
    checkpoint_id: str | None = None
    message: str
    details: dict[str, Any] = {}
    """Plain values, such as numbers of bytes, paths, and the type and text of an error."""


Listener = Callable[[Event], object]

_listeners: list[Listener] = []


def subscribe(listener: Listener) -> Callable[[], None]:
    """Call ``listener`` with every event of this process, on the thread of the event; return a function that stops it.

    The listener should be quick, since a save waits for it. Its errors are logged.
    """
    _listeners.append(listener)

    def unsubscribe() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return unsubscribe


def emit(
    kind: EventKind, message: str, *, experiment_name: str, checkpoint_id: str | None = None, **details: Any
) -> None:
    """Log an event and tell every listener; never raises an ``Exception``."""
    assert kind in get_args(EventKind)
    event = Event(
        kind=kind, message=message, experiment_name=experiment_name, checkpoint_id=checkpoint_id, details=details
    )
    level = logging.INFO if kind in _QUIET else logging.ERROR if kind == "save.failed" else logging.WARNING
    logger.log(level, "%s: %s", kind, message, extra={"event": event.model_dump(mode="json")})
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:  # training must not fail because of a listener
            logger.exception("a listener failed at %s", kind)
