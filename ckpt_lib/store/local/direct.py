"""Writing around the page cache: a training run's memory need not hold a checkpoint twice, nor lose other files for it.

Direct I/O (``O_DIRECT``) moves whole, aligned blocks from our memory to the disk, so that nothing is left to be flushed
at the end. Where there is none, or the file system refuses it, bytes go through the page cache as usual; then the
kernel is told after each large write to begin writing it back, and at the end to let go of it.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from ckpt_lib.store.local.system import System
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.page_cache import forget

_ALIGNMENT_BYTES = 4096
_LARGE_BYTES = 2**20
"""Smaller writes go through the page cache: there is nothing to win, and small files are soon read again."""


class Output:
    """Appends to an open, empty file. Every method raises ``OSError``."""

    def __init__(self, file: io.FileIO, system: System) -> None:
        self._file = file
        self._system = system
        self._direct_is_worth_trying = True
        self._cached_large_writes = False
        self.size_bytes = 0

    def write(self, data: Buffer) -> int:
        """Append all of ``data``."""
        view = memoryview(data).cast("B")
        size_bytes = len(view)
        if size_bytes >= _LARGE_BYTES:
            view = view[self._write_direct(view) :]
            self._cached_large_writes |= bool(view)
        self._write_cached(view)
        return size_bytes

    def sync(self) -> None:
        """Make everything durable."""
        found = os.fstat(self._file.fileno()).st_size
        if found != self.size_bytes:
            raise OSError(errno.EIO, f"the file system kept {found} of {self.size_bytes} bytes")
        self._system.fsync(self._file)
        if self._cached_large_writes:
            forget(self._file.fileno(), 0, 0)

    def _write_direct(self, data: memoryview) -> int:
        """Write the whole blocks of ``data`` and return how many bytes that were: 0 where it is not possible."""
        written, wanted = 0, len(data) - len(data) % _ALIGNMENT_BYTES
        while written < wanted:
            # A short write may end within a block.
            self._direct_is_worth_trying &= self.size_bytes % _ALIGNMENT_BYTES == 0
            if not (self._direct_is_worth_trying and _set_direct(self._file.fileno(), True)):
                break
            try:
                count = self._system.write(self._file, data[written:wanted])
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                    raise
                self._direct_is_worth_trying = False  # this device wants another alignment
                break
            written += count
            self.size_bytes += count
        return written

    def _write_cached(self, data: memoryview) -> None:
        if not data:
            return
        _set_direct(self._file.fileno(), False)
        start = self.size_bytes
        while data:
            count = self._system.write(self._file, data)
            self.size_bytes += count
            data = data[count:]
        if self.size_bytes - start >= _LARGE_BYTES:
            forget(self._file.fileno(), start, self.size_bytes - start)


if sys.platform == "linux":
    import fcntl

    def _set_direct(descriptor: int, wanted: bool) -> bool:
        """Switch direct I/O on or off; return whether it is on now."""
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if bool(flags & os.O_DIRECT) == wanted:
            return wanted
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags ^ os.O_DIRECT)
        except OSError:  # this file system has none
            return False
        return wanted

else:

    def _set_direct(_descriptor: int, _wanted: bool) -> bool:
        return False
