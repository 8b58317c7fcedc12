"""Events: what happened to checkpoints that a person or a program beside the training may want to react to.

Each goes to the log, as a record of the logger ``ckpt_lib.events`` that carries it as ``record.event``, and to every
listener. Neither can fail what the event is about.
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
"""What can happen.

- ``save.retried``: the store did not answer, and is asked again.
- ``save.degraded``: the store failed, and the save goes to the fallback folder.
- ``save.failed``: nothing was saved.
- ``store.full``, ``store.reclaimed``: there was too little room, and what was deleted to make more.
- ``checkpoint.stranded``, ``checkpoint.reconciled``: it is in the fallback folder, and now in the store.
- ``training.preempted``: a signal asked training to stop.
"""

_QUIET: set[EventKind] = {"store.reclaimed", "checkpoint.reconciled"}


class Event(BaseModel):
    """Something that happened to the checkpoints of an experiment."""

    model_config = ConfigDict(frozen=True)

    kind: EventKind
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    experiment_name: str
    checkpoint_id: str | None = None
    message: str
    details: dict[str, Any] = {}
    """Plain values: numbers of bytes, the type and text of an error, paths."""


Listener = Callable[[Event], object]

_listeners: list[Listener] = []


def subscribe(listener: Listener) -> Callable[[], None]:
    """Have ``listener`` called with every event of this process, on its thread; returns a function that ends that.

    It should be quick: a save waits for it. Its errors are logged.
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
        except Exception:  # whatever it is, training must not hear of it
            logger.exception("a listener failed at %s", kind)
