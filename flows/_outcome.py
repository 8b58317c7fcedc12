"""The final state of a flow run, which says what was found."""

from __future__ import annotations

from typing import TypeVar, cast

from prefect import get_run_logger
from prefect.states import Completed

R = TypeVar("R")


def completed(result: R, message: str) -> R:
    """Log ``message`` and make it that of the run's final state; what the flow returns to its caller is ``result``."""
    get_run_logger().info(message)
    return cast(R, Completed(data=result, message=message))
