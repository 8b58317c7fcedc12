"""What a file system can do, found out by trying it."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ckpt_lib.store.local.system import System

PROBE_PREFIX = "probe-"
_STEPS_NANOSECONDS = (1, 100, 1000)
"""How finely file systems keep time: most do so to the nanosecond, NTFS and SMB to 100, some to the microsecond."""
_TIME_NANOSECONDS = 1_700_000_000_000_000_000


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What the file system of a folder can do."""

    locks: bool
    """The kernel's locks exclude."""
    links: bool
    """A file can have two names."""
    time_step_nanoseconds: int | None
    """The least by which two times of files can differ; ``None`` where versions cannot be told by them."""

    @property
    def has_versions(self) -> bool:
        """Whether every write can be given a version of its own."""
        return self.locks and self.time_step_nanoseconds is not None


USUAL = Abilities(locks=True, links=True, time_step_nanoseconds=1)


def probe(own: Path, system: System) -> Abilities:
    """Try what can be done in a store's own folder. Raises ``OSError`` when nothing can be written there."""
    path = own / f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    other = path.with_suffix(".link")
    try:
        with system.create(path) as file:
            step = next((step for step in _STEPS_NANOSECONDS if _keeps(step, file, system)), None)
            locks = _works(lambda: system.try_lock(file)) and _excludes(path, system)
            links = _links(path, other, system)
    finally:
        for name in (path, other):
            with contextlib.suppress(OSError):
                system.unlink(name)
    return Abilities(locks=locks, links=links, time_step_nanoseconds=step)


def _works(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except OSError:
        return False


def _excludes(path: Path, system: System) -> bool:
    """Tell whether a lock that this process has keeps it from another one: some file systems only say yes."""
    with system.open(path, "r+") as again:
        return _works(lambda: not system.try_lock(again))


def _links(path: Path, other: Path, system: System) -> bool:
    try:
        system.link(path, other)
    except OSError:
        return False
    return True


def _keeps(step: int, file: io.FileIO, system: System) -> bool:
    wanted = _TIME_NANOSECONDS + step
    try:
        system.set_modified(file, wanted)
    except OSError:
        return False
    return os.fstat(file.fileno()).st_mtime_ns == wanted
