"""The final state of a flow run, which says what was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from prefect import get_run_logger
from prefect.states import Completed

from ckpt_lib import CleanupReport
from ckpt_lib.errors import StoreError

R = TypeVar("R")


def completed(result: R, message: str) -> R:
    """Log ``message`` and make it that of the run's final state; what the flow returns to its caller is ``result``."""
    get_run_logger().info(message)
    return cast(R, Completed(data=result, message=message))


def fail_on_backups(reports: Mapping[str, CleanupReport]) -> None:
    """Raise :class:`~ckpt_lib.errors.StoreError` when a cleanup could not clean up the backups of an experiment."""
    failed = [f"{name}: {report.backups_error}" for name, report in reports.items() if report.backups_error]
    if failed:
        raise StoreError(
            f"the backups of {len(failed)} of {len(reports)} experiments were not cleaned up: {'; '.join(failed)}",
            hint="See to the backup location; the next run cleans up what is left.",
        )
