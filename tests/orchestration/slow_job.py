"""The flow of jobs, where a validation takes as long as it is let: for tests that end it in the middle."""

import time
from typing import Any

from ckpt_lib.web.operations import Validate
from prefect_checkpoints.flows import checkpoint_job

__all__ = ["checkpoint_job"]


def _slowly(_self: Validate, _manager: Any, _checkpoint_id: str, progress: Any) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        progress(1)
        time.sleep(0.05)


Validate.do_one = _slowly  # type: ignore[method-assign,assignment]
