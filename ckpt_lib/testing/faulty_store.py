"""``FaultyStore``: any store, made to fail in the ways disks and networks do, at an operation of one's choice.

It passes :class:`~ckpt_lib.testing.StoreContract` as long as its plan is empty. What runs over it is the real thing::

    plan = FaultPlan(fail_at=7, error=StorageFullError)
    with faults_injected(plan):
        manager.save_checkpoint(model=model, epoch=1)  # its 7th operation finds the disk full
"""

from __future__ import annotations

import fnmatch
import io
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from ckpt_lib.errors import StorageFullError, StoreError
from ckpt_lib.store import Entry, FolderLock, PendingFile, Store
from ckpt_lib.store.base import Leftover
from ckpt_lib.store.registry import factory_of, registered
from ckpt_lib.stream.digests import Buffer

OPERATIONS = frozenset(
    {
        *("entries", "stat", "open_read", "read", "hold", "held", "leftovers", "free_bytes"),
        *("open_write", "write", "sync"),
        *("lock", "publish", "put", "link", "delete", "patch", "sync_names", "sweep"),
    }
)
"""What is counted. ``sync`` makes a file's bytes durable, ``sync_names`` a folder's names."""


@dataclass
class BitFlip:
    """One bit of a file that comes out wrong, or goes in wrong.

    ``path`` is a pattern of store paths, as for file names in a shell. A file that is being written has none yet: it
    goes by its folder's, with a ``/`` at the end, which ``folder/*`` matches.
    """

    offset_bytes: int
    bit: int = 0
    path: str = "*"
    first: int = 1
    """The first time that byte is read, or written, which goes wrong: with 2, the second reading differs."""
    passes: int = field(default=0, init=False)
    """How many times that byte has been read or written so far."""

    def apply(self, path: str, start: int, data: memoryview) -> None:
        """Alter ``data``, which lies at ``start`` in the file, if it is this one's turn."""
        position = self.offset_bytes - start
        if 0 <= position < len(data) and fnmatch.fnmatchcase(path, self.path):
            self.passes += 1
            if self.passes >= self.first:
                data[position] ^= 1 << self.bit


@dataclass
class FaultPlan:
    """What goes wrong, and what has been done so far. All stores that share a plan are counted together."""

    fail_at: int = 0
    """The operation that fails, counted from 1 among ``only``; 0 for none. It fails before it does anything."""
    persistent: bool = False
    """Whether every later one fails too."""
    error: type[StoreError] = StoreError
    only: frozenset[str] = OPERATIONS
    """The operations that are counted and may fail."""
    quota_bytes: int | None = None
    """How many more bytes may be written until the store is full; what is deleted or replaced gives its room back."""
    latency_seconds: float = 0.0
    """How much longer each operation takes."""
    read_flips: Sequence[BitFlip] = ()
    write_flips: Sequence[BitFlip] = ()
    calls: list[str] = field(default_factory=list, init=False)
    """Each counted operation with its path: ``"publish run/x.pt"``."""
    failures: int = field(default=0, init=False)
    """How many operations were made to fail."""
    used_bytes: int = field(default=0, init=False)
    """How much of the quota is used up."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def enter(self, operation: str, path: str) -> None:
        """Count an operation, and fail if it is to fail."""
        if self.latency_seconds:
            time.sleep(self.latency_seconds)
        if operation not in self.only:
            return
        with self._lock:
            self.calls.append(f"{operation} {path}")
            count = len(self.calls)
            strikes = count == self.fail_at or (self.persistent and count > self.fail_at > 0)
            self.failures += strikes
        if strikes:
            raise self.error(f"injected: operation {count}, {operation}, failed", path=path)

    def take(self, size_bytes: int, path: str) -> None:
        """Use up some of the quota, or give it back; raises :class:`~ckpt_lib.errors.StorageFullError`."""
        with self._lock:
            wanted = self.used_bytes + size_bytes
            if self.quota_bytes is not None and size_bytes > 0 and wanted > self.quota_bytes:
                self.failures += 1
                raise StorageFullError("injected: the quota is used up", path=path)
            self.used_bytes = wanted

    def left_bytes(self, otherwise: int | None) -> int | None:
        """How much may be written, in a store that has ``otherwise`` left."""
        if self.quota_bytes is None:
            return otherwise
        left = max(0, self.quota_bytes - self.used_bytes)
        return left if otherwise is None else min(left, otherwise)


@contextmanager
def faults_injected(plan: FaultPlan, *, scheme: str = "file") -> Iterator[FaultPlan]:
    """Let every store that is opened meanwhile for that kind of URL follow ``plan``; give the plan."""
    factory = factory_of(scheme)
    with registered(scheme, lambda url: FaultyStore(factory(url), plan)):
        yield plan


class FaultyStore:
    """``store``, with what ``plan`` says going wrong. Files are read through it and never mapped."""

    def __init__(self, store: Store, plan: FaultPlan) -> None:
        self._store = store
        self._plan = plan

    @property
    def url(self) -> str:
        return self._store.url

    def location(self, path: str) -> str:
        return self._store.location(path)

    def entries(self, folder: str) -> list[Entry]:
        self._plan.enter("entries", folder)
        return self._store.entries(folder)

    def stat(self, path: str) -> Entry | None:
        self._plan.enter("stat", path)
        return self._store.stat(path)

    def open_read(self, path: str) -> BinaryIO:
        self._plan.enter("open_read", path)
        return cast(BinaryIO, _FaultyFile(self._store.open_read(path), path, self._plan))

    def open_write(self, folder: str) -> FaultyPendingFile:
        self._plan.enter("open_write", folder)
        return FaultyPendingFile(self._store.open_write(folder), folder, self._plan)

    @contextmanager
    def lock(self, folder: str) -> Iterator[FaultyFolderLock]:
        self._plan.enter("lock", folder)
        with self._store.lock(folder) as held:
            yield FaultyFolderLock(held, self._store, folder, self._plan)

    @contextmanager
    def hold(self, folder: str, name: str, reason: str) -> Iterator[None]:
        self._plan.enter("hold", f"{folder}/{name}")
        with self._store.hold(folder, name, reason):
            yield

    def held(self, folder: str) -> dict[str, str]:
        self._plan.enter("held", folder)
        return self._store.held(folder)

    def leftovers(self, folder: str) -> list[Leftover]:
        self._plan.enter("leftovers", folder)
        return self._store.leftovers(folder)

    def free_bytes(self, folder: str) -> int | None:
        self._plan.enter("free_bytes", folder)
        return self._plan.left_bytes(self._store.free_bytes(folder))


class FaultyPendingFile:
    """A pending file of a :class:`FaultyStore`."""

    def __init__(self, pending: PendingFile, folder: str, plan: FaultPlan) -> None:
        self.inner = pending
        self.size_bytes = 0
        self._folder = folder
        self._plan = plan

    def write(self, data: Buffer) -> int:
        self._plan.enter("write", self._folder)
        view = memoryview(data).cast("B")
        self._plan.take(len(view), self._folder)
        self.inner.write(_altered(self._plan, f"{self._folder}/", self.size_bytes, view))
        self.size_bytes += len(view)
        return len(view)

    def sync(self) -> None:
        self._plan.enter("sync", self._folder)
        self.inner.sync()

    def open_read(self) -> BinaryIO:
        self._plan.enter("open_read", self._folder)
        return cast(BinaryIO, _FaultyFile(self.inner.open_read(), f"{self._folder}/", self._plan))

    def discard(self) -> None:
        self._plan.take(-self.size_bytes, self._folder)
        self.size_bytes = 0
        self.inner.discard()


class FaultyFolderLock:
    """The lock of a :class:`FaultyStore`'s folder."""

    def __init__(self, held: FolderLock, store: Store, folder: str, plan: FaultPlan) -> None:
        self._held = held
        self._store = store
        self._folder = folder
        self._plan = plan

    @property
    def time_seconds(self) -> float:
        return self._held.time_seconds

    def publish(self, pending: PendingFile, path: str, *, replace: bool = False) -> None:
        self._plan.enter("publish", path)
        assert isinstance(pending, FaultyPendingFile), "a pending file of another store"
        replaced_bytes = self._size_bytes(path)
        self._held.publish(pending.inner, path, replace=replace)
        self._plan.take(-replaced_bytes, path)
        pending.size_bytes = 0  # from now on its room is given back by whoever deletes it

    def put(self, path: str, content: bytes, *, durable: bool = True) -> None:
        self._plan.enter("put", path)
        replaced_bytes = self._size_bytes(path)
        self._plan.take(len(content), path)
        self._held.put(path, bytes(_altered(self._plan, path, 0, memoryview(content))), durable=durable)
        self._plan.take(-replaced_bytes, path)

    def link(self, path: str, other: str) -> None:
        self._plan.enter("link", path)
        self._held.link(path, other)

    def delete(self, path: str) -> None:
        self._plan.enter("delete", path)
        removed_bytes = self._size_bytes(path)
        self._held.delete(path)
        self._plan.take(-removed_bytes, path)

    def patch(self, path: str, pieces: Iterable[tuple[int, Buffer]], *, size_bytes: int) -> None:
        self._plan.enter("patch", path)
        self._plan.take(size_bytes - self._size_bytes(path), path)
        views = ((start, memoryview(data).cast("B")) for start, data in pieces)
        altered = ((start, _altered(self._plan, path, start, view)) for start, view in views)
        self._held.patch(path, altered, size_bytes=size_bytes)

    def sync(self) -> None:
        self._plan.enter("sync_names", self._folder)
        self._held.sync()

    def sweep(self) -> list[str]:
        self._plan.enter("sweep", self._folder)
        return self._held.sweep()

    def _size_bytes(self, path: str) -> int:
        if self._plan.quota_bytes is None:
            return 0
        entry = self._store.stat(path)
        return entry.size_bytes if entry else 0


class _FaultyFile(io.RawIOBase):
    """An open file of a :class:`FaultyStore`; it has no descriptor, so that every byte comes this way."""

    def __init__(self, source: BinaryIO, path: str, plan: FaultPlan) -> None:
        self._source = source
        self._path = path
        self._plan = plan

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._plan.enter("read", self._path)
        start = self._source.tell()
        with memoryview(buffer).cast("B") as view:
            data = self._source.read(len(view))
            view[: len(data)] = data
            for flip in self._plan.read_flips:
                flip.apply(self._path, start, view[: len(data)])
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def _altered(plan: FaultPlan, path: str, start: int, data: memoryview) -> memoryview:
    """What reaches the store of ``data``: a copy, if a bit of it may change."""
    if not plan.write_flips:
        return data
    copy = memoryview(bytearray(data))
    for flip in plan.write_flips:
        flip.apply(path, start, copy)
    return copy
