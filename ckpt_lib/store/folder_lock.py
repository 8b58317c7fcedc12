"""The lock of a local folder, and the only code that changes names in one.

The lock is a folder, ``.ckpt-lock``: whoever has its own token in there has it. A process makes such a folder under
another name and renames it into place, which the file system refuses while a token is in the one that is there. **Every
name is given by a rename out of that folder, or a link to a file in it, and taken by a rename into it.** Taking the
token away, which is one rename too, therefore ends the lock and everything that its owner could still do: the next step
of an owner that slept too long fails, for the path it goes by is no more.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ckpt_lib.errors import CheckpointExistsError, LeaseLostError, StoreError, StoreUnavailableError
from ckpt_lib.store import leases
from ckpt_lib.store.base import PendingFile
from ckpt_lib.store.directory import IS_POSIX, Directory
from ckpt_lib.store.leases import LOCK_NAME, PREPARED_PREFIX, Lease
from ckpt_lib.store.os_errors import typed_errors
from ckpt_lib.store.patching import overwrite
from ckpt_lib.store.pending import LocalPendingFile, write_all
from ckpt_lib.stream.digests import Buffer

LOCK_TIMEOUT_SECONDS = 120.0
"""How long to wait for an owner that is alive; more than a lease lasts."""
_SHORTEST_WAIT_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 0.02
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST} | (set() if IS_POSIX else {errno.EACCES, errno.EPERM})
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class _Mutexes:
    """One lock a folder among the threads of this process, which thus never wait for each other on the disk."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._owners: dict[tuple[int, int], tuple[threading.Lock, list[int]]] = {}

    @contextmanager
    def holding(self, directory: Directory) -> Iterator[None]:
        with self._guard:
            mutex, owner = self._owners.setdefault(directory.identity, (threading.Lock(), []))
        if owner == [threading.get_ident()]:
            raise StoreError("this thread has the folder's lock already", path=str(directory.path))
        if not mutex.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            raise _not_given_up(directory)
        owner.append(threading.get_ident())
        try:
            yield
        finally:
            owner.clear()
            mutex.release()


_mutexes = _Mutexes()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mutexes.__init__)  # type: ignore[misc]  # its holders are not in the child


@contextmanager
def locked(directory: Directory) -> Iterator[LocalFolderLock]:
    """Have the lock of a folder while the context lasts."""
    with _mutexes.holding(directory), contextlib.ExitStack() as stack:
        with typed_errors(directory.path):
            lease = stack.enter_context(leases.leases.using(directory))
            _take(directory, lease.token)
        held = LocalFolderLock(directory, lease)
        stack.callback(held.release)
        yield held


def _take(directory: Directory, token: str) -> None:
    prepared = PREPARED_PREFIX + token
    try:
        directory.mkdir(prepared)
        directory.mkdir(f"{prepared}/{token}")
        _wait_for(directory, lambda: _is_renamed(directory, prepared))
    except BaseException:
        with contextlib.suppress(OSError):
            leases.remove_tree(directory, prepared)
        raise


def _is_renamed(directory: Directory, prepared: str) -> bool:
    try:
        if os.name == "nt":  # it renames nothing to a name that is there, be it an empty folder's
            with contextlib.suppress(OSError):
                directory.rmdir(LOCK_NAME)
        directory.rename(prepared, LOCK_NAME)
    except FileNotFoundError:
        raise _lost(directory) from None
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


def _wait_for(directory: Directory, is_taken: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    wait_seconds = _SHORTEST_WAIT_SECONDS
    while not is_taken():
        for token in _owner_tokens(directory):
            if leases.is_over(directory, token):
                leases.bury(directory, token)
        if time.monotonic() > deadline:
            raise _not_given_up(directory)
        # At random, so that waiting processes do not keep step.
        time.sleep(wait_seconds * random.uniform(0.5, 1.0))  # noqa: S311
        wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)


def _owner_tokens(directory: Directory) -> list[str]:
    try:
        return directory.names(LOCK_NAME)
    except FileNotFoundError:
        return []


def _not_given_up(directory: Directory) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"another process has held the folder's lock for {LOCK_TIMEOUT_SECONDS:.0f} s",
        path=str(directory.path),
        hint="The lock of a dead process is free at once, of one that hangs when its lease ends: look for a busy one.",
    )


def _lost(directory: Directory) -> LeaseLostError:
    return LeaseLostError(
        "this process stood still for longer than its lease, and others went on; nothing was changed since",
        path=str(directory.path),
        hint="Try again.",
    )


class LocalFolderLock:
    """See :class:`ckpt_lib.store.base.FolderLock`."""

    def __init__(self, directory: Directory, lease: Lease) -> None:
        self._directory = directory
        self._lease = lease
        self._own = f"{LOCK_NAME}/{lease.token}"
        self._numbers = itertools.count()
        with self._errors():
            self.time_seconds = directory.lstat(self._own).st_mtime

    def publish(self, pending: PendingFile, path: str, *, replace: bool = False) -> None:
        name = self._name_of(path)
        if not isinstance(pending, LocalPendingFile) or pending.directory.identity != self._directory.identity:
            raise StoreError("that file was begun in another folder", path=str(self._directory.path / name))
        with self._errors():
            try:
                staged = self._staged_name()
                pending.move(staged)
                self._give_name(staged, name, replace=replace)
            except FileNotFoundError:
                if pending.is_lost:
                    raise _lost(self._directory) from None
                raise
        pending.published()

    def put(self, path: str, content: bytes, *, durable: bool = True) -> None:
        name, staged = self._name_of(path), self._staged_name()
        with self._errors():
            try:
                write_all(self._directory, staged, content, durable=durable)
                self._give_name(staged, name, replace=True)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._directory.unlink(staged)
                raise

    def delete(self, path: str) -> None:
        name, staged = self._name_of(path), self._staged_name()
        with self._errors():
            try:
                if stat.S_ISDIR(self._directory.lstat(name).st_mode):
                    raise StoreError("a folder is where a file should be", path=str(self._directory.path / name))
                self._directory.rename(name, staged)
            except FileNotFoundError:
                self._check_still_held()
                return
            self._directory.unlink(staged)

    def patch(self, path: str, pieces: Iterable[tuple[int, Buffer]], *, size_bytes: int) -> None:
        self._check_still_held()
        with typed_errors(self._directory.path / path):
            descriptor = self._directory.open(self._name_of(path), os.O_RDWR)
            try:
                overwrite(descriptor, pieces, size_bytes)
            finally:
                os.close(descriptor)

    def sync(self) -> None:
        with self._errors():
            self._directory.sync()
            if not self._directory.is_where_it_was():
                raise StoreError(
                    "the folder was moved or replaced while it was written to",
                    path=str(self._directory.path),
                    hint="What was written is where the folder is now.",
                )

    def sweep(self) -> list[str]:
        swept = []
        with self._errors():
            for token in sorted(leases.tokens(self._directory) - {self._lease.token}):
                if leases.is_over(self._directory, token):
                    swept += leases.bury(self._directory, token)
        return swept

    def release(self) -> None:
        """Give the lock up; never raises. What this leaves is removed with the lease, or by whoever comes next."""
        try:
            self._directory.rmdir(self._own)
        except FileNotFoundError:
            return  # it was taken away
        except OSError:  # something that could not be removed is in it
            with contextlib.suppress(OSError):
                leases.remove_tree(self._directory, self._own)
        with contextlib.suppress(OSError):  # whoever comes next may be faster
            self._directory.rmdir(LOCK_NAME)

    def _staged_name(self) -> str:
        return f"{self._own}/{next(self._numbers)}"

    def _name_of(self, path: str) -> str:
        return path.rpartition("/")[2]

    def _give_name(self, staged: str, name: str, *, replace: bool) -> None:
        if replace:
            self._directory.replace(staged, name)
        else:
            self._rename_exclusively(staged, name)

    def _rename_exclusively(self, staged: str, name: str) -> None:
        if not IS_POSIX:
            try:
                self._directory.rename(staged, name)  # refuses an existing target, as POSIX does not
            except FileExistsError:
                raise self._taken(name) from None
            return
        try:
            self._directory.link(staged, name)
        except FileExistsError:
            raise self._taken(name) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # No hard links here (FAT, some network file systems): this lock keeps our own writers apart.
            if self._directory.exists(name):
                raise self._taken(name) from None
            self._directory.rename(staged, name)
            return
        with contextlib.suppress(OSError):  # published already; what cannot be removed now is when the lock is
            self._directory.unlink(staged)

    def _taken(self, name: str) -> CheckpointExistsError:
        return CheckpointExistsError(
            "a file of that name is there or being written",
            path=str(self._directory.path / name),
            hint="It was left as it is.",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Typed errors; a path that is missing means that the lock was taken away, or a file of ours."""
        with typed_errors(self._directory.path):
            try:
                yield
            except FileNotFoundError as error:
                self._check_still_held()
                raise StoreError("someone removed an unfinished file", path=str(self._directory.path)) from error

    def _check_still_held(self) -> None:
        if not self._directory.exists(self._own):
            raise _lost(self._directory)
