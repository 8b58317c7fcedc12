"""Operating systems and file systems that tests need and this machine is not. They really do what they let pass."""

from __future__ import annotations

import errno
import io
import os
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckpt_lib.store.local.system import System

CALLS = (
    *("create", "open", "write", "read_at", "fsync", "fsync_folder", "lstat", "scan", "names", "mkdir", "rmdir"),
    *("link", "replace", "unlink", "set_modified", "try_lock", "unlock"),
)
"""The methods of :class:`System` that call the operating system."""


class WindowsLike(System):
    """Files that are open can be neither renamed nor deleted, and some names are reserved."""

    is_windows = True
    busy_seconds = 0.5

    def __init__(self) -> None:
        self._open_files: weakref.WeakSet[io.FileIO] = weakref.WeakSet()

    def create(self, path: Path) -> io.FileIO:
        return self._remember(super().create(path))

    def open(self, path: Path, mode: str = "r") -> io.FileIO:
        return self._remember(super().open(path, mode))

    def _remember(self, file: io.FileIO) -> io.FileIO:
        self._open_files.add(file)
        return file

    def _when_closed(self, change: Callable[..., None], *paths: Path) -> None:
        def refuse_while_open(*paths: Path) -> None:
            for path in filter(self._is_open, paths):
                error = PermissionError(errno.EACCES, "sharing violation", str(path))
                error.winerror = 32  # type: ignore[attr-defined]
                raise error
            change(*paths)

        super()._when_closed(refuse_while_open, *paths)

    def _is_open(self, path: Path) -> bool:
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return False
        for file in list(self._open_files):
            try:
                if os.path.samestat(found, os.fstat(file.fileno())):
                    return True
            except (ValueError, OSError):
                continue  # it was closed meanwhile
        return False


class MacLike(System):
    """Names that differ in case only lead to the same file; each is listed as it was first written."""

    def _stored(self, path: Path) -> Path:
        try:
            names = os.listdir(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return path
        return next((path.parent / name for name in names if name.casefold() == path.name.casefold()), path)

    def create(self, path: Path) -> io.FileIO:
        return super().create(self._stored(path))

    def open(self, path: Path, mode: str = "r") -> io.FileIO:
        return super().open(self._stored(path), mode)

    def lstat(self, path: Path) -> os.stat_result:
        return super().lstat(self._stored(path))

    def mkdir(self, folder: Path) -> None:
        super().mkdir(self._stored(folder))

    def link(self, source: Path, target: Path) -> None:
        super().link(source, self._stored(target))

    def replace(self, source: Path, target: Path) -> None:
        super().replace(source, self._stored(target))

    def unlink(self, path: Path) -> None:
        super().unlink(self._stored(path))


class WithoutLinks(System):
    """No file has two names, as on FAT."""

    code = errno.EPERM

    def link(self, source: Path, target: Path) -> None:
        raise OSError(self.code, os.strerror(self.code), str(source))


class WithoutLocks(System):
    """The kernel has no locks for these files, as on some network file systems."""

    def try_lock(self, file: io.FileIO) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(file.name))


class WithoutTimes(System):
    """Times are kept to the second, as on old file systems."""

    def set_modified(self, file: io.FileIO, nanoseconds: int) -> None:
        super().set_modified(file, nanoseconds // 10**9 * 10**9)


class Watched(System):
    """Counts calls from when it is ``armed``, and tells ``on_call`` the name of each before it is made."""

    def __init__(self) -> None:
        self.armed = False
        self.count = 0
        self.on_call: Callable[[str], object] = lambda _: None

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Do what the test is about; the call is made when this returns."""
        self.on_call(name)

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Do what the test is about when the call has succeeded."""

    def finally_(self) -> None:
        """Do what the test is about when the call was made, however it ended."""


def _watched(name: str) -> Callable[..., Any]:
    real = getattr(System, name)

    def call(self: Watched, *arguments: Any) -> Any:
        if not self.armed:
            return real(self, *arguments)
        self.count += 1
        self.before(name, arguments)
        try:
            result = real(self, *arguments)
            self.after(name, arguments)
        finally:
            self.finally_()
        return result

    return call


for _name in CALLS:
    setattr(Watched, _name, _watched(_name))


class Failing(Watched):
    """The ``at``-th call fails with an error of this number, and with ``stays`` all that follow."""

    def __init__(self, code: int, at: int = 0, *, stays: bool = False, only: str = "") -> None:
        super().__init__()
        self.armed = True
        self._code, self._at, self._stays, self._only = code, at, stays, only
        self._thread = threading.get_ident()

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        is_turn = self.count == self._at or (self._stays and self.count > self._at)
        if name == self._only or (not self._only and is_turn):
            raise OSError(self._code, os.strerror(self._code), str(arguments[0]) if arguments else None)


class Killing(Watched):
    """The process is killed at the ``at``-th call, before or after it."""

    def __init__(self, at: int, when: str) -> None:
        super().__init__()
        self._at, self._when = at, when

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self._when == "before" and self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def finally_(self) -> None:
        if self._when == "after" and self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


class Disk(Watched):
    """Notes what power loss could leave of every file. ``possible`` are the contents that each key might have had.

    Bytes are surely on the disk after the fsync of their file, a name after that of its folder. A change of a name that
    was not synced may have come to the disk or not, whatever became of others. A file with a name and without its bytes
    has the content ``b"torn"``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.synced_folders: list[Path] = []
        self.possible: dict[str, set[bytes | None]] = {}
        self._written: dict[Path, bytes] = {}
        self._synced: dict[Path, bytes] = {}
        self._names: dict[Path, list[bytes | None]] = {}
        """What each name stands for on the disk, and what it was changed to since; folders are ``b"folder"``."""

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        path = Path(str(arguments[0].name)) if isinstance(arguments[0], io.FileIO) else Path(arguments[0])
        if name == "create":
            self._written[path] = b""
        elif name == "write" and path in self._written:
            self._written[path] += bytes(arguments[1])
        elif name == "fsync":
            self._synced[path] = self._written[path]
        elif name in ("link", "replace"):
            whole = self._synced.get(path) == self._written[path]
            self._change(arguments[1], self._written[path] if whole else b"torn")
        elif name == "unlink":
            self._change(path, None)
        elif name == "mkdir":
            self._change(path, b"folder")
        elif name == "fsync_folder":
            self.synced_folders.append(path)
            for changed, values in self._names.items():
                if changed.parent == path:
                    del values[:-1]

    def _change(self, path: Path, content: bytes | None) -> None:
        if ".ckpt-tmp" not in path.parts:
            self._names.setdefault(path, [None]).append(content)
            if content != b"folder":
                self.possible.setdefault(str(path), set()).update(self._names[path])

    def check(self, base: Path, expected: dict[str, bytes]) -> None:
        """Fail unless this, and nothing else, is what power loss leaves now, with all the folders above it."""
        surely = {path: values[0] for path, values in self._names.items() if len(values) == 1}
        assert surely == {path: values[-1] for path, values in self._names.items()}, self._names
        files = {path for path, content in surely.items() if content not in (None, b"folder")}
        assert {str(path.relative_to(base)): surely[path] for path in files} == expected
        for path in files:
            above = [folder for folder in path.parents if folder.is_relative_to(base) and folder != base]
            assert all(surely.get(folder) == b"folder" for folder in above)
