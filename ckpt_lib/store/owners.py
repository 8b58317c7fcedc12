"""Who owns a lease: a process, told from every other one that ever had its number."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

_PROCESSES = Path("/proc")
_BOOT_ID = _PROCESSES / "sys/kernel/random/boot_id"
_GONE_STATES = {"Z", "X", "x"}


class Owner(BaseModel):
    """One process. ``system`` names the running system whose process numbers these are: a boot and a namespace."""

    model_config = ConfigDict(frozen=True)

    host: str
    system: str
    pid: int = Field(gt=0, lt=2**31)
    started: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Owner:
    """The process that asks."""
    pid = os.getpid()
    return Owner(host=platform.node(), system=_system(), pid=pid, started=_start(pid) or "")


def is_proven_dead(owner: Owner) -> bool:
    """Whether ``owner`` was a process of this system and is one no longer; of any other nothing can be proven."""
    # The host as well: clones of a virtual machine that was running have the same boot.
    if os.name != "posix" or (owner.system, owner.host) != (_system(), platform.node()):
        return False
    if owner.started and (started := _start(owner.pid)) is not None:
        return started != owner.started
    try:  # a process of which nothing is said may be another user's: only whether there is one can be asked
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _system() -> str:
    """What two processes have in common that can see each other's numbers.

    Containers may share the name of a host and not its numbers; a host keeps its name when it boots anew.
    """
    try:
        boot = _BOOT_ID.read_bytes().strip().decode()  # a text file would look for a codec, too late at exit
        return f"{boot}/{os.stat(_PROCESSES / 'self/ns/pid').st_ino}"
    except OSError:  # no Linux
        return platform.node()


def _start(pid: int) -> str | None:
    """When a process began, in ticks since boot, or that it has ended; ``None`` where no one tells."""
    try:
        status = (_PROCESSES / str(pid) / "stat").read_bytes()
        # The name, in parentheses, may hold anything; what follows it does not.
        fields = status[status.rindex(b")") + 2 :].decode().split()
        if fields[0] in _GONE_STATES and len(os.listdir(_PROCESSES / str(pid) / "task")) <= 1:
            return "ended"  # and not yet asked for by its parent; with more tasks, threads are still at work
        return fields[19]
    except (OSError, ValueError, IndexError):
        return None
