"""Overwriting bytes of a file where it lies, for repairs: a new file would cost as much as the whole of it."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.page_cache import forget


def overwrite(descriptor: int, pieces: Iterable[tuple[int, Buffer]], size_bytes: int) -> None:
    """Do to an open file what :meth:`ckpt_lib.store.base.FolderLock.patch` says; raises ``OSError``."""
    written = []
    # In ascending order, so that a file that was cut off is too short until the last of its bytes is there.
    for start, data in pieces:
        _write_at(descriptor, start, data)
        written.append((start, len(data)))
    if os.fstat(descriptor).st_size > size_bytes:
        os.ftruncate(descriptor, size_bytes)
    os.fsync(descriptor)
    for start, length in written:
        forget(descriptor, start, length)  # so that what is read next is what the disk has kept


def _write_at(descriptor: int, start: int, data: Buffer) -> None:
    view = memoryview(data).cast("B")
    os.lseek(descriptor, start, os.SEEK_SET)
    while view:
        view = view[os.write(descriptor, view) :]
