"""``FaultyStore``: any store, made to fail in the ways disks and networks do, at an operation of one's choice.

It passes :class:`~ckpt_lib.testing.StoreContract` as long as its plan is empty. What runs over it is the real thing::

    plan = FaultPlan(fail_at=7, error=StorageFullError)
    with faults_injected(plan):
        manager.save_checkpoint(model=model, epoch=1)  # its 7th operation finds the disk full
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

from ckpt_lib.errors import StorageFullError, StoreError, VersionConflictError
from ckpt_lib.store import Capabilities, Condition, Delete, Entry, Put, RangeReader, Store, Upload
from ckpt_lib.store.one_by_one import delete_one_by_one, put_one_by_one
from ckpt_lib.store.registry import factory_of, registered
from ckpt_lib.stream.digests import Buffer

T = TypeVar("T")

OPERATIONS = frozenset(
    {"list", "stat", "open_read", "read", "open_write", "write", "commit", "put", "delete", "free_bytes"}
)
"""What is counted. ``write`` and ``commit`` are those of an upload, ``read`` is that of a reader."""


@dataclass
class BitFlip:
    """One bit of an object that comes out wrong, or goes in wrong. ``key`` is a pattern, as in a shell."""

    offset_bytes: int
    bit: int = 0
    key: str = "*"
    first: int = 1
    """The first time that byte is read, or written, which goes wrong: with 2, the second reading differs."""
    passes: int = field(default=0, init=False)
    """The number of times that byte has been read or written so far."""

    def apply(self, key: str, start: int, data: memoryview) -> None:
        """Alter ``data``, which lies at ``start`` in the object, if it is this one's turn."""
        position = self.offset_bytes - start
        if 0 <= position < len(data) and fnmatch.fnmatchcase(key, self.key):
            self.passes += 1
            if self.passes >= self.first:
                data[position] ^= 1 << self.bit


@dataclass
class FaultPlan:
    """The faults to inject, and the counts so far. All stores that share a plan are counted together."""

    fail_at: int = 0
    """The operation that fails, counted from 1 among ``only``; 0 for none."""
    when: Literal["before", "after"] = "before"
    """Fail before the operation does anything, or after its work is done, so that only its answer is lost."""
    persistent: bool = False
    """True when every later operation fails too."""
    error: type[StoreError] = StoreError
    only: frozenset[str] = OPERATIONS
    """The operations that are counted and may fail."""
    between: Callable[[str, str], object] | None = None
    """Called with each counted operation and its key before it begins: another writer may come in between here."""
    quota_bytes: int | None = None
    """The bytes that may still be written until the store is full; deleting or replacing gives room back."""
    read_flips: Sequence[BitFlip] = ()
    write_flips: Sequence[BitFlip] = ()
    calls: list[str] = field(default_factory=list, init=False)
    """Each counted operation with its key: ``"commit run/x.pt"``."""
    failures: int = field(default=0, init=False)
    """The number of operations that were made to fail."""
    used_bytes: int = field(default=0, init=False)
    """The bytes of the quota that are used up."""
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def run(self, operation: str, key: str, work: Callable[[], T], undo: Callable[[T], object] = lambda _: None) -> T:
        """Do ``work``, and fail before or after it if this operation is to fail.

        ``undo`` gets what ``work`` returned when that reaches nobody, to close it.
        """
        count, fails = self._enter(operation, key)
        error = self.error(f"injected: operation {count}, {operation}, failed {self.when} it was done", path=key)
        if fails and self.when == "before":
            raise error
        result = work()
        if fails:
            undo(result)
            raise error
        return result

    def _enter(self, operation: str, key: str) -> tuple[int, bool]:
        """Count an operation; return its number, and whether it is to fail."""
        if operation not in self.only:
            return 0, False
        if self.between is not None:
            self.between(operation, key)
        with self._lock:
            self.calls.append(f"{operation} {key}")
            count = len(self.calls)
            fails = count == self.fail_at or (self.persistent and count > self.fail_at > 0)
            self.failures += fails
        return count, fails

    def take(self, size_bytes: int, key: str) -> None:
        """Use up some of the quota, or give it back; raise :class:`~ckpt_lib.errors.StorageFullError`."""
        with self._lock:
            wanted = self.used_bytes + size_bytes
            if self.quota_bytes is not None and size_bytes > 0 and wanted > self.quota_bytes:
                self.failures += 1
                raise StorageFullError("injected: the quota is used up", path=key)
            self.used_bytes = wanted

    def left_bytes(self, otherwise: int | None) -> int | None:
        """Return how much may be written, in a store that has ``otherwise`` left."""
        if self.quota_bytes is None:
            return otherwise
        left = max(0, self.quota_bytes - self.used_bytes)
        return left if otherwise is None else min(left, otherwise)

    def altered(self, flips: Sequence[BitFlip], key: str, start: int, data: bytes | memoryview) -> bytes | memoryview:
        """Return ``data``, which lies at ``start`` in the object, with the bits that are flipped."""
        if not flips:
            return data
        copy = bytearray(data)
        for flip in flips:
            flip.apply(key, start, memoryview(copy))
        return bytes(copy)


@contextmanager
def faults_injected(plan: FaultPlan, *, scheme: str = "file") -> Iterator[FaultPlan]:
    """Let every store that is opened meanwhile for that kind of URL follow ``plan``; give the plan."""
    factory = factory_of(scheme)
    with registered(scheme, lambda url: FaultyStore(factory(url), plan)):
        yield plan


class FaultyStore:
    """``store``, with what ``plan`` says going wrong. Objects can be mapped only if no read may go wrong."""

    def __init__(self, store: Store, plan: FaultPlan) -> None:
        self._store = store
        self.plan = plan

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    def list(self, prefix: str, *, recursive: bool = False) -> Sequence[Entry]:
        return self.plan.run("list", prefix, lambda: self._store.list(prefix, recursive=recursive))

    def stat(self, key: str) -> Entry | None:
        return self.plan.run("stat", key, lambda: self._store.stat(key))

    def folder_version(self, prefix: str) -> str | None:
        return self.plan.run("folder_version", prefix, lambda: self._store.folder_version(prefix))

    def open_read(self, key: str) -> RangeReader:
        reader = self.plan.run("open_read", key, lambda: self._store.open_read(key), lambda found: found.close())
        return _FaultyReader(reader, key, self.plan)

    def open_write(self, key: str) -> Upload:
        upload = self.plan.run("open_write", key, lambda: self._store.open_write(key), lambda begun: begun.abort())
        return _FaultyUpload(upload, key, self)

    def put(self, key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        def work() -> Entry:
            with self.replacing(key, len(data)):
                content = bytes(self.plan.altered(self.plan.write_flips, key, 0, data))
                return self._store.put(key, content, if_version=if_version, durable=durable)

        return self.plan.run("put", key, work)

    def delete(self, key: str, *, if_version: str | None = None) -> None:
        def work() -> None:
            with self.replacing(key, 0):
                self._store.delete(key, if_version=if_version)

        self.plan.run("delete", key, work)

    def put_many(self, puts: Sequence[Put]) -> Sequence[Entry | VersionConflictError]:
        """Do each with its own chance to fail."""
        return put_one_by_one(self, puts)

    def delete_many(self, deletes: Sequence[Delete]) -> Sequence[VersionConflictError | None]:
        """Do each with its own chance to fail."""
        return delete_one_by_one(self, deletes)

    def free_bytes(self) -> int | None:
        return self.plan.run("free_bytes", "", lambda: self.plan.left_bytes(self._store.free_bytes()))

    @contextmanager
    def replacing(self, key: str, size_bytes: int) -> Iterator[None]:
        """Use up the quota for a new object of a key, and give back the room of the old one if that went well."""
        entry = self._store.stat(key) if self.plan.quota_bytes is not None else None
        self.plan.take(size_bytes, key)
        try:
            yield
        except BaseException:
            self.plan.take(-size_bytes, key)
            raise
        self.plan.take(-entry.size_bytes if entry else 0, key)


class _FaultyUpload:
    def __init__(self, upload: Upload, key: str, store: FaultyStore) -> None:
        self._upload = upload
        self._key = key
        self._store = store
        self._plan = store.plan
        self._size_bytes = 0

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")

        def work() -> int:
            self._plan.take(len(view), self._key)
            self._size_bytes += len(view)
            start = self._size_bytes - len(view)
            return self._upload.write(self._plan.altered(self._plan.write_flips, self._key, start, view))

        return self._plan.run("write", self._key, work)

    def commit(self) -> Entry:
        def work() -> Entry:
            with self._store.replacing(self._key, 0):  # its own room is taken
                entry = self._upload.commit()
            self._size_bytes = 0  # from now on given back by whoever deletes it
            return entry

        return self._plan.run("commit", self._key, work)

    def abort(self) -> None:
        self._plan.take(-self._size_bytes, self._key)
        self._size_bytes = 0
        self._upload.abort()


class _FaultyReader:
    def __init__(self, reader: RangeReader, key: str, plan: FaultPlan) -> None:
        self._reader = reader
        self._key = key
        self._plan = plan

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    def read_at(self, start: int, stop: int) -> bytes:
        data = self._plan.run("read", self._key, lambda: self._reader.read_at(start, stop))
        return bytes(self._plan.altered(self._plan.read_flips, self._key, start, data))

    def fileno(self) -> int | None:
        """Return the descriptor unless reads go wrong: a mapping would pass them by."""
        return None if self._plan.read_flips or self._plan.fail_at else self._reader.fileno()

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
