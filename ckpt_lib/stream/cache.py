"""Keeps verified payload files in memory, so that loading one again neither reads nor verifies it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import BinaryIO

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.stream.chunks import local_size_bytes
from ckpt_lib.stream.mapping import HeldFile
from ckpt_lib.stream.reader import MemoryFile, VerifiedFile

CacheKey = tuple[str, str, str]
"""The location of a file, its version in the store, and its SHA-256."""


class PayloadCache:
    """Copies of whole files, of at most ``limit_bytes`` together. The least recently used copy is dropped first.

    A copy is private to this process, verified when it is admitted, and never written to: each reader gets the bytes in
    memory of its own. So neither damage on the disk nor a caller who changes loaded tensors affects later loads.
    Threads may share the cache.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[CacheKey, memoryview] = OrderedDict()

    def open(self, key: CacheKey, entry: FileEntry) -> VerifiedFile | None:
        """Open the copy with this key; ``None`` if the cache has none."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            kept = self._kept[key]
        return VerifiedFile(MemoryFile(kept), entry, verify=False)

    def admit(self, key: CacheKey, source: BinaryIO, entry: FileEntry) -> VerifiedFile | None:
        """Copy ``source`` into the cache, close it, and open the copy.

        Returns ``None``, and leaves ``source`` open, if it has the wrong size or is too large for the cache. Raises
        :class:`~ckpt_lib.errors.CorruptCheckpointError` and the errors of the source. Nothing is kept then.
        """
        if entry.size_bytes > self.limit_bytes or local_size_bytes(source) not in {None, entry.size_bytes}:
            return None
        with source:
            copy = HeldFile(source, entry.size_bytes).view.toreadonly()
        file = VerifiedFile(MemoryFile(copy), entry)
        file.require_all()
        self._keep(key, copy)
        return file

    def _keep(self, key: CacheKey, copy: memoryview) -> None:
        with self._lock:
            self._drop(key)
            self._kept[key] = copy
            self.size_bytes += len(copy)
            while self.size_bytes > self.limit_bytes:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: CacheKey) -> None:
        self.size_bytes -= len(self._kept.pop(key, b""))

    def clear(self) -> None:
        """Free the memory of all copies."""
        with self._lock:
            for key in list(self._kept):
                self._drop(key)
