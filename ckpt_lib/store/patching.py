"""Overwriting bytes of a file where it lies, for repairs: a new file would cost as much as the whole of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ckpt_lib.stream.digests import Buffer


def overwrite(path: Path, pieces: Iterable[tuple[int, Buffer]], size_bytes: int) -> None:
    """See :meth:`ckpt_lib.store.Store.patch`; raises ``OSError``."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    try:
        written = []
        # In ascending order, so that a file that was cut off is too short until the last of its bytes is there.
        for start, data in pieces:
            _write_at(descriptor, start, data)
            written.append((start, len(data)))
        if os.fstat(descriptor).st_size > size_bytes:
            os.ftruncate(descriptor, size_bytes)
        os.fsync(descriptor)
        for start, length in written:
            _let_go(descriptor, start, length)
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, start: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    os.lseek(descriptor, start, os.SEEK_SET)
    while view:
        view = view[os.write(descriptor, view) :]


def _let_go(descriptor: int, start: int, length: int) -> None:
    """Let the page cache forget a range, so that what is read next is what the disk has kept."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # it is advice
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
