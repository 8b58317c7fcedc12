"""Leases: which processes are at work in a folder, and what they hold there.

A process that is at work in a folder, writing, locking or reading, has a file there, its lease. A thread touches it
again and again. Everything unfinished carries the lease's token in its name, so that whoever finds it can tell whether
someone is still at it.

A lease ends with its file. Its owner removes it when there is nothing left to do. Others do when the owner is known to
be dead, or when **they have seen it unchanged for as long as it says**, by their own monotonic clock: no two clocks are
ever compared. With the lease goes everything that carries its token, the lock first. So an owner that wakes up too late
finds that the names it was about to use are gone, and can change no others (``docs/DURABILITY.md``).
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.store.directory import Directory
from ckpt_lib.store.owners import Owner, is_proven_dead, this_process

logger = logging.getLogger("ckpt_lib")

LEASE_SECONDS = 60.0
"""How long a lease lasts that is not renewed; it is, four times as often."""
MAX_LEASE_SECONDS = 3600.0
LEASE_PREFIX = ".ckpt-lease-"
PENDING_PREFIX = ".ckpt-tmp-"
LOCK_NAME = ".ckpt-lock"
PREPARED_PREFIX = ".ckpt-lock-"
BROKEN_PREFIX = ".ckpt-broken-"
_MAX_BYTES = 2**20
_MAX_SLEEP_SECONDS = 1.0


class LeaseContent(BaseModel):
    """What a lease says. ``taken_at`` is for people; nothing is decided by it."""

    model_config = ConfigDict(frozen=True)

    owner: Owner
    taken_at: str
    ttl_seconds: float = Field(gt=0, allow_inf_nan=False)
    holds: dict[str, str] = {}


class Lease:
    """This process's lease in one folder, shared by its threads."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory.again()
        self.token = secrets.token_hex(8)
        self.users = 0
        self.renewed_at = time.monotonic()
        self._numbers = itertools.count()
        self._holds: list[tuple[str, str]] = []
        self._pid = os.getpid()
        self._taken_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._lock = threading.Lock()
        try:
            self._write(self.name, os.O_EXCL)
        except BaseException:
            with contextlib.suppress(OSError):
                self.directory.unlink(self.name)
            self.directory.close()
            raise

    @property
    def name(self) -> str:
        return LEASE_PREFIX + self.token

    def new_name(self) -> str:
        """A name for an unfinished file, which goes with the lease."""
        return f"{PENDING_PREFIX}{self.token}-{next(self._numbers)}"

    def add_hold(self, name: str, reason: str) -> None:
        with self._lock:
            is_new = name not in dict(self._holds)
            self._holds.append((name, reason))
            try:
                if is_new:
                    self._rewrite()
            except BaseException:
                self._holds.remove((name, reason))
                raise

    def remove_hold(self, name: str, reason: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # at worst it is held until this lease ends
            self._holds.remove((name, reason))
            if name not in dict(self._holds):
                self._rewrite()

    def renew(self) -> bool:
        """Whether the lease is still there."""
        self.renewed_at = time.monotonic()
        try:
            self.directory.touch(self.name)
        except FileNotFoundError:
            return False
        except OSError as error:  # the store may come back before the lease ends
            logger.warning("the lease on %s was not renewed: %s", self.directory.path, error)
        return True

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that took it, and not a fork of it."""
        return self._pid == os.getpid()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            if self.is_ours:
                self.directory.unlink(self.name)
        self.directory.close()

    def _rewrite(self) -> None:
        if not self.directory.exists(self.name):
            raise FileNotFoundError(self.name)
        pending = self.new_name()
        try:
            self._write(pending, os.O_EXCL)
            self.directory.replace(pending, self.name)
        except BaseException:
            with contextlib.suppress(OSError):
                self.directory.unlink(pending)
            raise

    def _write(self, name: str, flags: int) -> None:
        content = LeaseContent(
            owner=this_process(), taken_at=self._taken_at, ttl_seconds=LEASE_SECONDS, holds=dict(self._holds)
        )
        descriptor = self.directory.open(name, os.O_WRONLY | os.O_CREAT | flags)
        try:
            data = content.model_dump_json().encode()
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)


class _Leases:
    """The leases of this process, and the thread that renews them."""

    def __init__(self) -> None:
        self._leases: dict[tuple[int, int], Lease] = {}
        self._lock = threading.Lock()
        self._begun = threading.Event()
        self._abandoned: queue.SimpleQueue[contextlib.ExitStack] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def using(self, directory: Directory) -> Iterator[Lease]:
        """The lease in a folder, for as long as the context lasts."""
        lease = self.take(directory)
        try:
            yield lease
        finally:
            self.give_back(lease)

    def take(self, directory: Directory) -> Lease:
        with self._lock:
            lease = self._leases.get(directory.identity)
            if lease is None or not lease.directory.exists(lease.name):  # none yet, or it was taken away
                lease = self._leases[directory.identity] = Lease(directory)
                self._start_renewing()
            lease.users += 1
            return lease

    def give_back(self, lease: Lease) -> None:
        with self._lock:
            lease.users -= 1
            if lease.users == 0:
                if self._leases.get(lease.directory.identity) is lease:
                    del self._leases[lease.directory.identity]
                lease.end()

    def close_later(self, contexts: contextlib.ExitStack) -> None:
        """Leave contexts that hold something by a lease, from a finalizer: the thread that renews closes them.

        The garbage collector may call a finalizer in the midst of anything, and of what holds this lock too.
        """
        self._abandoned.put(contexts)

    def end_all(self) -> None:
        """What the end of the process leaves to do."""
        with self._lock:
            for lease in self._leases.values():
                lease.end()
            self._leases.clear()

    def _start_renewing(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._renew_for_ever, name="ckpt-lease", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is ending, or there are too many: it lasts anyway
                thread.start()
                self._thread = thread
        self._begun.set()

    def _renew_for_ever(self) -> None:
        while True:
            self._begun.wait()
            time.sleep(min(LEASE_SECONDS / 4, _MAX_SLEEP_SECONDS))
            self._renew_due()

    def _renew_due(self) -> None:
        while not self._abandoned.empty():
            with contextlib.suppress(OSError):  # at worst it is held until the lease ends
                self._abandoned.get().close()
        with self._lock:
            if not self._leases:
                self._begun.clear()
            due = [lease for lease in self._leases.values() if time.monotonic() - lease.renewed_at >= LEASE_SECONDS / 4]
        lost = [lease for lease in due if not lease.renew()]  # without the lock: a store may take its time
        with self._lock:
            for lease in lost:
                if self._leases.get(lease.directory.identity) is lease:  # and has not just ended
                    logger.warning("the lease on %s was lost: it was not renewed in time", lease.directory.path)
                    del self._leases[lease.directory.identity]


leases = _Leases()
atexit.register(leases.end_all)


def _forget_the_parents() -> None:
    """A forked child has no lease yet; the file descriptors it inherited are closed, the files stay."""
    for lease in leases._leases.values():
        lease.directory.close()
    for state in (leases, _seen):  # their locks may have been held by a thread that is not here
        state.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


@dataclass(frozen=True)
class _Sighting:
    version: tuple[int, ...]
    at: float


class _Seen:
    """Since when this process has seen each lease unchanged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sightings: dict[str, _Sighting] = {}

    def unchanged_seconds(self, name: str, version: tuple[int, ...]) -> float:
        now = time.monotonic()
        with self._lock:
            earlier = self._sightings.get(name)
            if earlier is None or earlier.version != version:
                if len(self._sightings) > 10_000:
                    self._sightings.clear()
                earlier = self._sightings[name] = _Sighting(version, now)
            return now - earlier.at


_seen = _Seen()


def read_lease(directory: Directory, token: str) -> LeaseContent | None:
    """What a lease says, or ``None`` when it says nothing that can be understood: it may be about to be written.

    Raises ``FileNotFoundError`` when there is none.
    """
    try:
        descriptor = directory.open(LEASE_PREFIX + token, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        try:
            return LeaseContent.model_validate_json(os.read(descriptor, _MAX_BYTES))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except (OSError, ValidationError):
        return None


def is_over(directory: Directory, token: str) -> bool:
    """Whether nobody owns the lease any more: it is gone, its owner is dead, or it was not renewed for too long."""
    try:
        found = directory.lstat(LEASE_PREFIX + token)
        content = read_lease(directory, token)
    except FileNotFoundError:
        return True
    if content is not None and is_proven_dead(content.owner):
        return True
    version = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    ttl_seconds = LEASE_SECONDS if content is None else min(content.ttl_seconds, MAX_LEASE_SECONDS)
    return _seen.unchanged_seconds(token, version) > ttl_seconds


def living_holds(directory: Directory) -> dict[str, str]:
    """Everything that living owners hold in a folder, with who does and why."""
    found: dict[str, str] = {}
    for name, _ in directory.scan():
        token = name.removeprefix(LEASE_PREFIX)
        if token == name:
            continue
        try:
            content = read_lease(directory, token)
        except FileNotFoundError:
            continue
        if content is not None and content.holds and not is_over(directory, token):
            found |= {held: f"{reason} by {content.owner}" for held, reason in content.holds.items()}
    return found


def bury(directory: Directory, token: str) -> list[str]:
    """Take everything away from an owner whose lease is over, the lock first; return the unfinished files.

    Killed on the way, the next sweep does the rest: without a lease, what carries the token is nobody's.
    """
    broken = f"{BROKEN_PREFIX}{token}-{secrets.token_hex(4)}"
    with contextlib.suppress(FileNotFoundError):
        directory.rename(f"{LOCK_NAME}/{token}", broken)
    with contextlib.suppress(FileNotFoundError):
        directory.unlink(LEASE_PREFIX + token)
    names = [name for name, _ in directory.scan()]
    unfinished = [name for name in names if name.startswith(f"{PENDING_PREFIX}{token}-")]
    for name in unfinished:
        with contextlib.suppress(FileNotFoundError):
            directory.unlink(name)
    for name in names:
        if name == PREPARED_PREFIX + token or name.startswith(f"{BROKEN_PREFIX}{token}-"):
            remove_tree(directory, name)
    return unfinished


def tokens(directory: Directory) -> set[str]:
    """The token of every lease in a folder, and of everything that such a lease should explain."""
    found = set()
    for name, _ in directory.scan():
        for prefix in (LEASE_PREFIX, PENDING_PREFIX, PREPARED_PREFIX, BROKEN_PREFIX):
            if name.startswith(prefix):
                found.add(name[len(prefix) :].partition("-")[0])
    return found


def remove_tree(directory: Directory, name: str) -> None:
    """Remove a lock's folder: files, and one level of folders with files."""
    with contextlib.suppress(FileNotFoundError):
        for inner in directory.names(name):
            path = f"{name}/{inner}"
            try:
                with contextlib.suppress(FileNotFoundError):
                    directory.unlink(path)
            except (IsADirectoryError, PermissionError):  # Linux says the one of a folder, POSIX the other
                remove_tree(directory, path)
        directory.rmdir(name)
