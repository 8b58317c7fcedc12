"""Final states of flow runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from prefect import get_run_logger
from prefect.states import Completed

from ckpt_lib.errors import StoreError
from ckpt_lib.reports import CleanupReport

R = TypeVar("R")

KEPT_RESULT: dict[str, Any] = {"persist_result": True, "result_serializer": "json"}
"""Options of flows that end by :func:`completed`: Prefect stores what they return.

The server may accept the final state without its answer arriving. The client asks again, and then gets the state as
the server has it, which does not hold the result itself but says where it is stored.
"""


def completed(result: R, message: str) -> R:
    """Log ``message`` and make it the message of the final state; the flow returns ``result`` to its caller."""
    get_run_logger().info(message)
    return cast(R, Completed(data=result, message=message))


def fail_on_backups(reports: Mapping[str, CleanupReport]) -> None:
    """Raise :class:`~ckpt_lib.errors.StoreError` if the backups of an experiment could not be cleaned up."""
    failed = [f"{name}: {report.backups_error}" for name, report in reports.items() if report.backups_error]
    if failed:
        raise StoreError(
            f"the backups of {len(failed)} of {len(reports)} experiments were not cleaned up: {'; '.join(failed)}",
            hint="Check the backup location; the next run cleans up the rest.",
        )
