"""Giving a whole, durable file its key, and taking keys away: the only code that changes names of keys.

Where the kernel's locks work, all of it happens under the lock of the folder. Where they do not, only what the file
system does in one step is offered: a link to a free name, and an unconditional rename.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ckpt_lib.errors import NotDurableError, StoreError, VersionConflictError
from ckpt_lib.store.base import ABSENT, Condition, Entry
from ckpt_lib.store.checks import OWN_FOLDER, version_conflict
from ckpt_lib.store.local.folder_lock import FolderLock, open_lock
from ckpt_lib.store.local.folders import Folders
from ckpt_lib.store.local.probe import IMPOSSIBLE, Abilities
from ckpt_lib.store.local.system import System
from ckpt_lib.store.local.temporary import discard, path_of


@dataclass(frozen=True)
class Place:
    """A key and the folder that holds it."""

    key: str
    folder: Path
    name: str

    @cached_property
    def path(self) -> Path:
        return self.folder / self.name

    @cached_property
    def own(self) -> Path:
        return self.folder / OWN_FOLDER


class Publisher:
    """Changes names in one folder. Every method raises ``OSError`` and errors of ``ckpt_lib``."""

    def __init__(self, folders: Folders, abilities: Abilities, system: System, patience_seconds: float) -> None:
        self._folders = folders
        self._abilities = abilities
        self._system = system
        self._patience_seconds = patience_seconds

    def publish(self, file: io.FileIO, place: Place, condition: Condition, *, durable: bool = True) -> Entry:
        """Give a file its key, durably if the file is; close it. After a failure it is gone."""
        try:
            (answer,) = self.publish_all([(file, place, condition)], durable=durable)
        finally:
            discard(file, self._system)
        if isinstance(answer, VersionConflictError):
            raise answer
        return answer

    def publish_all(
        self, files: Sequence[tuple[io.FileIO, Place, Condition]], *, durable: bool = True
    ) -> list[Entry | VersionConflictError]:
        """Give files of one folder their keys, as :meth:`publish`; the caller discards them."""
        _, some_place, _ = files[0]
        answers: list[Entry | VersionConflictError] = []
        try:
            if self._abilities.locks:
                with self._open_lock(some_place) as lock_file, self._locked(lock_file) as lock:
                    self._name_all(files, answers, lock)
            else:
                self._name_all(files, answers)
        finally:  # those before an error, too: whoever looks finds them written
            if durable and any(isinstance(answer, Entry) for answer in answers):
                self._make_durable(some_place)
        return answers

    def delete_all(self, places: Sequence[tuple[Place, str | None]]) -> list[VersionConflictError | None]:
        """Take keys of one folder away, durably, where they are there and have the version that is expected."""
        some_place, _ = places[0]
        answers: list[VersionConflictError | None] = []
        try:
            if any(expected is not None for _, expected in places):
                with self._open_lock(some_place) as lock_file, self._locked(lock_file):
                    self._unlink_all(places, answers)
            else:
                self._unlink_all(places, answers)
        finally:
            if answers:
                self._make_durable(some_place)
        return answers

    def _open_lock(self, place: Place) -> io.FileIO:
        return open_lock(place.own, self._system)

    def _locked(self, lock_file: io.FileIO) -> FolderLock:
        return FolderLock(lock_file, self._system, self._patience_seconds)

    def _name_all(
        self,
        files: Sequence[tuple[io.FileIO, Place, Condition]],
        answers: list[Entry | VersionConflictError],
        lock: FolderLock | None = None,
    ) -> None:
        for file in files:
            answer = self._name_or_refuse(*file, lock)
            answers.append(answer)  # at once: an error may end this on the way

    def _name_or_refuse(
        self, file: io.FileIO, place: Place, condition: Condition, lock: FolderLock | None
    ) -> Entry | VersionConflictError:
        try:
            if lock is not None:
                if self._abilities.time_step_nanoseconds is not None:
                    lock.date(file, self._abilities.time_step_nanoseconds)
                self._check_version(place, condition)
            return entry_of(place.key, self._name(file, place, condition))
        except VersionConflictError as error:
            return error

    def _unlink_all(
        self, places: Sequence[tuple[Place, str | None]], answers: list[VersionConflictError | None]
    ) -> None:
        for place in places:
            answer = self._unlink_or_refuse(*place)
            answers.append(answer)

    def _unlink_or_refuse(self, place: Place, expected: str | None) -> VersionConflictError | None:
        try:
            if expected is not None:
                if self._current(place) is None:
                    return None
                self._check_version(place, expected)
            self._unlink(place)
        except VersionConflictError as error:
            return error
        return None

    def _check_version(self, place: Place, expected: Condition) -> None:
        if not self._folders.is_spelled_so(place.folder, place.name):
            raise version_conflict(str(place.path), expected, "a key whose name differs in case only")
        if expected is None:
            return
        current = self._current(place)
        version = current.version if current else ABSENT
        if version != expected:
            raise version_conflict(str(place.path), expected, version)

    def _current(self, place: Place) -> Entry | None:
        """Return the entry of a key; opened, since a network file system may remember what it was a moment ago."""
        with contextlib.suppress(FileNotFoundError):
            if self._folders.is_spelled_so(place.folder, place.name):
                with self._system.open(place.path) as file:
                    return entry_of(place.key, os.fstat(file.fileno()))
        return None

    def _name(self, file: io.FileIO, place: Place, condition: Condition) -> os.stat_result:
        found = os.fstat(file.fileno())
        if condition is ABSENT:
            self._name_if_free(file, place)
        else:
            self._rename(file, place)
        return found

    def _name_if_free(self, file: io.FileIO, place: Place) -> None:
        try:
            self._system.link(path_of(file), place.path)
        except FileExistsError:
            raise version_conflict(str(place.path), ABSENT, "a key, or something else of that name") from None
        except OSError as error:
            if error.errno not in IMPOSSIBLE or not self._abilities.locks:
                raise
            # Under the lock of the folder, looking and renaming are one step for everyone who takes it.
            with contextlib.suppress(FileNotFoundError):
                self._system.lstat(place.path)
                raise version_conflict(str(place.path), ABSENT, "a key, or something else of that name") from None
            self._rename(file, place)

    def _rename(self, file: io.FileIO, place: Place) -> None:
        if self._system.is_windows:
            file.close()  # under the lock of the folder, so nobody takes it for abandoned
        try:
            self._system.replace(path_of(file), place.path)
        except BaseException:
            if self._system.is_windows:
                with contextlib.suppress(OSError):
                    self._system.unlink(path_of(file))
            raise
        with contextlib.suppress(OSError):
            file.close()  # its name is the key's now, and not to be removed

    def _unlink(self, place: Place) -> None:
        try:
            if stat.S_ISDIR(self._system.lstat(place.path).st_mode):
                raise StoreError("a folder has the name of the key", path=str(place.path), hint="Move the folder away.")
            if self._folders.is_spelled_so(place.folder, place.name):
                self._system.unlink(place.path)
        except FileNotFoundError:
            pass

    def _make_durable(self, place: Place) -> None:
        try:
            self._system.fsync_folder(place.folder)
        except OSError as error:
            raise NotDurableError(
                f"the name was changed, but not surely on the disk: {error.strerror or error}",
                path=str(place.path),
                hint="Check the disk and its messages in the system's log; write elsewhere.",
            ) from error


def entry_of(key: str, found: os.stat_result) -> Entry:
    """Return the entry of a regular file."""
    version = f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
    return Entry(key, found.st_size, version, found.st_mtime)
