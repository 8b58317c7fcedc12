"""Files of a local folder that are open for reading."""

from __future__ import annotations

import errno
import io
import os
import stat

from ckpt_lib.store.directory import Directory
from ckpt_lib.store.os_errors import typed_errors


class LocalReader(io.FileIO):
    """An unbuffered regular file whose failures are those of the store."""

    def __init__(self, directory: Directory, name: str) -> None:
        self._path = directory.path / name
        # Without O_NONBLOCK, opening a pipe would wait for someone to write to it.
        descriptor = _without_links(directory, name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileNotFoundError(errno.ENOENT, "it is not a regular file", str(self._path))
            super().__init__(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        with typed_errors(self._path):
            return super().readinto(buffer) or 0

    def read(self, size: int | None = -1, /) -> bytes:
        with typed_errors(self._path):
            return super().read(-1 if size is None else size) or b""

    def readall(self) -> bytes:
        with typed_errors(self._path):
            return super().readall() or b""


def _without_links(directory: Directory, name: str, flags: int) -> int:
    """Open a file; links and devices are never ours, so a link is as if nothing were there."""
    try:
        return directory.open(name, flags)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise FileNotFoundError(errno.ENOENT, "it is not a regular file", str(directory.path / name)) from error
        raise
