"""The lock of a local folder, and the only code that changes names in one.

The lock is a numbered file in ``.ckpt-lock``. The one with the largest number counts: it says who has the lock, or that
nobody has. Whoever wants it makes the next one, which the file system lets one process do. The number is the fencing
token of others; here nothing has to compare it, for **every name is given by a rename out of the owner's lease, or a
link to a file in it, and taken by a rename into it**. Whoever takes over first renames the lease away, which ends
everything that its owner could still do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import CO_GENERATOR
from types import FrameType

from ckpt_lib.errors import CheckpointExistsError, LeaseLostError, StoreError, StoreUnavailableError
from ckpt_lib.store import leases
from ckpt_lib.store.base import PendingFile
from ckpt_lib.store.directory import IS_POSIX, Directory
from ckpt_lib.store.leases import Lease
from ckpt_lib.store.os_errors import errors_of_writing, typed_errors
from ckpt_lib.store.patching import overwrite
from ckpt_lib.store.pending import LocalPendingFile, write_all
from ckpt_lib.stream.digests import Buffer

LOCK_NAME = ".ckpt-lock"
LOCK_TIMEOUT_SECONDS = 120.0
"""How long to wait for an owner that is alive; more than a lease lasts."""
_LOOK_SECONDS = 0.1
_LOOKS = 10
"""How a thread that waits for another looks whether that one has left without giving up its lock.

More than once, since what it looks at is moving: a frame that is left meanwhile may not say who called it.
"""
_SHORTEST_WAIT_SECONDS = 0.001
_LONGEST_WAIT_SECONDS = 0.02
_chance = random.SystemRandom()
"""Not the generator of everybody, from which the training may draw: a resumed run draws what the first would have."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class _Claim:
    """A thread has a folder's lock, for as long as the function goes on that asked for it."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self._function = _asking_function()
        self._ended = threading.Lock()
        self._ended.acquire()

    @property
    def is_abandoned(self) -> bool:
        """Whether an interrupt ended that function before its ``with`` knew of the lock, or could give it up."""
        frame = sys._current_frames().get(self.thread)
        while frame is not None and frame is not self._function:
            frame = frame.f_back
        return frame is None

    def end(self) -> None:
        self._function = None
        with contextlib.suppress(RuntimeError):  # it was interrupted, and is called again
            self._ended.release()

    def wait(self, seconds: float) -> None:
        """Return once it has ended, or after a while."""
        if self._ended.acquire(timeout=seconds):
            self._ended.release()


def _asking_function() -> FrameType | None:
    """The function that runs a ``with`` block of :func:`locked`, through whatever context managers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (
        frame.f_globals.get("__name__") in (__name__, contextlib.__name__) or frame.f_code.co_flags & CO_GENERATOR
    ):
        frame = frame.f_back
    return frame


class _Mutexes:
    """One lock a folder among the threads of this process, which thus never wait for each other on the disk.

    An interrupt comes between any two calls, so none of them can be relied upon to give a lock up. What an interrupt
    left behind is found by whoever comes next.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._claims: dict[tuple[int, int], _Claim] = {}

    @contextmanager
    def holding(self, directory: Directory) -> Iterator[_Claim]:
        claim = _Claim()
        try:
            self._wait_for(directory, claim)
            yield claim
        finally:
            with self._guard:
                if self._claims.get(directory.identity) is claim:
                    del self._claims[directory.identity]
            claim.end()

    def _wait_for(self, directory: Directory, claim: _Claim) -> None:
        deadline, looks, abandoned = time.monotonic() + LOCK_TIMEOUT_SECONDS, 0, None
        while (other := self._other(directory, claim, abandoned)) is not None:
            is_own = other.thread == claim.thread
            looks = looks + 1 if other.is_abandoned else 0
            if looks >= (1 if is_own else _LOOKS):
                abandoned = other
            elif is_own:
                raise StoreError("this thread has the folder's lock already", path=str(directory.path))
            elif time.monotonic() > deadline:
                raise _not_given_up(directory)
            else:
                other.wait(_LOOK_SECONDS)

    def _other(self, directory: Directory, claim: _Claim, abandoned: _Claim | None) -> _Claim | None:
        """Whoever has the lock; ``None`` once it is ``claim`` that does, also in the place of ``abandoned``."""
        with self._guard:
            other = self._claims.get(directory.identity)
            if other is not None and other is not abandoned:
                return other
            self._claims[directory.identity] = claim
            return None

    def has(self, directory: Directory, claim: _Claim) -> bool:
        """Whether nobody took the lock over from ``claim``."""
        return self._claims.get(directory.identity) is claim


_mutexes = _Mutexes()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_mutexes.__init__)  # type: ignore[misc]  # its holders are not in the child


@contextmanager
def locked(directory: Directory) -> Iterator[LocalFolderLock]:
    """Have the lock of a folder while the context lasts."""
    with _mutexes.holding(directory) as claim:
        with errors_of_writing(directory.path):
            lease = leases.leases.take(directory)
            try:
                number = _take(directory, lease)
                held = LocalFolderLock(directory, lease)
            except BaseException:
                leases.leases.give_back(lease, is_spoilt=not _give_up_the_last(directory, lease))
                raise
        try:
            yield held
        finally:
            if _mutexes.has(directory, claim):
                _leave(directory, lease, number)
            else:  # the interrupted function is gone, and others went on: the lock is theirs
                leases.leases.give_back(lease)


def _leave(directory: Directory, lease: Lease, number: int) -> None:
    """Give up the lock and this use of the lease, also when an interrupt comes in between."""
    is_given_up = False
    try:
        is_given_up = _give_up(lease, number)
    except BaseException:  # the interrupt: the lock may be free by then, and another's
        is_given_up = _give_up_the_last(directory, lease)
        raise
    finally:
        leases.leases.give_back(lease, is_spoilt=not is_given_up)


def _take(directory: Directory, lease: Lease) -> int:
    """Wait for the lock and return its number."""
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    wait_seconds = _SHORTEST_WAIT_SECONDS
    while True:
        last = max(_numbers(directory), default=-1)
        if last < 0 and _is_empty(directory):
            lease.sign_off(f"{LOCK_NAME}/0")  # that nobody has it: each lock has one before it
            continue
        if _is_free(directory, last, lease.token) and _is_made(directory, lease, last + 1):
            return last + 1
        if time.monotonic() > deadline:
            raise _not_given_up(directory)
        # At random, so that waiting processes do not keep step.
        time.sleep(wait_seconds * _chance.uniform(0.5, 1.0))
        wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)


def _numbers(directory: Directory) -> set[int]:
    try:
        return {int(name) for name in directory.names(LOCK_NAME) if re.fullmatch("0|[1-9][0-9]{0,17}", name)}
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(LOCK_NAME)
        return set()


def _is_empty(directory: Directory) -> bool:
    """Whether there has been no lock yet: one listing may miss the only one, if another takes its place meanwhile."""
    return not any(_numbers(directory) for _ in range(3))


def _is_free(directory: Directory, number: int, own_token: str) -> bool:
    """Whether nobody has the lock of that number any more; an owner whose lease is over loses everything first."""
    if number < 0:
        return False
    name = f"{LOCK_NAME}/{number}"
    try:
        token = leases.read_signature(directory, name)
        if token is None:
            _bury_all_that_are_over(directory, own_token)  # whoever it was goes by a lease that is among these
            return leases.is_unchanged_for(leases.LEASE_SECONDS, directory, name, directory.lstat(name))
    except FileNotFoundError:  # there is a later one by now
        return False
    if token in ("", own_token):
        return True
    if not leases.is_over(directory, token):
        return False
    leases.bury(directory, token)
    return True


def _bury_all_that_are_over(directory: Directory, own_token: str) -> list[str]:
    """Take everything away from the owners of leases that are over; return what they left unfinished."""
    buried = []
    for token in sorted(leases.tokens(directory) - {own_token}):
        if leases.is_over(directory, token):
            buried += leases.bury(directory, token)
    return buried


def _is_made(directory: Directory, lease: Lease, number: int) -> bool:
    """Whether this process is the one that has the next lock. Those before are removed then."""
    name = f"{LOCK_NAME}/{number}"
    try:
        lease.sign(name)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if not lease.is_there:
            raise _lost(directory) from None
        return False  # Linux links no file that is being replaced: another thread notes what this process holds
    # A listing may miss both of two names if the one takes the other's place meanwhile, so it does not show that others
    # have gone on since the last look. The lock before this one does: whoever goes on removes it, the oldest first.
    numbers = _numbers(directory)
    is_last = max(numbers, default=0) == number and directory.exists(f"{LOCK_NAME}/{number - 1}")
    for superfluous in sorted(numbers - {number}) if is_last else [number]:
        with contextlib.suppress(FileNotFoundError):
            directory.unlink(f"{LOCK_NAME}/{superfluous}")
    return is_last


def _give_up(lease: Lease, number: int) -> bool:
    """Let others have the lock; only an interrupt is raised. ``False`` when only the end of the lease can do that."""
    try:
        if lease.is_ours:  # and not of a fork that unwinds what its parent was doing
            lease.sign_off(f"{LOCK_NAME}/{number}")
    except OSError:
        return False
    return True


def _give_up_the_last(directory: Directory, lease: Lease) -> bool:
    """As :func:`_give_up`, when an interrupt came and it is not known whether this process has the lock."""
    try:
        last = max(_numbers(directory), default=0)
        is_own = last > 0 and leases.read_signature(directory, f"{LOCK_NAME}/{last}") == lease.token
    except FileNotFoundError:  # others have gone on
        return True
    except OSError:
        return False
    return not is_own or _give_up(lease, last)


def _not_given_up(directory: Directory) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"another process has held the folder's lock for {LOCK_TIMEOUT_SECONDS:.0f} s",
        path=str(directory.path),
        hint="Locks of dead processes are released at once. Find the running process that holds this folder.",
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
        with self._errors():
            # The lock was made in there a moment ago.
            self.time_seconds = directory.lstat(LOCK_NAME).st_mtime

    def publish(self, pending: PendingFile, path: str, *, replace: bool = False) -> None:
        name = self._name_of(path)
        if not isinstance(pending, LocalPendingFile) or pending.directory.identity != self._directory.identity:
            raise self._begun_elsewhere(pending, name)
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

    def link(self, path: str, other: str) -> None:
        staged = self._staged_name()
        with self._errors():
            self._directory.link(self._name_of(path), staged)
            self._directory.touch(staged)
            self._directory.replace(staged, self._name_of(other))

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
        with typed_errors(self._directory.path / path):
            descriptor = self._directory.open(self._name_of(path), os.O_RDWR)
            try:
                # Only now: what has the name later, if the lock is taken away, is another file.
                self._check_still_held()
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
        with self._errors():
            leases.remove_new(self._directory)
            return _bury_all_that_are_over(self._directory, self._lease.token)

    def _begun_elsewhere(self, pending: PendingFile, name: str) -> StoreError:
        if isinstance(pending, LocalPendingFile) and pending.directory.path == self._directory.path:
            return StoreUnavailableError(
                "the folder was moved or removed while the file was written, and is another one now",
                path=str(self._directory.path),
                hint="Try again.",
            )
        return StoreError("that file was begun in another folder", path=str(self._directory.path / name))

    def _staged_name(self) -> str:
        return self._lease.new_name()

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
        if not self._lease.is_ours:
            raise StoreError("the folder's lock is not this process's: it was forked", path=str(self._directory.path))
        with typed_errors(self._directory.path):
            try:
                yield
            except FileNotFoundError as error:
                self._check_still_held()
                raise StoreError("someone removed an unfinished file", path=str(self._directory.path)) from error

    def _check_still_held(self) -> None:
        if not self._lease.is_there:
            raise _lost(self._directory)
