"""Functions that tests evaluate checkpoints with, in processes of their own too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckpt_lib.events import EventKind, subscribe

NOT_A_FUNCTION = 1
FAILURES = {"returns a list": [0.9], "returns nothing": {}, "returns text": "0.9", "returns a bad value": {"a": [1]}}


def accuracy(payload: Mapping[str, Any], *, value: float | None = None) -> dict[str, float]:
    """A metric that depends on the weights, or ``value``."""
    return {"accuracy": float(payload["model_state_dict"]["weight"].mean()) if value is None else value}


def other(payload: Mapping[str, Any]) -> dict[str, float]:
    """A metric that :func:`accuracy` does not measure."""
    return {"other": float(payload["epoch"])}


def accuracy_by_epoch(
    payload: Mapping[str, Any], log: str, wait: str | None = None, die_at: EventKind | None = None
) -> dict[str, float]:
    """Half an epoch's number; notes that it ran and, the first time, waits until ``wait`` exists.

    With ``die_at``, the process of the first time is killed when it tells of an event of that kind.
    """
    is_first = not Path(log).exists()
    with Path(log).open("a") as file:
        file.write(f"{payload['checkpoint_id']} {os.getpid()}\n")
    while is_first and wait is not None and not Path(wait).exists():
        time.sleep(0.1)
    if is_first and die_at is not None:
        subscribe(lambda event: os.kill(os.getpid(), signal.SIGKILL) if event.kind == die_at else None)
    return {"accuracy": payload["epoch"] / 2}


def different_each_time(payload: Mapping[str, Any], *, values: list[float]) -> dict[str, float]:
    """One value after the other, as an evaluation that depends on chance."""
    return {"accuracy": values.pop(0)}


def fails(payload: Mapping[str, Any], how: str) -> Any:
    """No metrics, in some way."""
    if how in FAILURES:
        return FAILURES[how]
    raise RuntimeError("CUDA out of memory")


class Holder:
    """Holds a function."""

    accuracy = staticmethod(accuracy)
