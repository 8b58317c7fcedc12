"""The local store: a folder of a POSIX or Windows file system.

Files are written without a name, made durable and only then given one, so that a name either stands for a whole file
or for none. What a dead process left is told from what a living one writes by its lease
(:mod:`ckpt_lib.store.leases`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from ckpt_lib.errors import NotAStoreError, StoreError, StoreUnavailableError
from ckpt_lib.store.base import Entry, Leftover
from ckpt_lib.store.directory import Directory, open_directory
from ckpt_lib.store.folder_lock import LocalFolderLock, locked
from ckpt_lib.store.leases import leases, living_holds
from ckpt_lib.store.leftovers import find_leftovers
from ckpt_lib.store.os_errors import errors_of_writing, typed_errors
from ckpt_lib.store.pending import LocalPendingFile
from ckpt_lib.store.reading import LocalReader


class LocalStore:
    """A store in a local folder, which is created by the first write. Links below it are never followed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = Path(LocalFileSystem._strip_protocol(url))
        self._devices: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def location(self, path: str) -> str:
        return os.path.join(self._root, *_parts(path))

    def entries(self, folder: str) -> list[Entry]:
        try:
            with typed_errors(self.location(folder)), self._open(folder) as directory:
                entries = [entry for name, found in directory.scan() if (entry := _entry(name, found)) is not None]
        except FileNotFoundError:
            return []
        return sorted(entries, key=lambda entry: entry.name)

    def stat(self, path: str) -> Entry | None:
        folder, name = _split(path)
        try:
            with typed_errors(self.location(path)), self._open(folder) as directory:
                entry = _entry(name, directory.lstat(name))
        except FileNotFoundError:
            return None
        return entry if entry and not entry.is_folder else None

    def open_read(self, path: str) -> BinaryIO:
        folder, name = _split(path)
        with typed_errors(self.location(path)), self._open(folder) as directory:
            return cast(BinaryIO, LocalReader(directory, name))

    def open_write(self, folder: str) -> LocalPendingFile:
        with errors_of_writing(self.location(folder)), self._open(folder, create=True) as directory:
            return LocalPendingFile(directory)

    @contextmanager
    def lock(self, folder: str) -> Iterator[LocalFolderLock]:
        with errors_of_writing(self.location(folder)):
            directory = self._open(folder, create=True)
        with directory, locked(directory) as held:
            yield held

    @contextmanager
    def hold(self, folder: str, name: str, reason: str) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            # A store that is full, read-only or not there can still be read.
            with contextlib.suppress(FileNotFoundError, StoreError), typed_errors(self.location(folder)):
                directory = stack.enter_context(self._open(folder))
                stack.enter_context(leases.holding(directory, name, reason))
            yield

    def held(self, folder: str) -> dict[str, str]:
        try:
            with typed_errors(self.location(folder)), self._open(folder) as directory:
                return living_holds(directory)
        except FileNotFoundError:
            return {}

    def leftovers(self, folder: str) -> list[Leftover]:
        try:
            with typed_errors(self.location(folder)), self._open(folder) as directory:
                return find_leftovers(directory)
        except FileNotFoundError:
            return []

    def free_bytes(self, folder: str) -> int | None:
        path = Path(self.location(folder))
        with typed_errors(path):
            usage = shutil.disk_usage(_nearest(path))
        return usage.free if usage.total else None  # some network file systems say that they have no space at all

    def _open(self, folder: str, *, create: bool = False) -> Directory:
        """Open a folder. One that was there before does not begin anew on the disk below its own, which was unmounted.

        What was written there would be hidden once the disk is back.
        """
        device, path = self._devices.get(folder), self.location(folder)
        if device is not None and not os.path.exists(path) and os.stat(_nearest(Path(path))).st_dev != device:
            _refuse_dangling_link(self._root)
            raise StoreUnavailableError(
                "the file system that the folder was on is no longer there", path=path, hint="Mount it again."
            )
        try:
            directory = open_directory(self._root, _parts(folder), create=create)
        except OSError:
            _refuse_dangling_link(self._root)
            raise
        self._devices[folder] = directory.identity[0]
        return directory


def _nearest(path: Path) -> Path:
    """The folder, or the one closest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _refuse_dangling_link(root: Path) -> None:
    """Tell a store behind a link that leads nowhere, as to an unmounted disk, from a store that is not there yet."""
    for path in (root, *root.parents):
        if path.is_symlink() and not path.exists():
            raise NotAStoreError(
                f"it is a link that leads nowhere: to {os.readlink(path)}",
                path=str(path),
                hint="Mount the disk that it leads to, or choose another folder.",
            )


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


def _entry(name: str, found: os.stat_result) -> Entry | None:
    """The entry of a regular file or folder; links and devices are never ours, so they have none."""
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return None
    # The change time cannot be set back as the modification time can.
    version = f"{found.st_mtime_ns:x}-{found.st_ctime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
    return Entry(name, found.st_size, version, stat.S_ISDIR(found.st_mode), found.st_mtime)
