"""Folders that a server keeps for a while: of uploads until they are imported, of exports until they are downloaded."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from fastapi import Path as PathParameter

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.wording import size_text
from ckpt_lib.errors import StorageFullError, StorePermissionError
from ckpt_lib.store.local.os_errors import errors_of_writing

_GOING = ".going-"
FolderId = Annotated[str, PathParameter(description="The id of an upload or export.", pattern="^[0-9a-f]{32}$")]


class KeptFolders:
    """Folders of one kind, each with a random name that nobody can guess. Only the user of the server may read them.

    One goes when nothing was written to it for ``kept_seconds``. Nothing else refers to it, so that a crash leaves at
    most what goes by then.
    """

    def __init__(self, folder: Path, kept_seconds: float) -> None:
        self._folder = folder
        self.kept_seconds = kept_seconds

    def create(self) -> str:
        """Make a folder and return its name. Raises :class:`~ckpt_lib.errors.StoreError`."""
        name = secrets.token_hex(16)
        with errors_of_writing(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_private()
            (self._folder / name).mkdir(mode=0o700)
        return name

    def _require_private(self) -> None:
        """Take the folder from others, who could have made it before; refuse one that stays theirs."""
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise StorePermissionError(
                "the folder for transfers belongs to somebody else",
                path=str(self._folder),
                expected="a folder of the user of the server",
                hint="`ckpt serve --transfers FOLDER` names another one.",
            )
        if found.st_mode & 0o077:
            self._folder.chmod(0o700)

    def path(self, name: str) -> Path:
        """Return where a folder is, if there is one."""
        return self._folder / name

    def names(self) -> list[str]:
        """Return the names of all folders."""
        return sorted(path.name for path in self._paths() if not path.name.startswith(_GOING))

    def remove(self, name: str) -> None:
        """Remove a folder at once; what a crash leaves of it goes with the next sweep."""
        going = self._folder / f"{_GOING}{secrets.token_hex(8)}"
        with failures_logged(f"removing {self.path(name)}"):
            self.path(name).rename(going)
            shutil.rmtree(going)

    def touch(self, name: str) -> None:
        """Keep a folder for ``kept_seconds`` from now on."""
        os.utime(self.path(name))

    def expires_at(self, name: str) -> float:
        """Return when a folder goes, in seconds since 1970, if nothing is written to it until then.

        Raises ``FileNotFoundError`` if it has gone.
        """
        return _changed_at(self.path(name)) + self.kept_seconds

    def sweep(self) -> None:
        """Remove what has expired, and what is left of removed ones."""
        now = time.time()
        for path in self._paths():
            with failures_logged(f"looking at {path}"):
                if path.name.startswith(_GOING):
                    shutil.rmtree(path)
                elif self.expires_at(path.name) <= now:
                    self.remove(path.name)

    def size_bytes(self) -> int:
        """Return what all files take."""
        return sum(map(size_of, self._paths()))

    def _paths(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []


def require_room(folder: Path, size_bytes: int, *, promised_bytes: int = 0) -> None:
    """Raise :class:`~ckpt_lib.errors.StorageFullError` if the disk of ``folder`` has no room for so many bytes, beside
    those that others were promised.
    """
    if size_bytes + promised_bytes > (free := free_bytes(folder)):
        promised = f", of which {size_text(promised_bytes)} are for others" if promised_bytes else ""
        raise StorageFullError(
            "the server has no room for the file",
            expected=size_text(size_bytes),
            got=f"{size_text(free)} free{promised}",
            hint="Ask for space on the disk of its transfers folder.",
        )


def free_bytes(folder: Path) -> int:
    """Return how much room is left on the disk of a folder, or of the one that it will lie in."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(parent).free


def size_of(folder: Path) -> int:
    """Return what all files below a folder take."""
    return sum(found.st_size for found in _files_below(folder))


def _changed_at(folder: Path) -> float:
    """Return when something in a folder was last written to, in seconds since 1970."""
    return max(found.st_mtime for found in (folder.stat(), *_files_below(folder)))


def _files_below(folder: Path) -> Iterator[os.stat_result]:
    """Yield what is known of each file; those that are renamed or removed meanwhile are passed over."""
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.lstat(os.path.join(place, name))
                if stat.S_ISREG(found.st_mode):
                    yield found
