"""From an exit code, the last lines and the kernel's counters to how a command ended."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ckpt_lib.launch.report import Outcome

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = frozenset(signal.Signals)
_SHELL_BASE = 128
"""Shells, and ``save_on_signal``, report a signal as 128 and its number."""

_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|not enough memory: you tried to allocate|"
    r"DefaultCPUAllocator: can't allocate memory|std::bad_alloc|Cannot allocate memory|^MemoryError\b"
)
_RANK_EXIT = re.compile(r"^\s*exitcode\s*:\s*(-?\d+)\b")
_TORCHRUN_SIGNAL = re.compile(r"SignalException: Process \d+ got signal: (\d+)")
_TRACEBACK = "Traceback (most recent call last):"
_GOES_WITH_THE_LAST = re.compile(
    r"direct cause of the following exception|During handling of the above exception|^Exception ignored in"
)
_OF_TORCHRUN = "torch.distributed.elastic"
_RANK_PREFIX = re.compile(r"(?:\[\w+\]:\s?)*")
"""What PyTorch and ``torchrun --tee`` put before the lines of a rank."""
_ROOT_CAUSE = "Root Cause (first observed failure):"


class Ending(NamedTuple):
    """An outcome with what it was told by."""

    outcome: Outcome
    evidence: str


def classify(
    code: int | None, last_lines: Sequence[str], *, stop_reason: str | None, is_hung: bool, oom_kills: int
) -> Ending:
    """Tell how a command ended.

    ``stop_reason`` says why the launcher stopped it, if it did; ``is_hung``, that this was for want of checkpoints.
    ``oom_kills`` counts the processes that the kernel killed meanwhile for want of memory, ours or not.
    """
    if is_hung:
        return Ending("hung", stop_reason or "no new checkpoint")
    if stop_reason is not None:
        return Ending("preempted", stop_reason)  # with any exit code: many end with 0 when they are asked to
    if code is None:
        return Ending("killed", "its supervisor process was killed")
    if code == 0:
        return Ending("done", "exit code 0")
    return _from_failure(code, last_lines, oom_kills)


def _from_failure(code: int, last_lines: Sequence[str], oom_kills: int) -> Ending:
    number, told_by = _signal_of(code), f"exit code {code}"
    if number is None:
        number, told_by = _signal_from_torchrun(last_lines, told_by)
    name = signal.Signals(number).name if number is not None else ""
    if number in _STOP_SIGNALS:
        return Ending("preempted", f"{told_by}: {name} asked it to stop")
    if number == signal.SIGKILL and oom_kills:
        return Ending("out of memory", f"{told_by}: {name}, and the kernel has killed {oom_kills} for want of memory")
    if line := _line_about_memory(last_lines):
        return Ending("out of memory", f"{told_by}, and its output says: {line}")
    return Ending("killed", f"{told_by}: {name}") if name else Ending("failed", told_by)


def _signal_of(code: int) -> int | None:
    """Return the signal that an exit code stands for."""
    number = -code if code < 0 else code - _SHELL_BASE
    return number if (code < 0 or code > _SHELL_BASE) and number in _SIGNALS else None


def _signal_from_torchrun(last_lines: Sequence[str], otherwise: str) -> tuple[int | None, str]:
    """Return the signal that ended a rank, or torchrun itself, which ends with exit code 1 for both."""
    root_cause = next((at for at, line in enumerate(last_lines) if _ROOT_CAUSE in line), len(last_lines))
    for line in last_lines[root_cause:]:
        if found := _RANK_EXIT.search(line):
            number = _signal_of(int(found[1]))
            return number, f"torchrun reports exit code {found[1]} of a rank"
    for line in reversed(last_lines):
        if found := _TORCHRUN_SIGNAL.search(line):
            return int(found[1]), f"{otherwise}, and torchrun reports a signal"
    return None, otherwise


def _line_about_memory(last_lines: Sequence[str]) -> str | None:
    """Return the line by which a rank's last error was one of memory."""
    errors: dict[str, _LastError] = {}
    for line in last_lines:
        found = _RANK_PREFIX.match(line)
        prefix = found[0] if found else ""
        errors.setdefault(prefix, _LastError()).take(line.removeprefix(prefix))
    return next((error.about_memory for error in errors.values() if error.about_memory), None)


@dataclass
class _LastError:
    """Whether the last error in the lines of one process is about memory: a program may survive an earlier one."""

    about_memory: str | None = None
    _is_in_traceback: bool = False
    _is_new: bool = True
    """False for a traceback that goes with the one before."""

    def take(self, line: str) -> None:
        if _GOES_WITH_THE_LAST.search(line):
            self._is_new = False
        elif _TRACEBACK in line:
            self._is_in_traceback = True
        elif not self._is_in_traceback:
            self.about_memory = _shortened(line) or self.about_memory
        elif line[:1].strip():  # the source lines before the error itself are indented
            was_new, self._is_in_traceback, self._is_new = self._is_new, False, True
            if _OF_TORCHRUN not in line:
                self.about_memory = _shortened(line) or (None if was_new else self.about_memory)


def _shortened(line: str) -> str | None:
    return line.strip()[:200] if _OUT_OF_MEMORY.search(line) else None


def oom_kill_count() -> int:
    """Return how many processes the kernel has killed for want of memory, in this container or machine."""
    return max(_oom_kills(), default=0)


def _oom_kills() -> Iterator[int]:
    for path in (_memory_events(), Path("/proc/vmstat")):
        with suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    yield int(value)


def _memory_events() -> Path:
    """Return the counters of this process's control group: a container has its own limit of memory."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            hierarchy, _, group = line.split(":", 2)
            if hierarchy == "0":
                return Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events"
    return Path("/sys/fs/cgroup/memory.events")
