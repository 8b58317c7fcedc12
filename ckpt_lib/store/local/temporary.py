"""Files that have no key yet. They lie in the folder's own folder, and their writers keep them locked.

So a file that can be locked is what a dead process left, and whoever begins an upload there removes it. Where the
kernel's locks do not work, only age tells: such a file goes when it is a day old by the store's clock.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path

from ckpt_lib.store.local.probe import TEMPORARY_SUFFIX
from ckpt_lib.store.local.system import System

LEFT_AFTER_SECONDS = 24 * 3600


def create_temporary(own: Path, system: System, *, locks: bool) -> io.FileIO:
    """Create an empty file, locked where the kernel's locks work. Raises ``OSError``, and leaves nothing then."""
    while True:
        file = system.create(own / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        try:
            if not locks or (system.try_lock(file) and os.fstat(file.fileno()).st_nlink):
                return file
        except BaseException:
            discard(file, system)
            raise
        file.close()  # somebody took it for abandoned, before it was locked


def path_of(file: io.FileIO) -> Path:
    """Return the path under which a file was created."""
    return Path(os.fsdecode(file.name) if isinstance(file.name, bytes) else str(file.name))


def discard(file: io.FileIO, system: System) -> None:
    """Close and remove a file, unless it was closed before. Never raises ``OSError``."""
    if file.closed:
        return
    with contextlib.suppress(OSError):
        if not system.is_windows:  # first, while it is locked: nobody else removes it then
            system.unlink(path_of(file))
    with contextlib.suppress(OSError):
        file.close()
    with contextlib.suppress(OSError):
        if system.is_windows:
            system.unlink(path_of(file))


def sweep_abandoned(own: Path, system: System) -> None:
    """Remove what dead processes left. Never raises ``OSError``: what stays goes another time."""
    for path, _ in _temporary_files(own, system):
        with contextlib.suppress(OSError):
            _remove_if_abandoned(path, system)


def sweep_old(own: Path, system: System, *, now_seconds: float) -> None:
    """Remove what is so old that nobody writes it any more. Never raises ``OSError``."""
    for path, found in _temporary_files(own, system):
        if now_seconds - found.st_mtime > LEFT_AFTER_SECONDS:
            with contextlib.suppress(OSError):
                system.unlink(path)


def _temporary_files(own: Path, system: System) -> list[tuple[Path, os.stat_result]]:
    try:
        return [(own / name, found) for name, found in system.scan(own) if name.endswith(TEMPORARY_SUFFIX)]
    except OSError:
        return []


def _remove_if_abandoned(path: Path, system: System) -> None:
    with system.open(path, "r+") as file:
        if not system.try_lock(file):
            return
        if system.is_windows:
            file.close()
        system.unlink(path)
