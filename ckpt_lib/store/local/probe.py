"""What a file system can do, found out by trying it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ckpt_lib.store.local.system import System

TEMPORARY_SUFFIX = ".tmp"
"""How the names of files end that nobody needs when their writer is dead."""
IMPOSSIBLE = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EMLINK}
"""How systems say that they cannot do something at all."""
_STEPS_NANOSECONDS = (1, 100, 1000)
"""How finely file systems keep time: most do so to the nanosecond, NTFS and SMB to 100, some to the microsecond."""
_TIME_NANOSECONDS = 1_700_000_000_000_000_000


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """The abilities of a folder's file system."""

    locks: bool
    """The kernel's locks exclude."""
    links: bool
    """A file can have two names."""
    time_step_nanoseconds: int | None
    """The least by which two times of files can differ; ``None`` where versions cannot be told by them."""

    @property
    def has_versions(self) -> bool:
        """True when every write can be given a version of its own."""
        return self.locks and self.time_step_nanoseconds is not None


USUAL = Abilities(locks=True, links=True, time_step_nanoseconds=1)


def probe(own: Path, system: System) -> Abilities:
    """Try what can be done in a store's own folder. Raises ``OSError`` when that cannot be told now."""
    path = own / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    other = own / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        with system.create(path) as file:
            locks = _is_possible(partial(_excludes, path, file, system))
            step = next(
                (step for step in _STEPS_NANOSECONDS if _is_possible(partial(_keeps, step, file, system))), None
            )
            links = _is_possible(partial(_links, path, other, system))
    finally:
        for name in (path, other):
            with contextlib.suppress(OSError):
                system.unlink(name)
    return Abilities(locks=locks, links=links, time_step_nanoseconds=step)


def _is_possible(attempt: Callable[[], bool]) -> bool:
    try:
        return attempt()
    except OSError as error:
        if error.errno not in IMPOSSIBLE:  # a full disk, say, or one that failed
            raise
        return False


def _excludes(path: Path, file: io.FileIO, system: System) -> bool:
    """Tell whether a lock that this process has keeps it from another one: some file systems only say yes."""
    with system.open(path, "r+") as again:
        return system.try_lock(file) and not system.try_lock(again)


def _links(path: Path, other: Path, system: System) -> bool:
    system.link(path, other)
    return True


def _keeps(step: int, file: io.FileIO, system: System) -> bool:
    wanted = _TIME_NANOSECONDS + step
    system.set_modified(file, wanted)
    return os.fstat(file.fileno()).st_mtime_ns == wanted
