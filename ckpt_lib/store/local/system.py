"""The calls of the operating system that the local store makes, in one place.

A test that needs another system, or one that fails, passes its own :class:`System`.

Open files are ``io.FileIO`` objects: they close their descriptor when nothing refers to them any more, and a ``with``
of one ends in C. So an interrupt at any moment leaves no descriptor open, and no lock held, which goes with it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_BUSY_ON_WINDOWS = {5, 32, 33}
"""What Windows says of a file that someone has open: access denied, sharing violation, lock violation."""
_RESERVED_ON_WINDOWS = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[. ]|.*[<>:\"|?*].*", re.IGNORECASE)
_LOCKED_BYTE = 2**30
"""The byte that is locked on Windows, where a locked byte cannot be read: beyond all that a lock file holds."""

_locked_files: dict[int, weakref.ref[io.FileIO]] = {}
"""By descriptor, whose number the next file takes over. No reference has a callback: an interrupt in one is lost."""


def _close_locked_files() -> None:
    """Close what a fork has inherited: a lock ends when the last copy of its descriptor is closed."""
    for reference in list(_locked_files.values()):
        if (file := reference()) is not None:
            with contextlib.suppress(OSError):
                file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locked_files)


class System:
    """This machine. Every method raises ``OSError``."""

    is_windows = os.name == "nt"
    """Open files can be neither renamed nor deleted, some names are reserved, and folders need no fsync."""
    busy_seconds = 2.0
    """The time to wait, on Windows, until a file that is to be replaced or deleted is closed."""

    def create(self, path: Path) -> io.FileIO:
        """Create a file for writing and reading."""
        return io.FileIO(path, "x+")

    def open(self, path: Path, mode: str = "r") -> io.FileIO:
        """Open a regular file. A link or a device is never ours, so it is as if nothing were there."""
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise FileNotFoundError(errno.ENOENT, "it is not a regular file", str(path))
        return io.FileIO(path, mode)

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write some of ``data`` and return how much that was."""
        return os.write(file.fileno(), data)

    def read_at(self, file: io.FileIO, start: int, size_bytes: int) -> bytes:
        """Read some of the bytes from ``start`` on; none at the end."""
        if sys.platform != "win32":
            return os.pread(file.fileno(), size_bytes, start)
        # Every other use of the position is by the thread that writes the file.
        file.seek(start)
        return file.read(size_bytes)

    def fsync(self, file: io.FileIO) -> None:
        os.fsync(file.fileno())

    def fsync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable. Windows does so with the files."""
        if self.is_windows:
            return
        descriptors: list[int] = []
        try:
            try:
                # One call, so that no interrupt can come between the opening and the list.
                descriptors.extend(map(os.open, [folder], [os.O_RDONLY]))
                os.fsync(descriptors[0])
            finally:
                _close_all(descriptors)
        finally:
            _close_all(descriptors)  # once more, if an interrupt came in between

    def lstat(self, path: Path) -> os.stat_result:
        return os.lstat(path)

    def scan(self, folder: Path) -> Iterator[tuple[str, os.stat_result]]:
        """List names and what ``lstat`` says of them, without those that vanish meanwhile."""
        with os.scandir(folder) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    # On Windows the listing does not know the number of a file.
                    yield item.name, os.lstat(item.path) if self.is_windows else item.stat(follow_symlinks=False)

    def names(self, folder: Path) -> list[str]:
        return os.listdir(folder)

    def mkdir(self, folder: Path) -> None:
        os.mkdir(folder)

    def rmdir(self, folder: Path) -> None:
        os.rmdir(folder)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name, which must be free."""
        os.link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing what has the name."""
        self._when_closed(os.replace, source, target)

    def unlink(self, path: Path) -> None:
        self._when_closed(os.unlink, path)

    def set_modified(self, file: io.FileIO, nanoseconds: int) -> None:
        """Set the time at which a file was last written."""
        target = file.fileno() if os.utime in os.supports_fd else str(file.name)
        os.utime(target, ns=(nanoseconds, nanoseconds))

    def try_lock(self, file: io.FileIO) -> bool:
        """Lock a file for this object alone, whoever else has it open; return whether nobody else had it locked."""
        _locked_files[file.fileno()] = weakref.ref(file)
        try:
            if sys.platform == "win32":
                os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self, file: io.FileIO) -> None:
        """Unlock a file, also for forks that were made while it was opened."""
        if sys.platform == "win32":
            os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)

    def takes_name(self, name: str) -> bool:
        """Tell whether a file can have this name."""
        return not (self.is_windows and _RESERVED_ON_WINDOWS.fullmatch(name))

    def _when_closed(self, change: Callable[..., None], *paths: Path) -> None:
        """Make a change of names; on Windows, wait for others to close the files."""
        deadline = time.monotonic() + self.busy_seconds
        while True:
            try:
                return change(*paths)
            except OSError as error:
                if getattr(error, "winerror", None) not in _BUSY_ON_WINDOWS:
                    raise
                if time.monotonic() >= deadline:
                    raise OSError(errno.EBUSY, "a program has the file open", error.filename) from error
            time.sleep(0.01)


def _close_all(descriptors: list[int]) -> None:
    """Close and forget descriptors, each in one step that no interrupt divides."""
    with contextlib.suppress(IndexError):
        deque(map(os.close, iter(descriptors.pop, None)), maxlen=0)
