"""The folders of a local store: found without following links, and made so that power loss does not take them away."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from ckpt_lib.errors import NotAStoreError, StoreError, StoreUnavailableError
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.system import System

_durable: set[tuple[str, int, int]] = set()
"""Folders whose entry in the parent this process has synced: an existing one may come from a process that crashed.

By path as well as by number: a folder may be moved. A new one may get path and number of one that is gone, so that
making a folder forgets it.
"""


class Folders:
    """The folders below one root. ``parts`` are the names on the way; none stand for the root itself."""

    def __init__(self, root: Path, system: System) -> None:
        self.root = root
        self._system = system
        self._paths: dict[tuple[str, ...], Path] = {(): root}
        self._devices: dict[Path, int] = {}
        self._exact: set[Path] = set()

    def path(self, parts: tuple[str, ...]) -> Path:
        if parts not in self._paths:  # joining them takes longer than asking the system whether the folder is there
            self._paths[parts] = self.root.joinpath(*parts)
        return self._paths[parts]

    def find(self, parts: tuple[str, ...]) -> Path | None:
        """Return the folder, or ``None`` when it is not there. Raises ``OSError`` and errors of ``ckpt_lib``."""
        path = self.path(parts)
        try:
            self._check(path, parts)
        except FileNotFoundError:
            self._refuse_missing_disk(path)
            return None
        except OSError:
            _refuse_dangling_link(self.root)
            raise
        return path

    def make(self, parts: tuple[str, ...]) -> Path:
        """Return the folder; create it durably, and what is missing above it. Raises as :meth:`find`."""
        is_missing = self.find(parts) is None
        if is_missing:
            _refuse_dangling_link(self.root)
            self._make_missing(self.root)
        self._make_durable(self.root, is_root=True)
        for end in range(1, len(parts) + 1):
            folder = self.path(parts[:end])
            if is_missing:
                self._mkdir(folder)
                self._check(folder, parts[:end])
            self._make_durable(folder)
        return self.path(parts)

    def own(self, folder: Path) -> Path:
        """Return the store's own folder in ``folder``; create it."""
        own = folder / OWN_FOLDER
        try:
            found = self._system.lstat(own)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                self._system.mkdir(own)
            found = self._system.lstat(own)
        _check_folder(found, own)
        return own

    def is_spelled_so(self, folder: Path, name: str) -> bool:
        """Tell whether what ``name`` leads to is called exactly so: some systems find ``x`` under the name ``X``."""
        if folder in self._exact:
            return True
        with contextlib.suppress(FileNotFoundError):
            found, other = (self._system.lstat(folder / spelled) for spelled in (name, name.swapcase()))
            if os.path.samestat(found, other):
                return name in self._system.names(folder)
        self._learn_whether_exact(folder, name)
        return True

    def _learn_whether_exact(self, folder: Path, name: str) -> None:
        """Remember a folder that does not find what it holds under the name in capitals: it tells all names apart."""
        for known in (OWN_FOLDER, name):
            with contextlib.suppress(OSError):
                self._system.lstat(folder / known)
                try:
                    self._system.lstat(folder / known.swapcase())
                except FileNotFoundError:
                    self._system.lstat(folder / known)  # it was there all the time
                    self._exact.add(folder)
                    return

    def _check(self, path: Path, parts: tuple[str, ...]) -> None:
        """Raise when something on the way is no folder, is a link below the root, or is spelled otherwise."""
        found = os.stat(self.root)
        _check_folder(found, self.root)
        folder = self.root
        for end, part in enumerate(parts, start=1):
            parent, folder = folder, self.path(parts[:end])
            found = self._system.lstat(folder)
            _check_folder(found, folder)
            if not self.is_spelled_so(parent, part):
                raise StoreError(
                    "a folder differs from this name in case only",
                    path=str(folder),
                    hint="Use its spelling, or rename it.",
                )
        self._devices[path] = found.st_dev

    def _refuse_missing_disk(self, path: Path) -> None:
        """Raise if a folder that was there vanished together with its disk: what is written now would be hidden."""
        device = self._devices.get(path)
        if device is not None and os.stat(nearest(path)).st_dev != device:
            _refuse_dangling_link(self.root)
            raise StoreUnavailableError(
                "the file system that the folder was on is no longer there", path=str(path), hint="Mount it again."
            )
        _refuse_dangling_link(self.root)

    def _make_missing(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_missing(folder.parent)
        self._mkdir(folder)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        self._make_durable(folder)

    def _mkdir(self, folder: Path) -> None:
        with contextlib.suppress(FileExistsError):
            self._system.mkdir(folder)
            _durable.discard(_identity(folder))

    def _make_durable(self, folder: Path, *, is_root: bool = False) -> None:
        identity = _identity(folder)
        if identity in _durable:
            return
        try:
            self._system.fsync_folder(folder.parent)
        except OSError:
            if not is_root:  # the folder above the root is not ours, and may be one that we cannot open
                raise
        _durable.add(identity)


def _identity(folder: Path) -> tuple[str, int, int]:
    found = os.stat(folder)
    return str(folder), found.st_dev, found.st_ino


def _check_folder(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISDIR(found.st_mode):
        reason = "it is a link" if stat.S_ISLNK(found.st_mode) else os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, reason, str(path))


def nearest(path: Path) -> Path:
    """Return the folder, or the one closest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _refuse_dangling_link(root: Path) -> None:
    """Tell a store behind a link that leads nowhere, as to an unmounted disk, from a store that is not there yet."""
    for path in (root, *root.parents):
        if path.is_symlink() and not path.exists():
            raise NotAStoreError(
                f"the store is behind a link to {os.readlink(path)}, which does not exist",
                path=str(path),
                hint="Mount the disk that it leads to, or choose another folder.",
            )
