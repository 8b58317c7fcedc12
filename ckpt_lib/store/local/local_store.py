"""``LocalStore``: a store in a folder of a POSIX or Windows file system.

A file is written beside its key and made durable before it gets its name, so that a name stands for a whole file or for
none. :mod:`~ckpt_lib.store.local.publishing` has the order in which names change.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from ckpt_lib.errors import InvalidNameError, StorageFullError, VersionConflictError
from ckpt_lib.store.base import ABSENT, Capabilities, Condition, Delete, Entry, Put
from ckpt_lib.store.checks import OWN_FOLDER, check_delete, check_key, check_prefix, check_put, is_part
from ckpt_lib.store.local.direct import Output
from ckpt_lib.store.local.folder_lock import FolderLock, last_date, open_lock
from ckpt_lib.store.local.folders import Folders, nearest
from ckpt_lib.store.local.os_errors import errors_of_writing, typed_errors
from ckpt_lib.store.local.probe import USUAL, Abilities, probe
from ckpt_lib.store.local.publishing import Place, Publisher, entry_of
from ckpt_lib.store.local.reader import LocalReader
from ckpt_lib.store.local.reserve import give_up_reserve, keep_reserve
from ckpt_lib.store.local.system import System
from ckpt_lib.store.local.temporary import create_temporary, discard, sweep_abandoned, sweep_old
from ckpt_lib.store.local.upload import LocalUpload

_SCHEME = "file://"
_DRIVE = re.compile(r"/[A-Za-z]:")
_FILES_AT_ONCE = 64
_SYNCS_AT_ONCE = 16
"""A journal commits several files at once: sixteen syncs at a time halve the time for each."""
_Keyed = TypeVar("_Keyed", Put, Delete)
PATIENCE_SECONDS = 30.0
"""How long to wait for a lock that is held for microseconds, until its holder is taken for stopped."""


class LocalStore:
    """A store in a local folder, which is created by the first write.

    The folder may be a link; links below it are refused. Paths are not expanded: ``~`` is a folder of that name.
    """

    def __init__(self, url: str, *, system: System | None = None, patience_seconds: float = PATIENCE_SECONDS) -> None:
        path = url[len(_SCHEME) :] if url.lower().startswith(_SCHEME) else url
        self._root = Path(os.path.abspath(path[1:] if _DRIVE.match(path) else path))
        self._system = system or System()
        self._patience_seconds = patience_seconds
        self._folders = Folders(self._root, self._system)
        self._abilities: dict[int, Abilities] = {}

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def capabilities(self) -> Capabilities:
        """The abilities of the file system. The first call tries them, in the root or the nearest folder above it."""
        with typed_errors(self._root):
            return self._capabilities_at(self._root)

    def _capabilities_at(self, folder: Path) -> Capabilities:
        return self._capabilities_of(self._probed(nearest(folder)))

    def _capabilities_of(self, abilities: Abilities) -> Capabilities:
        return Capabilities(
            create_if_absent=abilities.links or abilities.locks,
            replace_if_version=abilities.has_versions,
            delete_if_version=abilities.has_versions,
            memory_map=not self._system.is_windows,
            free_space=True,
        )

    def list(self, prefix: str, *, recursive: bool = False) -> list[Entry]:
        parts = check_prefix(prefix)
        with typed_errors(self._folders.path(parts)):
            folder = self._folders.find(parts)
            start = "".join(f"{part}/" for part in parts)
            found = [] if folder is None else list(self._entries(folder, start, recursive))
        return sorted(found, key=lambda entry: entry.key)

    def stat(self, key: str) -> Entry | None:
        with typed_errors(self._root / key), contextlib.suppress(FileNotFoundError):
            folder, name = self._found(key)
            found = self._system.lstat(folder / name)
            if stat.S_ISREG(found.st_mode):
                return entry_of(key, found)
        return None

    def folder_version(self, prefix: str) -> str | None:
        """Return the date of the last write, and when the names in the folder last changed."""
        parts = check_prefix(prefix)
        with typed_errors(self._folders.path(parts)):
            folder = self._folders.find(parts)
            if folder is None:
                return None
            with contextlib.suppress(OSError):  # nobody has written here, or nobody may
                date = last_date(folder / OWN_FOLDER, self._system)
                return None if date is None else f"{date:x}-{os.stat(folder).st_mtime_ns:x}"
        return None

    def open_read(self, key: str) -> LocalReader:
        with typed_errors(self._root / key):
            folder, name = self._found(key)
            return LocalReader(folder / name, self._system)

    def open_write(self, key: str) -> LocalUpload:
        with errors_of_writing(self._root / key):
            place = self._made(key)
            publisher = self._publisher(place)
            file = self._begin(place)
            try:
                return LocalUpload(file, place, lambda: publisher.publish(file, place, None), self._system)
            except BaseException:
                discard(file, self._system)
                raise

    def put(self, key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        *parts, _ = check_key(key)
        if if_version is not None:
            with typed_errors(self._root / key):
                check_put(self._capabilities_at(self._folders.path(tuple(parts))), if_version, self.url)
        try:
            return self._put(key, data, if_version, durable)
        except StorageFullError:
            # A new record may not take the room that the deletion of what is there needs.
            if if_version is ABSENT or not give_up_reserve(self._folders, self._system):
                raise
        return self._put(key, data, if_version, durable)

    def _put(self, key: str, data: bytes, if_version: Condition, durable: bool) -> Entry:
        with errors_of_writing(self._root / key):
            place = self._made(key)
            with create_temporary(place.own, self._system, locks=self._probed(place.folder).locks) as file:
                try:
                    output = Output(file, self._system)
                    output.write(data)
                    if durable:
                        output.sync()
                    return self._publisher(place).publish(file, place, if_version, durable=durable)
                finally:
                    discard(file, self._system)

    def delete(self, key: str, *, if_version: str | None = None) -> None:
        (answer,) = self.delete_many([Delete(key, if_version)])
        if answer is not None:
            raise answer

    def put_many(self, puts: Sequence[Put]) -> Sequence[Entry | VersionConflictError]:
        return [answer for some in _some_of_a_folder(puts) for answer in self._put_some(some)]

    def _put_some(self, puts: Sequence[Put]) -> Sequence[Entry | VersionConflictError]:
        """Write files of one folder: made durable at once, and named under one lock."""
        with errors_of_writing(self._root / puts[0].key), contextlib.ExitStack() as stack:
            files, outputs = [], []
            folder = self._made(puts[0].key).folder
            abilities = self._probed(folder)
            capabilities = self._capabilities_of(abilities)
            for key, data, if_version in puts:
                place = Place(key, folder, self._name(key))
                check_put(capabilities, if_version, self.url)
                with errors_of_writing(place.path):
                    file = create_temporary(place.own, self._system, locks=abilities.locks)
                    stack.callback(discard, file, self._system)
                    output = Output(file, self._system)
                    output.write(data)
                files.append((file, place, if_version))
                outputs.append(output)
            _sync_all(outputs)
            return self._publisher(files[0][1]).publish_all(files)

    def delete_many(self, deletes: Sequence[Delete]) -> Sequence[VersionConflictError | None]:
        return [answer for some in _some_of_a_folder(deletes) for answer in self._delete_some(some)]

    def _delete_some(self, deletes: Sequence[Delete]) -> Sequence[VersionConflictError | None]:
        """Delete keys of one folder, under one lock where there are conditions."""
        with errors_of_writing(self._root / deletes[0].key):
            *parts, _ = check_key(deletes[0].key)
            capabilities = self._capabilities_at(self._folders.path(tuple(parts)))
            for _, if_version in deletes:
                check_delete(capabilities, if_version, self.url)
            folder = self._folders.find(tuple(parts))
            if folder is None:
                return [None] * len(deletes)
            if any(if_version is not None for _, if_version in deletes):
                self._folders.own(folder)  # for the lock
            places = [(Place(key, folder, check_key(key)[-1]), if_version) for key, if_version in deletes]
            answers = self._publisher(places[0][0]).delete_all(places)
            self._sweep(folder)  # nobody may ever upload there again, as to the folder of a payload that is gone
            return answers

    def free_bytes(self) -> int | None:
        with typed_errors(self._root):
            usage = shutil.disk_usage(nearest(self._root))
        return usage.free if usage.total else None  # some network file systems say that they have no space at all

    def _found(self, key: str) -> tuple[Path, str]:
        """Return folder and name of a key that may be there; raise ``FileNotFoundError`` when it cannot be."""
        *parts, name = check_key(key)
        folder = self._folders.find(tuple(parts))
        if folder is None or not self._folders.is_spelled_so(folder, name):
            raise FileNotFoundError(key)
        return folder, name

    def _made(self, key: str) -> Place:
        """Return where a key is to be written; make the folders."""
        name = self._name(key)
        folder = self._folders.make(check_key(key)[:-1])
        self._folders.own(folder)
        return Place(key, folder, name)

    def _name(self, key: str) -> str:
        """Return the last part of a key that is to be written."""
        parts = check_key(key)
        for part in parts:
            if not self._system.takes_name(part):
                raise InvalidNameError(
                    f"this system cannot name a file {part!r}", path=key, hint="Choose another name."
                )
        return parts[-1]

    def _publisher(self, place: Place) -> Publisher:
        return Publisher(self._folders, self._probed(place.folder), self._system, self._patience_seconds)

    def _begin(self, place: Place) -> io.FileIO:
        """Create the file of an upload, and remove what dead processes left there."""
        if not self._probed(place.folder).locks:
            file = create_temporary(place.own, self._system, locks=False)
            sweep_old(place.own, self._system, now_seconds=os.fstat(file.fileno()).st_mtime)
            self._keep_reserve(place)
            return file
        # Under the lock of the folder: on Windows, a file is not locked while it gets its name.
        with (
            open_lock(place.own, self._system) as lock_file,
            FolderLock(lock_file, self._system, self._patience_seconds),
        ):
            sweep_abandoned(place.own, self._system)
            self._keep_reserve(place)
        # The files of a payload may have a folder of their own, and its record lies above: nobody uploads there.
        self._sweep(place.folder.parent)
        return create_temporary(place.own, self._system, locks=True)

    def _sweep(self, folder: Path) -> None:
        """Remove what dead processes left in a folder below the root. Never raises ``OSError``."""
        own = folder / OWN_FOLDER
        if folder == self._folders.root or self._folders.root not in folder.parents or not os.path.isdir(own):
            return
        with contextlib.suppress(OSError):
            if self._probed(folder).locks:
                with (
                    open_lock(own, self._system) as lock_file,
                    FolderLock(lock_file, self._system, self._patience_seconds),
                ):
                    sweep_abandoned(own, self._system)

    def _keep_reserve(self, place: Place) -> None:
        """Set room aside for the deletions of experiments, which lie below the root: exports lie at the root."""
        if place.folder != self._folders.root:
            keep_reserve(self._folders, self._system)

    def _probed(self, folder: Path) -> Abilities:
        """Return what the file system of a folder can do; what is usual where nothing can be tried."""
        device = os.stat(folder).st_dev
        if device not in self._abilities:
            had_own = os.path.lexists(folder / OWN_FOLDER)
            try:
                self._abilities[device] = probe(self._folders.own(folder), self._system)
            except OSError:
                return USUAL
            finally:
                if not had_own:
                    with contextlib.suppress(OSError):
                        self._system.rmdir(folder / OWN_FOLDER)
        return self._abilities[device]

    def _entries(self, folder: Path, start: str, recursive: bool) -> Iterator[Entry]:
        for name, found in self._system.scan(folder):
            if not is_part(name):
                continue
            if stat.S_ISREG(found.st_mode):
                yield entry_of(f"{start}{name}", found)
            elif stat.S_ISDIR(found.st_mode) and recursive:
                with contextlib.suppress(FileNotFoundError):
                    yield from self._entries(folder / name, f"{start}{name}/", recursive)
            elif stat.S_ISDIR(found.st_mode) and self._holds_keys(folder / name):
                yield Entry(f"{start}{name}/")

    def _holds_keys(self, folder: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return next(self._entries(folder, "", True), None) is not None
        return False


def _sync_all(outputs: Sequence[Output]) -> None:
    with ThreadPoolExecutor(_SYNCS_AT_ONCE, thread_name_prefix="ckpt-sync") as pool:
        try:
            first = pool.submit(outputs[0].sync)
        except RuntimeError:  # the program is ending, and starts no threads any more
            for output in outputs:
                output.sync()
            return
        for future in [first, *(pool.submit(output.sync) for output in outputs[1:])]:
            future.result()


def _some_of_a_folder(wanted: Sequence[_Keyed]) -> Iterator[Sequence[_Keyed]]:
    """Yield what is wanted in parts: each of one folder, and of at most ``_FILES_AT_ONCE`` files."""
    for _, group in groupby(wanted, lambda item: item.key.rpartition("/")[0]):
        of_folder = list(group)
        for start in range(0, len(of_folder), _FILES_AT_ONCE):
            yield of_folder[start : start + _FILES_AT_ONCE]
