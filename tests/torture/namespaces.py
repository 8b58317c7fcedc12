"""A file system of a chosen size, mounted in a namespace of a process's own: no rights are needed for that on Linux."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096
_MNT_DETACH = 2
_WORK_SECONDS = 45 * 60.0
"""As long as a whole row may take."""


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_namespace() -> None:
    """Become root of a new user and mount namespace.

    This process may have one thread only: do it before anything is imported that starts some, as NumPy does.
    """
    user, group = os.getuid(), os.getgid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


@contextmanager
def mounted(source: Path, folder: Path) -> Iterator[Path]:
    """See ``source`` at ``folder``, too; only inside of a namespace, as all that follows."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", os.fsencode(source), os.fsencode(folder), None, _MS_BIND, None)
    try:
        yield folder
    finally:
        _call("umount2", os.fsencode(folder), _MNT_DETACH)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written to the file system that :func:`tmpfs` mounted there, while the context lasts."""
    _call("mount", None, os.fsencode(folder), None, _MS_REMOUNT | _MS_RDONLY, None)
    try:
        yield
    finally:
        _call("mount", None, os.fsencode(folder), None, _MS_REMOUNT, None)


@contextmanager
def tmpfs(folder: Path, size_bytes: int = 0, inodes: int = 0) -> Iterator[Path]:
    """An empty file system of so many bytes, in whole pages, and so many inodes; 0 for as many as there may be."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, _limits(size_bytes, inodes))
    try:
        yield folder
    finally:
        _call("umount2", os.fsencode(folder), _MNT_DETACH)


def resize(folder: Path, size_bytes: int = 0, inodes: int = 0) -> None:
    """Make the file system that :func:`tmpfs` mounted there larger or smaller."""
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", _MS_REMOUNT, _limits(size_bytes, inodes))


def _limits(size_bytes: int, inodes: int) -> bytes:
    """The options that set a limit: a system tells nothing of its space where it is told that there is none."""
    limits = {"size": size_bytes, "nr_inodes": inodes}
    return ",".join(f"{name}={limit}" for name, limit in limits.items() if limit).encode()


def in_namespace(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a fork of this process that may mount. Raises ``RuntimeError`` with its traceback."""
    from tests.torture.processes import result_of  # with torch, whose threads keep who imports it out of a namespace

    def entered() -> Any:
        enter_namespace()
        return work()

    return result_of(entered, timeout_seconds=_WORK_SECONDS)
