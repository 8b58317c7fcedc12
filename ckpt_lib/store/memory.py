"""``memory://NAME``: a store in this process, for tests and notebooks. It is gone when the process ends."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from ckpt_lib.errors import ConfigError, StoreError, VersionConflictError
from ckpt_lib.store.base import ABSENT, Capabilities, Condition, Delete, Entry, Put
from ckpt_lib.store.checks import check_delete, check_key, check_prefix, check_put, version_conflict
from ckpt_lib.store.one_by_one import delete_one_by_one, put_one_by_one
from ckpt_lib.stream.digests import Buffer

SCHEME = "memory://"
ALL = Capabilities(
    create_if_absent=True, replace_if_version=True, delete_if_version=True, memory_map=False, free_space=False
)
"""All that memory can do: there is nothing to map, and no limit to how much is written."""


@dataclass
class _Content:
    """The content that the stores of one name share."""

    objects: dict[str, tuple[bytes, Entry]] = field(default_factory=dict)
    versions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    changes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    clock: Callable[[], float] = time.time


class MemoryStore:
    """A store in this process; those of one name are the same store.

    ``capabilities`` may leave out conditions, so that tests have a store without them. A test may move the store's
    clock: ``store.clock = lambda: 1_700_000_000.0``.
    """

    _contents: ClassVar[dict[str, _Content]] = {}

    def __init__(self, name: str, capabilities: Capabilities = ALL) -> None:
        name = name.removeprefix(SCHEME).strip("/")
        if not name:
            raise ConfigError("a store in memory has a name", expected=f"{SCHEME}NAME", got=SCHEME)
        check_key(name)
        self._name = name
        self._capabilities = capabilities
        self._content = self._contents.setdefault(name, _Content())

    def __repr__(self) -> str:
        return f"MemoryStore({self._name!r})"

    @property
    def url(self) -> str:
        return f"{SCHEME}{self._name}"

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that dates each write, in seconds; set by tests."""
        return self._content.clock

    @clock.setter
    def clock(self, clock: Callable[[], float]) -> None:
        self._content.clock = clock

    def list(self, prefix: str, *, recursive: bool = False) -> list[Entry]:
        start = "".join(f"{part}/" for part in check_prefix(prefix))
        with self._content.lock:
            found = [entry for _, entry in self._content.objects.values() if entry.key.startswith(start)]
        if not recursive:
            found = list({(shown := _directly_under(start, entry)).key: shown for entry in found}.values())
        return sorted(found, key=lambda entry: entry.key)

    def stat(self, key: str) -> Entry | None:
        check_key(key)
        found = self._content.objects.get(key)
        return found[1] if found else None

    def folder_version(self, prefix: str) -> str:
        check_prefix(prefix)
        return f"c{self._content.changes}"

    def open_read(self, key: str) -> _MemoryReader:
        check_key(key)
        found = self._content.objects.get(key)
        if found is None:
            raise FileNotFoundError(key)
        return _MemoryReader(found[0])

    def open_write(self, key: str) -> _MemoryUpload:
        check_key(key)
        return _MemoryUpload(self, key)

    def put(self, key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        del durable  # nothing here outlives the process
        check_key(key)
        check_put(self._capabilities, if_version, self.url)
        with self._content.lock:
            self._check_version(key, if_version)
            version, modified_seconds = f"v{next(self._content.versions)}", self._content.clock()
            entry = Entry(key, len(data), version, modified_seconds)
            self._content.objects[key] = (bytes(data), entry)
            self._content.changes += 1
        return entry

    def delete(self, key: str, *, if_version: str | None = None) -> None:
        check_key(key)
        check_delete(self._capabilities, if_version, self.url)
        with self._content.lock:
            if key in self._content.objects:
                self._check_version(key, if_version)
                del self._content.objects[key]
                self._content.changes += 1

    def put_many(self, puts: Sequence[Put]) -> Sequence[Entry | VersionConflictError]:
        return put_one_by_one(self, puts)

    def delete_many(self, deletes: Sequence[Delete]) -> Sequence[VersionConflictError | None]:
        return delete_one_by_one(self, deletes)

    def free_bytes(self) -> None:
        return None

    def _check_version(self, key: str, expected: Condition) -> None:
        if expected is None:
            return
        found = self._content.objects.get(key)
        version = found[1].version if found else ABSENT
        if version != expected:
            raise version_conflict(key, expected, version)


def _directly_under(start: str, entry: Entry) -> Entry:
    """Return the entry itself, or that of the folder below ``start`` in which it lies."""
    first, slash, _ = entry.key[len(start) :].partition("/")
    return Entry(f"{start}{first}/") if slash else entry


class _MemoryUpload:
    def __init__(self, store: MemoryStore, key: str) -> None:
        self._store = store
        self._key = key
        self._data: bytearray | None = bytearray()

    def write(self, data: Buffer) -> int:
        view = memoryview(data).cast("B")
        self._open_data().extend(view)
        return len(view)

    def commit(self) -> Entry:
        data, self._data = bytes(self._open_data()), None
        return self._store.put(self._key, data)

    def abort(self) -> None:
        self._data = None

    def _open_data(self) -> bytearray:
        if self._data is None:
            raise StoreError("the upload has ended", path=self._key, hint="Begin another one with open_write.")
        return self._data


class _MemoryReader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    def read_at(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]

    def fileno(self) -> None:
        return None

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
