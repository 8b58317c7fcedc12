"""The lock of a folder: whoever gives a name in it or takes one, on a condition, is the only one for that moment.

It is the kernel's lock of a file, so it ends with its process, and is never broken by age. It is held for the
microseconds that a comparison and a rename take, of 64 files at most. A process that is stopped while it holds it makes
the others wait.

The file also holds the time of the last write in the folder. Each write is dated after it, so that no two writes have
the same version, however coarse the clock is and whatever numbers of files are used again.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import time
from pathlib import Path
from typing import Self

from ckpt_lib.errors import StoreUnavailableError
from ckpt_lib.store.local.system import System

LOCK_NAME = "lock"
_RECORD_BYTES = 128
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.0002, 0.02


def open_lock(own: Path, system: System) -> io.FileIO:
    """Open the lock file in a store's own folder; create it. Closing it releases the lock."""
    path = own / LOCK_NAME
    try:
        return system.open(path, "r+")
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError), system.create(path):
            pass
        return system.open(path, "r+")


def last_date(own: Path, system: System) -> int | None:
    """Return the time of the last write in a folder, in nanoseconds; ``None`` while somebody writes there.

    Without the lock, a write that has its date may still have to take its name. Raises ``OSError`` where nobody has
    written under a lock, or nothing can be locked.
    """
    with system.open(own / LOCK_NAME, "r+") as file:
        if not system.try_lock(file):
            return None
        try:
            return _parsed(system.read_at(file, 0, _RECORD_BYTES))[0] or None
        finally:
            system.unlock(file)


class FolderLock:
    """The lock that goes with a file of :func:`open_lock`; used as a context inside of the file's own.

    Raises :class:`~ckpt_lib.errors.StoreUnavailableError` when it takes too long to get it.
    """

    def __init__(self, file: io.FileIO, system: System, patience_seconds: float) -> None:
        self._file = file
        self._system = system
        self._patience_seconds = patience_seconds
        self._last_nanoseconds = 0

    def __enter__(self) -> Self:
        self._wait()
        self._last_nanoseconds, holder = self._read()
        if holder != _this_process():
            with contextlib.suppress(OSError):  # on a full disk nobody is told who holds the lock
                self._write(self._last_nanoseconds)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing the file releases the lock as well, but where a fork has a copy of its descriptor.
        with contextlib.suppress(OSError):
            self._system.unlock(self._file)

    def date(self, file: io.FileIO, step_nanoseconds: int) -> None:
        """Give a file a time of writing after that of every other in the folder."""
        written = os.fstat(file.fileno()).st_mtime_ns
        if written <= self._last_nanoseconds:
            written = self._last_nanoseconds + step_nanoseconds
            self._system.set_modified(file, written)
        self._write(written)
        self._last_nanoseconds = written

    def _wait(self) -> None:
        deadline, pause = time.monotonic() + self._patience_seconds, _FIRST_PAUSE_SECONDS
        while not self._system.try_lock(self._file):
            if time.monotonic() > deadline:
                error = StoreUnavailableError(
                    f"the folder is locked by {self._read()[1] or 'another process'}",
                    path=str(self._file.name),
                    expected=f"the lock within {self._patience_seconds:g} s",
                    hint="It is held for microseconds: a process that holds it longer was stopped, or its disk hangs. "
                    "End it, or let it go on.",
                )
                error.may_have_happened = False
                raise error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        if os.fstat(self._file.fileno()).st_nlink == 0:  # others make a new one, and lock that
            raise StoreUnavailableError("the lock file was removed", path=str(self._file.name), hint="Try again.")

    def _read(self) -> tuple[int, str]:
        """Return the time of the last write, and who had the lock last."""
        return _parsed(self._system.read_at(self._file, 0, _RECORD_BYTES))

    def _write(self, nanoseconds: int) -> None:
        record = f"{nanoseconds} {_this_process()}".encode()[:_RECORD_BYTES]
        self._file.seek(0)
        self._system.write(self._file, memoryview(record.ljust(_RECORD_BYTES)))


def _parsed(record: bytes) -> tuple[int, str]:
    number, _, holder = record.decode(errors="replace").strip().partition(" ")
    return (int(number), holder) if number.isascii() and number.isdigit() else (0, "")


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"
