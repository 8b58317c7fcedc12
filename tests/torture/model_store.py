"""``ModelStore``: a store in memory that may lose power, and then has what a POSIX file system may have kept.

What it promises is what POSIX promises, and no more:

- Bytes written to a file and not synced may be lost, in part or as a whole; blocks of them may be zero.
- Names given and taken since the folder was last synced may each be on the disk or not, whatever the others are. A
  later change of the same name implies the earlier ones, and one change is atomic.
- A name may be durable while the bytes of its file are not.
- A folder made in another one is such a name.

:class:`Disk` holds it all, and tells ``on_change`` of every step, so that a moment of it can be kept
(:meth:`Disk.moment`) and the states it may come up in again enumerated (:meth:`Moment.states`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import linecache
import math
import random
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import BinaryIO, cast

from ckpt_lib.errors import (
    CheckpointExistsError,
    LeaseLostError,
    NotAStoreError,
    StoreError,
    StoreUnavailableError,
)
from ckpt_lib.store import Entry, PendingFile
from ckpt_lib.store.base import Leftover
from ckpt_lib.stream.digests import Buffer

SECTOR_BYTES = 512
"""What a disk writes as a whole or not at all."""
LOCK_TIMEOUT_SECONDS = 60.0
FOLDER_MADE = "folder made"
"""The barrier that is the store's own: whoever needs a folder first makes its name durable."""

State = Mapping[str, bytes]
"""What a disk comes up with: every file by its path, with its bytes."""


@dataclass(frozen=True, order=True)
class Barrier:
    """A place in the code that makes something durable, and what it says there."""

    function: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.function}:{self.line} {self.kind}"


@dataclass(eq=False)
class _Inode:
    """The bytes of one file: as readers see them, and as they surely are on the disk."""

    data: bytes = b""
    durable: bytes = b""
    version: int = 0
    modified_seconds: float = 0.0


@dataclass(eq=False)
class _Folder:
    """The names in one folder, and the changes to them that are not durable yet, oldest first."""

    names: dict[str, _Inode] = field(default_factory=dict)
    durable: dict[str, _Inode] = field(default_factory=dict)
    changes: list[tuple[str, _Inode | None]] = field(default_factory=list)
    is_durable: bool = False

    def change(self, name: str, inode: _Inode | None) -> None:
        self.changes.append((name, inode))
        if inode is None:
            self.names.pop(name, None)
        else:
            self.names[name] = inode

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()

    def inodes(self) -> set[_Inode]:
        changed = (inode for _, inode in self.changes if inode)
        return {*self.names.values(), *self.durable.values(), *changed}

    def copy(self, twins: Mapping[_Inode, _Inode]) -> _Folder:
        """The same, with other inodes in the place of these."""
        return _Folder(
            {name: twins[inode] for name, inode in self.names.items()},
            {name: twins[inode] for name, inode in self.durable.items()},
            [(name, twins[inode] if inode else None) for name, inode in self.changes],
            self.is_durable,
        )


class Disk:
    """The files of one machine, all in memory. ``ignored`` are barriers that are passed over, as if not written."""

    def __init__(self, state: State | None = None, *, ignored: Collection[Barrier] = ()) -> None:
        self.mutex = threading.RLock()
        self.folders: dict[str, _Folder] = {}
        self.pending: dict[str, list[ModelPendingFile]] = {}
        self.locks: dict[str, threading.Lock] = {}
        self.owners: dict[str, int] = {}
        self.holds: dict[str, list[tuple[str, str]]] = {}
        self.time_seconds = 1_700_000_000.0
        self.barriers: dict[Barrier, int] = {}
        self.on_change: Callable[[], None] = lambda: None
        self._ignored = frozenset(ignored)
        self._version = 0
        self._surely_made: set[str] = set()
        self.folders[""] = _Folder(is_durable=True)
        for path, data in (state or {}).items():
            folder, _, name = path.rpartition("/")
            for parent in _with_parents(folder):
                self.folders.setdefault(parent, _Folder(is_durable=True))
            inode = _Inode(data, data)
            self.touch(inode)
            self.folders[folder].names[name] = self.folders[folder].durable[name] = inode

    def touch(self, inode: _Inode) -> None:
        """Note that the bytes of a file have changed."""
        self._version += 1
        self.time_seconds += 0.001
        inode.version, inode.modified_seconds = self._version, self.time_seconds

    def changed(self) -> None:
        """Something happened after which the power may fail."""
        self.on_change()

    def barrier(self, kind: str) -> bool:
        """Note that the code makes something durable here; whether it is to be done."""
        found = Barrier("the store", 0, kind) if kind == FOLDER_MADE else _caller(kind)
        self.barriers[found] = self.barriers.get(found, 0) + 1
        return found not in self._ignored

    def make_folder(self, folder: str) -> _Folder:
        """Create a folder and what is missing above it, durably: one that is there may be a killed process's."""
        for path in _with_parents(folder):
            parent, _, name = path.rpartition("/")
            if name and name in self.folders[parent].names:
                raise NotAStoreError("a file is where a folder should be", path=path)
            if path not in self.folders:
                self.folders[path] = _Folder()
                self.changed()
            if path not in self._surely_made and self.barrier(FOLDER_MADE):
                self._surely_made.add(path)
                self.folders[path].is_durable = True
                self.changed()
        return self.folders[folder]

    def after_kill(self) -> Disk:
        """The same disk, as the next process finds it when this one is killed now: with all that was not synced."""
        other = Disk(ignored=self._ignored)
        twins = {inode: replace(inode) for folder in self.folders.values() for inode in folder.inodes()}
        other.folders = {path: folder.copy(twins) for path, folder in self.folders.items()}
        other._version, other.time_seconds = self._version, self.time_seconds
        return other

    def moment(self) -> Moment:
        """What is there now, for sure and perhaps."""
        axes, missing = {}, []
        for path, folder in self.folders.items():
            if not folder.is_durable:
                missing.append(f"{path}/")
            for name in {*folder.durable, *(name for name, _ in folder.changes)}:
                versions = [folder.durable.get(name), *(inode for changed, inode in folder.changes if changed == name)]
                axes[f"{path}/{name}".lstrip("/")] = tuple(
                    None if inode is None else (inode.durable, inode.data) for inode in dict.fromkeys(versions)
                )
        return Moment(axes, tuple(missing))

    def state(self) -> dict[str, bytes]:
        """What readers see."""
        return {
            f"{path}/{name}".lstrip("/"): inode.data
            for path, folder in self.folders.items()
            for name, inode in folder.names.items()
        }


@dataclass(frozen=True)
class Moment:
    """Of each path, the files it may stand for after power loss, as durable and as written bytes; ``None`` for none.

    ``unsure_folders`` are path prefixes that may be missing with all that is below them.
    """

    axes: Mapping[str, tuple[tuple[bytes, bytes] | None, ...]]
    unsure_folders: tuple[str, ...]

    def states(self, limit: int, random_source: random.Random) -> Iterator[dict[str, bytes]]:
        """Every state the disk may come up in, or ``limit`` of them: nothing and all survived first, then at random."""
        choices = {path: _contents(versions) for path, versions in self.axes.items()}
        count = math.prod(map(len, choices.values())) * 2 ** len(self.unsure_folders)
        if count <= limit:
            for survived in itertools.product((True, False), repeat=len(self.unsure_folders)):
                for picked in itertools.product(*choices.values()):
                    yield self._state(dict(zip(choices, picked, strict=True)), survived)
            return
        everything = [True] * len(self.unsure_folders)
        yield self._state({path: found[0] for path, found in choices.items()}, everything)
        yield self._state({path: found[-1] for path, found in choices.items()}, everything)
        for _ in range(limit - 2):
            chosen = {path: _content(self.axes[path], found, random_source) for path, found in choices.items()}
            yield self._state(chosen, [random_source.random() < 0.8 for _ in self.unsure_folders])

    def _state(self, chosen: Mapping[str, bytes | None], survived: Iterable[bool]) -> dict[str, bytes]:
        gone = tuple(prefix for prefix, kept in zip(self.unsure_folders, survived, strict=True) if not kept)
        return {path: data for path, data in chosen.items() if data is not None and not path.startswith(gone)}


def _contents(versions: Iterable[tuple[bytes, bytes] | None]) -> list[bytes | None]:
    """What a path may hold: each version it may stand for, in each way that its bytes may have come to the disk."""
    found: dict[bytes | None, None] = {}
    for version in versions:
        found.update(dict.fromkeys([None] if version is None else _remains(*version)))
    return list(found)


def _remains(durable: bytes, written: bytes) -> list[bytes]:
    """What may be left of a file of which ``durable`` was synced and ``written`` is what readers saw."""
    if durable == written:
        return [written]
    middle = len(written) // 2
    old = (durable + bytes(max(0, len(written) - len(durable))))[: len(written)]  # its length came, its bytes did not
    changed = [number for number, part in enumerate(_sectors(written)) if part != _sectors(old)[number]]
    return [
        durable,
        durable[: len(written)] + written[len(durable) : (len(durable) + len(written)) // 2],  # cut off
        *(_mixed(old, written, lost) for lost in _subsets(changed)),
        written[:middle] + old[middle:],  # torn within a sector
        written,
    ]


def _sectors(data: bytes) -> list[bytes]:
    return [data[start : start + SECTOR_BYTES] for start in range(0, len(data), SECTOR_BYTES)]


def _subsets(numbers: list[int]) -> list[list[int]]:
    """All of a few; of many, those that are most unlike each other."""
    if len(numbers) <= 3:
        return [list(found) for size in range(len(numbers) + 1) for found in itertools.combinations(numbers, size)]
    return [numbers, numbers[::2], numbers[1::2], numbers[:1], numbers[-1:]]


def _mixed(old: bytes, new: bytes, sectors: Iterable[int]) -> bytes:
    """``new``, but for these sectors, which are still the ``old`` ones."""
    mixed = bytearray(new)
    for number in sectors:
        start, stop = number * SECTOR_BYTES, min((number + 1) * SECTOR_BYTES, len(new))
        mixed[start:stop] = old[start:stop].ljust(stop - start, b"\0")
    return bytes(mixed)


def _content(
    versions: tuple[tuple[bytes, bytes] | None, ...], choices: list[bytes | None], random_source: random.Random
) -> bytes | None:
    """One of ``choices``, or a mixture of sectors that is none of them."""
    version = random_source.choice(versions)
    if version is None or version[0] == version[1] or random_source.random() < 0.5:
        return random_source.choice(choices)
    durable, written = version
    sectors = range(-(-len(written) // SECTOR_BYTES))
    old = durable + bytes(max(0, len(written) - len(durable)))
    mixed = _mixed(old, written, random_source.sample(sectors, random_source.randint(0, len(sectors))))
    return mixed[: random_source.randint(len(durable), len(mixed))] if random_source.random() < 0.3 else mixed


class ModelStore:
    """A store on a :class:`Disk`. Clients of the same disk share it, as processes of one machine do."""

    def __init__(self, disk: Disk, url: str = "model://disk") -> None:
        self.url = url
        self.disk = disk
        self._root = url.partition("://")[2].partition("/")[2].strip("/")

    def _path(self, path: str) -> str:
        return "/".join(part for part in (self._root, path) if part)

    def _split(self, path: str) -> tuple[_Folder | None, str]:
        folder, _, name = self._path(path).rpartition("/")
        return self.disk.folders.get(folder), name

    def _inode(self, path: str) -> _Inode:
        folder, name = self._split(path)
        inode = folder.names.get(name) if folder else None
        if inode is None:
            raise FileNotFoundError(path)
        return inode

    def location(self, path: str) -> str:
        return "/".join(part for part in (self.url.rstrip("/"), path) if part)

    def entries(self, folder: str) -> list[Entry]:
        path = self._path(folder)
        with self.disk.mutex:
            found = self.disk.folders.get(path)
            parent, name = self._split(folder)
            if found is None and parent and name in parent.names:
                raise NotAStoreError("a file is where a folder should be", path=folder)
            entries = [_entry(name, inode) for name, inode in found.names.items()] if found else []
            prefix = f"{path}/" if path else ""
            inner = [other[len(prefix) :] for other in self.disk.folders if other and other.startswith(prefix)]
        entries += [Entry(name, 0, "folder", True) for name in inner if "/" not in name]
        return sorted(entries, key=lambda entry: entry.name)

    def stat(self, path: str) -> Entry | None:
        with self.disk.mutex:
            try:
                inode = self._inode(path)
            except FileNotFoundError:
                return None
            return _entry(path.rpartition("/")[2], inode)

    def open_read(self, path: str) -> BinaryIO:
        with self.disk.mutex:
            return cast(BinaryIO, _ModelFile(self._inode(path)))

    def open_write(self, folder: str) -> ModelPendingFile:
        with self.disk.mutex:
            self.disk.make_folder(self._path(folder))
            pending = ModelPendingFile(self.disk, self._path(folder))
            self.disk.pending.setdefault(self._path(folder), []).append(pending)
        return pending

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[ModelFolderLock]:
        path = self._path(folder)
        with self.disk.mutex:
            self.disk.make_folder(path)
            lock = self.disk.locks.setdefault(path, threading.Lock())
            if self.disk.owners.get(path) == threading.get_ident():
                raise StoreError("this thread has the folder's lock already", path=folder)
        if not lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            raise StoreUnavailableError("another holder does not give the folder's lock up", path=folder)
        self.disk.owners[path] = threading.get_ident()
        held = ModelFolderLock(self, path)
        try:
            yield held
        finally:
            held.is_lost = True
            del self.disk.owners[path]
            lock.release()

    @contextlib.contextmanager
    def hold(self, folder: str, name: str, reason: str) -> Iterator[None]:
        holds = self.disk.holds.setdefault(self._path(folder), [])
        holds.append((name, reason))
        try:
            yield
        finally:
            holds.remove((name, reason))

    def held(self, folder: str) -> dict[str, str]:
        return dict(self.disk.holds.get(self._path(folder), []))

    def leftovers(self, folder: str) -> list[Leftover]:
        return []  # what dead owners left has no name on this disk

    def free_bytes(self, folder: str) -> int | None:
        return None


class ModelPendingFile:
    """A file without a name on a :class:`Disk`."""

    def __init__(self, disk: Disk, folder: str) -> None:
        self.disk = disk
        self.folder = folder
        self.inode = _Inode()
        self.is_open = True

    def write(self, data: Buffer) -> int:
        if not self.is_open:
            raise ValueError("the file was published or discarded")
        view = memoryview(data).cast("B")
        with self.disk.mutex:
            self.inode.data += bytes(view)
            self.disk.touch(self.inode)
            self.disk.changed()
        return len(view)

    def sync(self) -> None:
        with self.disk.mutex:
            if self.disk.barrier("file"):
                self.inode.durable = self.inode.data
                self.disk.changed()

    def open_read(self) -> BinaryIO:
        return cast(BinaryIO, _ModelFile(self.inode))

    def discard(self) -> None:
        with self.disk.mutex:
            if self.is_open:
                self.close()
                self.disk.changed()

    def close(self) -> None:
        self.is_open = False
        self.disk.pending[self.folder].remove(self)


class ModelFolderLock:
    """The lock of one folder on a :class:`Disk`."""

    def __init__(self, store: ModelStore, folder: str) -> None:
        self._store = store
        self._folder = folder
        self.is_lost = False
        self.time_seconds = store.disk.time_seconds

    @contextlib.contextmanager
    def _entered(self) -> Iterator[Disk]:
        with self._store.disk.mutex:
            if self.is_lost:
                raise LeaseLostError("the folder's lock is not held any more", path=self._folder)
            yield self._store.disk

    def _target(self, path: str) -> tuple[_Folder, str]:
        folder, name = self._store._split(path)
        assert folder is not None, "the folder of the lock"
        assert self._store._path(path).rpartition("/")[0] == self._folder, f"{path} lies in another folder"
        if self._store._path(path) in self._store.disk.folders:
            raise NotAStoreError("a folder has that name", path=path)
        return folder, name

    def publish(self, pending: PendingFile, path: str, *, replace: bool = False) -> None:
        assert isinstance(pending, ModelPendingFile), "a pending file of another store"
        with self._entered() as disk:
            folder, name = self._target(path)
            if not pending.is_open or pending.folder != self._folder:
                raise ValueError("the file was published or discarded, or is another folder's")
            if not replace and name in folder.names:
                raise CheckpointExistsError(f"{name} exists", path=path)
            pending.close()
            folder.change(name, pending.inode)
            disk.changed()

    def put(self, path: str, content: bytes, *, durable: bool = True) -> None:
        with self._entered() as disk:
            folder, name = self._target(path)
            inode = _Inode(bytes(content))
            disk.touch(inode)
            if durable and disk.barrier("file put"):
                inode.durable = inode.data
            folder.change(name, inode)
            disk.changed()

    def link(self, path: str, other: str) -> None:
        with self._entered() as disk:
            folder, name = self._target(path)
            folder.change(self._target(other)[1], folder.names[name])
            disk.changed()

    def delete(self, path: str) -> None:
        with self._entered() as disk:
            folder, name = self._target(path)
            if name in folder.names:
                folder.change(name, None)
                disk.changed()

    def patch(self, path: str, pieces: Iterable[tuple[int, Buffer]], *, size_bytes: int) -> None:
        with self._entered() as disk:
            inode = self._store._inode(path)
            for start, data in pieces:
                piece = bytes(memoryview(data).cast("B"))
                inode.data = inode.data[:start].ljust(start, b"\0") + piece + inode.data[start + len(piece) :]
                disk.touch(inode)
                disk.changed()
            inode.data = inode.data[:size_bytes]
            disk.touch(inode)
            disk.changed()
            if disk.barrier("file patched"):
                inode.durable = inode.data
                disk.changed()

    def sync(self) -> None:
        with self._entered() as disk:
            if disk.barrier("names"):
                disk.folders[self._folder].sync()
                disk.changed()

    def sweep(self) -> list[str]:
        with self._entered():
            return []  # what dead owners left has no name on this disk


class _ModelFile(io.RawIOBase):
    """An open file of a :class:`ModelStore`: it sees what is written to it in place, as mapped files do."""

    def __init__(self, inode: _Inode) -> None:
        self._inode = inode
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._inode.data)}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        with memoryview(buffer).cast("B") as view:
            piece = self._inode.data[self._position : self._position + len(view)]
            view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


def _entry(name: str, inode: _Inode) -> Entry:
    return Entry(name, len(inode.data), str(inode.version), False, inode.modified_seconds)


def _with_parents(folder: str) -> list[str]:
    """A folder and all above it but the root, from the top."""
    return [path for path in itertools.accumulate(folder.split("/"), "{}/{}".format) if path]


def _caller(kind: str) -> Barrier:
    """The place in the library, outside of its stores, that the barrier was asked for at."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("ckpt_lib.") and not module.startswith(("ckpt_lib.store", "ckpt_lib.testing")):
            function = f"{module.rpartition('.')[2]}.{frame.f_code.co_qualname}"
            return Barrier(function, frame.f_lineno, kind)
        frame = frame.f_back
    return Barrier("elsewhere", 0, kind)


def source_line(barrier: Barrier) -> str:
    """What the code says there."""
    module = sys.modules.get(f"ckpt_lib.experiment.{barrier.function.partition('.')[0]}")
    return linecache.getline(module.__file__ or "", barrier.line).strip() if module else ""
