"""A file system of a chosen size, mounted in a namespace of a process's own: no rights are needed for that on Linux."""

from __future__ import annotations

import ctypes
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_REMOUNT = 32
_MNT_DETACH = 2


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _enter_namespace() -> None:
    """Become root of a new user and mount namespace; this process may have one thread only."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


@contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """An empty file system of so many bytes, in whole pages; only inside of :func:`in_namespace`."""
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size_bytes}".encode())
    try:
        yield folder
    finally:
        _call("umount2", os.fsencode(folder), _MNT_DETACH)


def resize(folder: Path, size_bytes: int) -> None:
    """Make the file system that :func:`tmpfs` mounted there larger or smaller."""
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", _MS_REMOUNT, f"size={size_bytes}".encode())


def in_namespace(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a fork of this process that may mount; raises ``RuntimeError`` with its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            try:
                _enter_namespace()
                answer = (True, work())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(data) if data else (False, "the process in the namespace died")
    if not succeeded:
        raise RuntimeError(value)
    return value
