"""Leases: which processes are at work in a folder, and what they hold there.

A process that is at work in a folder, writing, locking or reading, has a folder in it, its lease. A thread touches a
file in there again and again. Everything unfinished of this owner lies there too.

A lease ends with its folder. Its owner removes it when there has been nothing to do for a while. Others do when the
owner is known to be dead, or when **they have seen it unchanged for as long as it says**, by their own monotonic
clock: no two clocks are ever compared. They rename it away: one step, after which every path that the owner was about
to use is gone. So an owner that wakes up too late can change no name (``docs/DURABILITY.md``).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import logging
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.store.directory import Directory
from ckpt_lib.store.os_errors import is_full
from ckpt_lib.store.owners import Owner, is_proven_dead, this_process

logger = logging.getLogger("ckpt_lib")

LEASE_SECONDS = 60.0
"""How long a lease lasts that is not renewed; it is, four times as often."""
MAX_LEASE_SECONDS = 3600.0
LEASE_PREFIX = ".ckpt-lease-"
BROKEN_PREFIX = ".ckpt-broken-"
_WITH_TOKEN = re.compile(
    f"(?:{re.escape(LEASE_PREFIX)}(?P<living>[0-9a-f]{{16}}))|(?:{re.escape(BROKEN_PREFIX)}(?P<broken>[0-9a-f]{{16}})-.*)"
)
NEW_PREFIX = ".ckpt-new-"
_MAX_BYTES = 2**20
_MAX_SLEEP_SECONDS = 1.0
_IDLE_SECONDS = 5.0
"""How long a lease is kept that nothing needs: making and removing folders costs more than a whole small save."""
LEASE_FILE = "lease"
FREE_FILE = "free"
FREE = b"free"
_TOKEN = re.compile("[0-9a-f]{16}")
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_abandoned: set[str] = set()
"""The leases of this process that it could not remove."""


class LeaseContent(BaseModel):
    """What a lease says. ``taken_at`` is for people; nothing is decided by it."""

    model_config = ConfigDict(frozen=True)

    token: str = Field(pattern=r"^[0-9a-f]{16}$")  # it becomes a part of paths
    owner: Owner
    taken_at: str
    ttl_seconds: float = Field(gt=0, allow_inf_nan=False)
    holds: dict[str, str] = {}


class Lease:
    """This process's lease in one folder, shared by its threads."""

    def __init__(self, directory: Directory, holds: Iterable[tuple[str, str]] = ()) -> None:
        self.directory = directory.again()
        self.token = secrets.token_hex(8)
        self.users = 0
        self.renewed_at = self.idle_since = time.monotonic()
        self._numbers = itertools.count()
        self.holds = list(holds)
        self.heir: Lease | None = None
        """The lease that this process took after this one; what was held is held by that."""
        self._pid = os.getpid()
        self._taken_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._is_empty = False
        try:
            self._appear()
        except BaseException:
            self.end()
            raise

    def _appear(self) -> None:
        """Under another name at first: killed halfway, this would leave a lease that says nothing of its owner, for
        whose end everyone had to wait.
        """
        new = NEW_PREFIX + self.token
        while True:
            self.directory.mkdir(new)
            with contextlib.suppress(FileNotFoundError):  # a sweep removed it
                self._fill(new)
                self.directory.rename(new, self.name)
                return
            if not self.directory.is_where_it_was():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.directory.path))

    def _fill(self, name: str) -> None:
        try:
            self._write(f"{name}/{LEASE_FILE}", self._content())
            self._write(f"{name}/{FREE_FILE}", FREE)
        except OSError as error:
            # Whoever wants to make room on a full disk needs a lease for it: an empty one, that is renewed, has to do.
            if not is_full(error) or not self.directory.exists(f"{name}/{LEASE_FILE}"):
                raise
            self._is_empty = True

    @property
    def name(self) -> str:
        return LEASE_PREFIX + self.token

    @property
    def _file(self) -> str:
        return f"{self.name}/{LEASE_FILE}"

    def new_name(self) -> str:
        """A name for an unfinished file, which goes with the lease."""
        return f"{self.name}/{next(self._numbers)}"

    def sign(self, name: str) -> None:
        """Make a file that names this lease, in one step; raises ``FileExistsError`` when there is one."""
        if self._is_empty:
            self.directory.symlink(self.token, name)  # which needs no room; nobody follows it
        else:
            _link_or_copy(self.directory, self._file, name)

    def sign_off(self, name: str) -> None:
        """Replace such a file by one that says that nobody has what it stands for, in one step."""
        free = self.new_name()
        if self._is_empty:
            self.directory.symlink(FREE.decode(), free)
        else:
            _link_or_copy(self.directory, f"{self.name}/{FREE_FILE}", free)
        self.directory.replace(free, name)

    def add_hold(self, name: str, reason: str) -> None:
        if self.heir is not None:
            self.heir.add_hold(name, reason)
            return
        is_new = name not in dict(self.holds)
        self.holds.append((name, reason))
        try:
            if is_new:
                self._rewrite()
        except BaseException:
            self.holds.remove((name, reason))
            raise

    def remove_hold(self, name: str, reason: str) -> None:
        if self.heir is not None:
            self.heir.remove_hold(name, reason)
        elif self.is_ours:
            self.holds.remove((name, reason))
            with contextlib.suppress(OSError):  # at worst it is held until this lease ends
                if name not in dict(self.holds):
                    self._rewrite()

    def renew(self) -> bool:
        """Whether the lease is still there."""
        self.renewed_at = time.monotonic()
        try:
            self.directory.touch(self._file)
        except FileNotFoundError:
            return False
        except OSError as error:  # the store may come back before the lease ends
            logger.warning("the lease on %s was not renewed: %s", self.directory.path, error)
        return True

    @property
    def is_there(self) -> bool:
        """Whether nobody has taken it away."""
        return self.directory.exists(self.name)

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that took it, and not a fork of it."""
        return self._pid == os.getpid()

    def end(self) -> None:
        if self.is_ours:
            try:
                remove_tree(self.directory, NEW_PREFIX + self.token)
                remove_tree(self.directory, self.name)
            except OSError:  # this process, at least, need not wait for itself when the store works again
                _abandoned.add(self.token)
        self.directory.close()

    def _rewrite(self) -> None:
        pending = self.new_name()
        self._write(pending, self._content())
        self.directory.replace(pending, self._file)

    def _content(self) -> bytes:
        content = LeaseContent(
            token=self.token,
            owner=this_process(),
            taken_at=self._taken_at,
            ttl_seconds=LEASE_SECONDS,
            holds=dict(self.holds),
        )
        return content.model_dump_json().encode()

    def _write(self, name: str, data: bytes) -> None:
        descriptor = self.directory.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)


def _link_or_copy(directory: Directory, source: str, target: str) -> None:
    try:
        directory.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # No hard links here. Whoever reads the copy before it is whole takes it for one that he cannot understand.
        with open(directory.open(source, os.O_RDONLY), "rb") as original:
            content = original.read()
        with open(directory.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as copy:
            copy.write(content)


class _Leases:
    """The leases of this process, and the thread that renews them.

    Leases and holds may end in a finalizer, which runs in the middle of anything, of what is done here as well, and
    must wait for nothing. So ending them is left to whoever has the lock at that moment, this thread or another.

    An interrupt comes between any two calls, also in one of Python's own context managers and events. So the lock is
    taken by ``with`` itself, which nothing comes in between.
    """

    def __init__(self) -> None:
        self._leases: dict[tuple[int, int], Lease] = {}
        self._lock = threading.RLock()  # not to be taken twice, but it knows whose it is
        self._endings: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def using(self, directory: Directory) -> Iterator[Lease]:
        """The lease in a folder, for as long as the context lasts."""
        lease = self.take(directory)
        try:
            yield lease
        finally:
            self.give_back(lease)

    @contextlib.contextmanager
    def holding(self, directory: Directory, name: str, reason: str) -> Iterator[None]:
        """Hold a name in a folder for as long as the context lasts."""
        with self.using(directory) as lease:
            with self._lock:
                lease.add_hold(name, reason)
            self._run_endings()
            try:
                yield
            finally:
                self._end(partial(lease.remove_hold, name, reason))

    def take(self, directory: Directory) -> Lease:
        with self._lock:
            lease = self._leases.get(directory.identity)
            if lease is None:
                lease = self._leases[directory.identity] = Lease(directory)
            elif not lease.is_there:  # it was taken away
                lease = self._replace(lease)
            self._start_renewing()
            lease.users += 1
        self._run_endings()
        return lease

    def give_back(self, lease: Lease, *, is_spoilt: bool = False) -> None:
        """Say that this use is over; a lease that ``is_spoilt`` is not used again."""
        self._end(partial(self._give_back, lease, is_spoilt))

    def _give_back(self, lease: Lease, is_spoilt: bool) -> None:
        lease.users -= 1
        lease.idle_since = time.monotonic()
        is_current = self._leases.get(lease.directory.identity) is lease
        if is_spoilt and is_current and lease.users > 0:
            # Nobody renews it from now on: it ends with its last user, or in its time.
            try:
                self._replace(lease)
            except OSError:
                del self._leases[lease.directory.identity]
        elif lease.users == 0 and (is_spoilt or not is_current):
            if is_current:
                del self._leases[lease.directory.identity]
            lease.end()
            if lease.heir is not None:
                self._give_back(lease.heir, is_spoilt=False)

    def _replace(self, lost: Lease) -> Lease:
        """A new lease for one that is not to be used any more. What was held is held by that, if it is still there."""
        lost.heir = self._leases[lost.directory.identity] = Lease(lost.directory, lost.holds)
        lost.heir.users += 1  # the lost one
        return lost.heir

    def _end(self, ending: Callable[[], None]) -> None:
        self._endings.put(ending)
        self._run_endings()

    def _run_endings(self) -> None:
        while not self._endings.empty():
            if self._lock._is_owned():  # type: ignore[attr-defined]  # this is a finalizer: whoever it broke into goes on
                return
            try:
                if not self._lock.acquire(blocking=False):  # whoever has it looks here next
                    return
                with contextlib.suppress(Empty):
                    while True:
                        self._endings.get_nowait()()
            finally:
                # The first call from here, and without asking whether it was taken: an interrupt might come in between.
                try:  # noqa: SIM105
                    self._lock.release()
                except RuntimeError:
                    pass

    def end_all(self) -> None:
        """What the end of the process leaves to do."""
        with self._lock:
            for lease in self._leases.values():
                lease.end()
            self._leases.clear()
        self._run_endings()

    def _start_renewing(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._renew_for_ever, name="ckpt-lease", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is ending, or there are too many: it lasts anyway
                thread.start()
                self._thread = thread
        if self._wakes.empty():
            self._wakes.put(None)

    def _renew_for_ever(self) -> None:
        while True:
            self._wakes.get()
            while self._leases:
                time.sleep(min(LEASE_SECONDS / 4, _MAX_SLEEP_SECONDS))
                self._renew_due()

    def _renew_due(self) -> None:
        with self._lock:
            now = time.monotonic()
            for lease in list(self._leases.values()):
                if lease.users == 0 and now - lease.idle_since >= _IDLE_SECONDS:
                    del self._leases[lease.directory.identity]
                    lease.end()
            due = [lease for lease in self._leases.values() if now - lease.renewed_at >= LEASE_SECONDS / 4]
            for lease in due:
                lease.users += 1  # so that it does not end meanwhile
        self._run_endings()
        for lease in due:
            if not lease.renew():  # without the lock: a store may take its time
                self._take_again(lease)
            self._end(partial(self._renewed, lease, lease.idle_since))

    def _renewed(self, lease: Lease, idle_since: float) -> None:
        self._give_back(lease, is_spoilt=False)
        lease.idle_since = idle_since  # renewing is no use of it

    def _take_again(self, lost: Lease) -> None:
        with self._lock:
            if self._leases.get(lost.directory.identity) is not lost:
                return
            logger.warning("the lease on %s was lost: it was not renewed in time", lost.directory.path)
            try:
                self._replace(lost)
            except OSError as error:
                logger.warning("and could not be taken again: %s", error)
        self._run_endings()


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
        return _parsed(_read(directory, f"{LEASE_PREFIX}{token}/{LEASE_FILE}"))
    except FileNotFoundError:
        raise
    except OSError:
        return None


def read_signature(directory: Directory, name: str) -> str | None:
    """The token in a file that :meth:`Lease.sign` made, ``""`` after :meth:`Lease.sign_off`; ``None`` if unreadable.

    Raises ``FileNotFoundError`` when there is none.
    """
    try:
        content = _read(directory, name)
        return "" if content == FREE else LeaseContent.model_validate_json(content).token
    except FileNotFoundError:
        raise
    except (OSError, ValidationError):
        return _read_link(directory, name)


def _read_link(directory: Directory, name: str) -> str | None:
    """What a signature says that was made on a full disk."""
    with contextlib.suppress(OSError):
        text = directory.readlink(name)
        if text == FREE.decode():
            return ""
        if _TOKEN.fullmatch(text):
            return text
    return None


def _read(directory: Directory, name: str) -> bytes:
    descriptor = directory.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        return os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)


def is_over(directory: Directory, token: str) -> bool:
    """Whether nobody owns the lease any more: it is gone, its owner is dead, or it was not renewed for too long."""
    if token in _abandoned:
        return True
    try:
        found = lstat(directory, token)
        content = read_lease(directory, token)
    except FileNotFoundError:
        content = None
        if not directory.exists(LEASE_PREFIX + token):
            return True
    if content is not None and is_proven_dead(content.owner):
        return True
    return is_unchanged_for(ttl_seconds(content), directory, token, found)


def lstat(directory: Directory, token: str) -> os.stat_result:
    """What a renewal changes. Raises ``FileNotFoundError`` when there is no such lease."""
    try:
        return directory.lstat(f"{LEASE_PREFIX}{token}/{LEASE_FILE}")
    except (FileNotFoundError, NotADirectoryError):  # it may be about to be written, or be something else
        return directory.lstat(LEASE_PREFIX + token)


def ttl_seconds(content: LeaseContent | None) -> float:
    """How long a lease lasts when it is not renewed."""
    return LEASE_SECONDS if content is None else min(content.ttl_seconds, MAX_LEASE_SECONDS)


def is_unchanged_for(seconds: float, directory: Directory, name: str, found: os.stat_result) -> bool:
    """Whether this process has seen a file as it is now for so long, by its own clock. Asking begins the watch."""
    version = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    return _seen.unchanged_seconds(f"{directory.identity}/{name}", version) > seconds


def living_holds(directory: Directory) -> dict[str, str]:
    """Everything that living owners hold in a folder, with who does and why."""
    found: dict[str, str] = {}
    for name in directory.names():
        match = _WITH_TOKEN.fullmatch(name)
        if not match or not (token := match["living"]):
            continue
        content = _read_holds(directory, token)
        if content is not None and content.holds and not is_over(directory, token):
            found |= {held: f"{reason} by {content.owner}" for held, reason in content.holds.items()}
    return found


def _read_holds(directory: Directory, token: str) -> LeaseContent | None:
    """What a lease says. Unlike :func:`read_lease` it raises ``OSError`` where a living owner's cannot be read.

    For what he holds would be taken from him.
    """
    try:
        return _parsed(_read(directory, f"{LEASE_PREFIX}{token}/{LEASE_FILE}"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        if is_over(directory, token):
            return None
        raise


def _parsed(data: bytes) -> LeaseContent | None:
    try:
        return LeaseContent.model_validate_json(data)
    except ValidationError:
        return None


def bury(directory: Directory, token: str) -> list[str]:
    """Take everything away from an owner whose lease is over; return the names of what it left unfinished.

    Killed on the way, the next sweep does the rest.
    """
    with contextlib.suppress(FileNotFoundError):
        directory.rename(LEASE_PREFIX + token, f"{BROKEN_PREFIX}{token}-{secrets.token_hex(4)}")
    removed = []
    for name in directory.names():
        if name.startswith(f"{BROKEN_PREFIX}{token}-"):
            removed += [f"{LEASE_PREFIX}{token}/{inner}" for inner in remove_tree(directory, name)]
    return removed


def remove_new(directory: Directory) -> None:
    """Remove leases that are being written. A living owner writes his again: none of his steps finds its path."""
    for name in directory.names():
        if name.startswith(NEW_PREFIX):
            broken = f"{BROKEN_PREFIX}{secrets.token_hex(8)}-new"  # under a token that nobody has
            with contextlib.suppress(FileNotFoundError):
                directory.rename(name, broken)
                remove_tree(directory, broken)


def is_of_leases(name: str) -> bool:
    """Whether a sweep removes what has that name, once no living owner has it."""
    return name.startswith(NEW_PREFIX) or _WITH_TOKEN.fullmatch(name) is not None


def tokens(directory: Directory) -> set[str]:
    """The token of every lease in a folder, and of those that were taken away."""
    names = map(_WITH_TOKEN.fullmatch, directory.names())
    return {found["living"] or found["broken"] for found in names if found}


def remove_tree(directory: Directory, name: str) -> list[str]:
    """Remove the folder of a lease and return what was unfinished in it.

    What its owner puts there in that instant is for the next sweep.
    """
    unfinished = []
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(directory.lstat(name).st_mode):  # not ours, but in the way of what is
            directory.unlink(name)
            return []
        for inner in directory.names(name):
            remove_tree(directory, f"{name}/{inner}")
            if inner not in (LEASE_FILE, FREE_FILE):
                unfinished.append(inner)
        try:
            directory.rmdir(name)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
    return unfinished
