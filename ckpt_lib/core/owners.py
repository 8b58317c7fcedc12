"""Tells which process wrote something, from every other one that ever had its number."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

_PROCESSES = Path("/proc")
_BOOT_ID = _PROCESSES / "sys/kernel/random/boot_id"
_GONE_STATES = {"Z", "X", "x"}


class Owner(BaseModel):
    """One process.

    ``system`` names the running system that gave it its number, a boot and a namespace; ``started`` is when it began.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    system: str
    pid: int = Field(gt=0, lt=2**31)
    started: str

    @classmethod
    def current(cls) -> Self:
        """Describe the process that asks."""
        pid = os.getpid()
        return cls(host=platform.node(), system=_system(), pid=pid, started=_start(pid) or "")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def is_proven_dead(owner: Owner) -> bool:
    """Tell whether ``owner`` was a process of this system and has ended; of any other nothing can be proven."""
    # Compare the host as well: clones of a running virtual machine have the same boot.
    if os.name != "posix" or (owner.system, owner.host) != (_system(), platform.node()):
        return False
    if owner.started and (started := _start(owner.pid)) is not None:
        return started != owner.started
    try:  # /proc may hide other users' processes (hidepid): ask whether there is one of that number
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _system() -> str:
    """Name what processes have in common that can see each other's numbers: a boot and a namespace.

    The name of the host is not enough: containers may share it, and a host keeps it when it boots anew.
    """
    try:
        boot = _BOOT_ID.read_bytes().strip().decode()  # a text file would look for a codec, too late at exit
        return f"{boot}/{os.stat(_PROCESSES / 'self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return platform.node()


def _start(pid: int) -> str | None:
    """Return when a process began, in ticks since boot, or ``"ended"``; ``None`` where the system does not tell."""
    try:
        status = (_PROCESSES / str(pid) / "stat").read_bytes()
        # The name, in parentheses, may hold anything; what follows it does not.
        fields = status[status.rindex(b")") + 2 :].decode().split()
        if fields[0] in _GONE_STATES and len(os.listdir(_PROCESSES / str(pid) / "task")) <= 1:
            return "ended"  # a zombie; one with more tasks has threads that are still at work
        return fields[19]
    except (OSError, ValueError, IndexError):
        return None
