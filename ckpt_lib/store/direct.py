"""Writing around the page cache: what a training run has in memory need not be there twice, nor push out other files.

Direct I/O (``O_DIRECT``) moves whole, aligned blocks from our memory to the disk, so that nothing is left to be flushed
at the end. Where there is none, or the file system refuses it, bytes go through the page cache as usual; then the
kernel is told after each large write to begin writing it back, and at the end to let go of it.
"""

from __future__ import annotations

import errno
import os
import sys

from ckpt_lib.stream.page_cache import forget

_ALIGNMENT_BYTES = 4096
_LARGE_BYTES = 2**20
"""Smaller writes go through the page cache: there is nothing to win, and small files are soon read again."""


class Output:
    """Appends to an open, empty file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._direct_is_worth_trying = True
        self._cached_large_writes = False
        self.size_bytes = 0

    def write(self, data: memoryview) -> None:
        """Append all of ``data`` or raise ``OSError``."""
        if len(data) >= _LARGE_BYTES:
            data = data[self._write_direct(data) :]
            self._cached_large_writes |= bool(data)
        self._write_cached(data)

    def sync(self) -> None:
        """Make everything durable."""
        found = os.fstat(self._descriptor).st_size
        if found != self.size_bytes:
            raise OSError(errno.EIO, f"the file system kept {found} of {self.size_bytes} bytes")
        os.fsync(self._descriptor)
        if self._cached_large_writes:
            forget(self._descriptor, 0, 0)

    def _write_direct(self, data: memoryview) -> int:
        """Write the whole blocks of ``data`` and return how many bytes that were: 0 where it is not possible."""
        written, wanted = 0, len(data) - len(data) % _ALIGNMENT_BYTES
        while written < wanted:
            # A short write may end within a block.
            self._direct_is_worth_trying &= self.size_bytes % _ALIGNMENT_BYTES == 0
            if not (self._direct_is_worth_trying and _set_direct(self._descriptor, True)):
                break
            try:
                count = os.write(self._descriptor, data[written:wanted])
            except OSError as error:
                if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                    raise
                self._direct_is_worth_trying = False  # memory or disk blocks are aligned otherwise than we think
                break
            written += count
            self.size_bytes += count
        return written

    def _write_cached(self, data: memoryview) -> None:
        if not data:
            return
        _set_direct(self._descriptor, False)
        start = self.size_bytes
        while data:
            count = os.write(self._descriptor, data)
            self.size_bytes += count
            data = data[count:]
        if self.size_bytes - start >= _LARGE_BYTES:
            forget(self._descriptor, start, self.size_bytes - start)


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
