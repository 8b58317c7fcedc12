"""Runs something hostile in a child that may neither take long nor much memory, and says how it ended."""

from __future__ import annotations

import resource
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ckpt_lib.errors import CheckpointError
from tests.torture.processes import ChildError, result_of

MAX_SECONDS = 4.0
"""Of the processor. A bare pickle of dicts took 2.2 s beside another program on the same core."""
MAX_EXTRA_BYTES = 2**30
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How an action ended: ``"returned"``, ``"refused"`` by an error of ours, or otherwise, which no action may."""

    kind: str
    what: str = ""
    cpu_seconds: float = 0.0
    extra_bytes: int = 0

    def broken_promise(self) -> str | None:
        """What went wrong, whatever the action was."""
        if self.kind not in {"returned", "refused"}:
            return f"{self.kind}: {self.what}"
        if self.cpu_seconds > MAX_SECONDS:
            return f"took {self.cpu_seconds:.1f} s to be {self.kind}"
        if self.extra_bytes > MAX_EXTRA_BYTES:
            return f"took {self.extra_bytes / 2**20:.0f} MiB to be {self.kind}"
        return None


def run_in_child(action: Callable[[], object]) -> Ending:
    """Call ``action`` in a child, and wait. Time is the processor's: others may keep the machine busy."""
    try:
        return Ending(*result_of(_act, action, timeout_seconds=_PATIENCE_SECONDS))
    except ChildError as error:
        return Ending("died", str(error))


def _act(action: Callable[[], object]) -> tuple[str, str, float, int]:
    before, start = _peak_bytes(), time.process_time()
    try:
        _reset_peak()
        before = _peak_bytes()
        action()
        kind, what = "returned", ""
    except CheckpointError as error:
        kind, what = "refused", f"{type(error).__name__}: {error.message[:200]}"
    except BaseException:
        kind, what = "raised", traceback.format_exc()[-600:]
    return kind, what, time.process_time() - start, _peak_bytes() - before


def _peak_bytes() -> int:
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _reset_peak() -> None:
    """The child is born with its parent's peak."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as control:
        control.write("5")
