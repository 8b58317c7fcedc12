"""Processes of this machine, as ``/proc`` of Linux lists them.

The supervisor imports it, so it uses the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_PAUSE_SECONDS = 0.1


class Process(NamedTuple):
    """One entry of the table; ``started``, in ticks since boot, tells it from others that get its number later."""

    pid: int
    parent: int
    group: int
    session: int
    started: str
    has_ended: bool

    @property
    def key(self) -> tuple[int, str]:
        """What stays the same when the process gets another parent, or moves to another group."""
        return self.pid, self.started


def table() -> dict[int, Process]:
    """Return every process by its number, also those that have ended and were not waited for."""
    found = (read(int(entry.name)) for entry in os.scandir(_PROC) if entry.name.isdigit())
    return {process.pid: process for process in found if process}


def descendants(ancestor: int, processes: Iterable[Process]) -> list[Process]:
    """Return the children of a process, their children and so on, that have not ended."""
    children: dict[int, list[Process]] = {}
    for process in processes:
        children.setdefault(process.parent, []).append(process)
    found, waiting = [], [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return [process for process in found if not process.has_ended]


def with_variable(name: str, value: str) -> list[Process]:
    """Return the processes that were started with this environment variable, but for this one and its ancestors."""
    everyone = table()
    own, pid = set(), os.getpid()
    while pid in everyone:
        own.add(pid)
        pid = everyone[pid].parent
    entry = os.fsencode(f"{name}={value}")
    # The environment of a process that has ended is empty.
    return [process for pid, process in everyone.items() if pid not in own and entry in _environment(pid)]


def with_session(leader: Process) -> list[Process]:
    """Return what is left of the session of a process, which may have ended, and the descendants of that."""
    everyone = table()
    current = everyone.get(leader.pid)
    if current is not None and current.key != leader.key:  # the number was free, so nothing was left
        return []
    members = [process for process in everyone.values() if process.session == leader.pid]
    below = [process for member in members for process in descendants(member.pid, everyone.values())]
    return [process for process in {*members, *below} if not process.has_ended]


def send(processes: Iterable[Process], number: int) -> None:
    """Send a signal to each process that has not ended."""
    for process in processes:
        if _is_same(process):  # another one may have got its number since the table was read
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def stop_all(find: Callable[[], Iterable[Process]], deadline_seconds: float) -> int:
    """End the processes that ``find`` finds, now or later: SIGTERM, and SIGKILL after the deadline.

    One that is no longer found, since its parent has ended, is remembered. Returns how many there were when it began,
    once none is left.
    """
    found = {process.key: process for process in find()}
    count, deadline, told = len(found), time.monotonic() + deadline_seconds, set[tuple[int, str]]()
    while found:
        late = time.monotonic() > deadline
        untold = [process for key, process in found.items() if key not in told]
        send(found.values() if late else untold, signal.SIGKILL if late else signal.SIGTERM)
        told |= found.keys()
        time.sleep(_PAUSE_SECONDS)
        found = {key: process for key, process in found.items() if _is_alive(process)}
        found |= {process.key: process for process in find()}
    return count


def _is_alive(process: Process) -> bool:
    current = read(process.pid)
    return current is not None and current.key == process.key and not current.has_ended


def _is_same(process: Process) -> bool:
    """Return whether the number still stands for this process, which may have another parent by now."""
    current = read(process.pid)
    return current is not None and current.key == process.key


def read(pid: int) -> Process | None:
    """Return one entry of the table; ``None`` when there is none."""
    try:
        status = (_PROC / str(pid) / "stat").read_bytes()
        # The name, in parentheses, may hold anything; what follows it does not.
        state, parent, group, session, *others = status[status.rindex(b")") + 2 :].decode().split()
        # A zombie with more than one task has threads that are still at work.
        has_ended = state in "ZXx" and len(os.listdir(_PROC / str(pid) / "task")) <= 1
        return Process(pid, int(parent), int(group), int(session), others[15], has_ended)
    except (OSError, ValueError):  # it is gone
        return None


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is somebody else's
        return []
