"""``Directory``: an open folder, whose names are reached from where it is and not by its path.

Whoever exchanges the folder, or one above it, for a link gains nothing: what was begun goes on in the folder that was
opened. Below a store's root no link is followed. Windows opens no folders; there a directory is its path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

IS_POSIX = os.name == "posix"
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
FILE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

_surely_named: set[tuple[str, tuple[int, int]]] = set()
"""Folders whose own names this process has made durable: one that is there may be that of a process killed before.

By path as well: a folder may be moved, and a new one gets the number of one that is gone.
"""


class Directory:
    """Names may have parts, ``"a/b"``. Every method raises ``OSError``."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self._descriptor = descriptor
        self._at: dict[str, Any] = {} if descriptor is None else {"dir_fd": descriptor}
        try:
            found = os.stat(path) if descriptor is None else os.fstat(descriptor)
        except BaseException:
            self.close()
            raise
        self.identity = (found.st_dev, found.st_ino)

    @property
    def place(self) -> tuple[str, tuple[int, int]]:
        """Which folder it is, and under which path it was found."""
        return str(self.path), self.identity

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            self._at = {"dir_fd": -1}  # whoever has this number next is not meant by what comes too late
            with contextlib.suppress(OSError):  # what was done is done, and the descriptor is gone all the same
                os.close(descriptor)

    def again(self) -> Directory:
        """The same folder, to be closed on its own."""
        return Directory(self.path, None if self._descriptor is None else os.dup(self._descriptor))

    def _name(self, name: str) -> str | Path:
        return name if self._at else self.path / name

    def open(self, name: str, flags: int) -> int:
        return os.open(self._name(name), flags | FILE_FLAGS, 0o666, **self._at)

    def lstat(self, name: str) -> os.stat_result:
        return os.stat(self._name(name), follow_symlinks=False, **self._at)

    def exists(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.lstat(name)
            return True
        return False

    def touch(self, name: str) -> None:
        """Set a file's times to now, by the clock of the file system."""
        os.utime(self._name(name), **(self._at | ({"follow_symlinks": False} if self._at else {})))

    def unlink(self, name: str) -> None:
        os.unlink(self._name(name), **self._at)

    def mkdir(self, name: str) -> None:
        os.mkdir(self._name(name), **self._at)

    def rmdir(self, name: str) -> None:
        os.rmdir(self._name(name), **self._at)

    def _from_here_to_here(self) -> dict[str, Any]:
        return {f"{end}_dir_fd": descriptor for descriptor in self._at.values() for end in ("src", "dst")}

    def rename(self, source: str, target: str) -> None:
        """Rename; POSIX replaces a file that is there, Windows refuses to."""
        os.rename(self._name(source), self._name(target), **self._from_here_to_here())

    def replace(self, source: str, target: str) -> None:
        """Rename, replacing a file that is there."""
        os.replace(self._name(source), self._name(target), **self._from_here_to_here())

    def link(self, source: str, target: str) -> None:
        os.link(self._name(source), self._name(target), follow_symlinks=False, **self._from_here_to_here())

    def symlink(self, text: str, name: str) -> None:
        os.symlink(text, self._name(name), **self._at)

    def readlink(self, name: str) -> str:
        return os.readlink(self._name(name), **self._at)

    def names(self, name: str = "") -> list[str]:
        """What is in a folder in here, or in this one."""
        if not self._at:
            return os.listdir(self.path / name)
        if not name:
            return os.listdir(self._open_descriptor())
        inner = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, **self._at)
        try:
            return os.listdir(inner)
        finally:
            os.close(inner)

    def scan(self) -> Iterator[tuple[str, os.stat_result]]:
        """Name and ``lstat`` of all that is in here, but for what vanishes meanwhile."""
        with os.scandir(self._open_descriptor() if self._at else self.path) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):
                    yield item.name, item.stat(follow_symlinks=False)

    def _open_descriptor(self) -> int:
        if self._descriptor is None:  # of which listings would make the current folder
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), str(self.path))
        return self._descriptor

    def sync(self) -> None:
        """Make the names in here durable. Windows does so with the files."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def is_where_it_was(self) -> bool:
        """Whether its path still leads here."""
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == self.identity


def open_directory(root: Path, parts: tuple[str, ...], *, create: bool = False) -> Directory:
    """Open the folder ``parts`` below ``root``; with ``create``, make what is missing, durably.

    ``root`` and what is above it may be links, as people arrange their disks; nothing below may.
    """
    if create:
        _make_root(root)
    if parts and IS_POSIX and not create:  # one call follows links up to the root, and none at the first part
        first, parts = root / parts[0], parts[1:]
        current = _open_without_link(first, lambda: os.open(first, _FOLDER_FLAGS | FILE_FLAGS))
    else:
        current = Directory(root, os.open(root, _FOLDER_FLAGS) if IS_POSIX else None)
    if create and current.place not in _surely_named:
        with contextlib.suppress(OSError):  # the folder above is not ours, and may be one that we cannot open
            _sync_folder(root.parent)
        _surely_named.add(current.place)
    for part in parts:
        with current:
            current = _open_child(current, part, create=create)
    return current


def _open_child(parent: Directory, name: str, *, create: bool) -> Directory:
    path = parent.path / name
    is_new = create and not parent.exists(name)
    if is_new:
        with contextlib.suppress(FileExistsError):
            parent.mkdir(name)
    if not IS_POSIX:
        if not stat.S_ISDIR(parent.lstat(name).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
        return Directory(path, None)
    child = _open_without_link(path, lambda: parent.open(name, _FOLDER_FLAGS))
    if is_new or (create and child.place not in _surely_named):
        try:
            parent.sync()
        except BaseException:
            child.close()
            raise
        _surely_named.add(child.place)
    return child


def _open_without_link(path: Path, open_folder: Callable[[], int]) -> Directory:
    try:
        return Directory(path, open_folder())
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link
            raise NotADirectoryError(errno.ENOTDIR, "it is a link", str(path)) from error
        raise


def _make_root(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_root(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    with Directory(folder, os.open(folder, _FOLDER_FLAGS) if IS_POSIX else None) as directory:
        directory.sync()
