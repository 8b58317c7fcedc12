"""What may happen to a local store at any system call: kills, errors, power loss, interrupts."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ckpt_lib.errors import NotDurableError, StorageFullError, StoreError, StoreUnavailableError
from ckpt_lib.store import ABSENT, Delete, Put, Store
from ckpt_lib.store.local import LocalStore, folders
from ckpt_lib.store.local.system import System
from ckpt_lib.testing.store_contract import get, keys, upload, version_of
from tests.store.helpers import in_fork, temporary_files
from tests.store.systems import Disk, Failing, Killing, Watched, WithoutLinks

Operation = Callable[[Store], object]

WRITES: dict[str, Operation] = {
    "put": lambda store: store.put("e/x", b"new"),
    "put if absent": lambda store: store.put("e/y", b"new", if_version=ABSENT),
    "put if version": lambda store: store.put("e/x", b"new", if_version=version_of(store, "e/x")),
    "put many": lambda store: store.put_many(
        [Put("e/x", b"new", version_of(store, "e/x")), Put("e/y", b"new", ABSENT)]
    ),
    "upload": lambda store: upload(store, "e/x", b"new"),
    "upload new": lambda store: upload(store, "e/y", b"new"),
    "first in a folder": lambda store: store.put("f/g/x", b"new", if_version=ABSENT),
    "delete": lambda store: store.delete("e/x"),
    "delete if version": lambda store: store.delete("e/x", if_version=version_of(store, "e/x")),
}
READS: dict[str, Operation] = {
    "list": lambda store: store.list("", recursive=True),
    "stat": lambda store: store.stat("e/x"),
    "read": lambda store: get(store, "e/x"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: these tests write thousands of files, and wait for none."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as found:
        yield Path(found)


def contents(store: Store) -> dict[str, bytes]:
    return {key: get(store, key) for key in keys(store, recursive=True)}


OLD = {"e/x": b"old"}
_OUTCOMES: dict[str, dict[str, bytes]] = {
    "put": {"e/x": b"new"},
    "put if absent": {"e/x": b"old", "e/y": b"new"},
    "put if version": {"e/x": b"new"},
    "put many": {"e/x": b"new", "e/y": b"new"},
    "upload": {"e/x": b"new"},
    "upload new": {"e/x": b"old", "e/y": b"new"},
    "first in a folder": {"e/x": b"old", "f/g/x": b"new"},
    "delete": {},
    "delete if version": {},
}
_BETWEEN: dict[str, list[dict[str, bytes]]] = {"put many": [{"e/x": b"new"}]}
"""What may be done of many writes when something stops them."""


def prepared(root: Path, system: System | None = None) -> LocalStore:
    """A store with one object, whose file system was probed before."""
    store = LocalStore(str(root), system=system)
    store.put("e/x", b"old")
    assert store.capabilities.replace_if_version
    return store


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- kills ---


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", WRITES)
def test_killed_at_any_system_call_all_is_whole(folder: Path, name: str, when: str) -> None:
    """As before or as after, never in between; the next process needs no repair, and removes what was left."""
    code, at, seen = -signal.SIGKILL, 0, set()
    while code:
        at += 1
        root = folder / str(at)
        prepared(root)

        def work(root: Path = root, at: int = at) -> None:
            system = Killing(at, when)
            store = LocalStore(str(root), system=system)
            system.armed = True
            WRITES[name](store)

        code = in_fork(work)
        store = LocalStore(str(root))
        found = contents(store)
        assert found in (OLD, *_BETWEEN.get(name, ()), _OUTCOMES[name]), at
        seen.add(found == OLD)
        assert code or found == _OUTCOMES[name]
        upload(store, "e/z", b"works")
        upload(store, "f/g/z", b"works")
        upload(store, "z", b"works")
        assert temporary_files(root) == [], at
    assert seen == {True, False}
    assert at > 5


# --- errors ---


@pytest.mark.parametrize(("code", "stays"), [(errno.EIO, False), (errno.ENOSPC, True)], ids=["once", "from then on"])
@pytest.mark.parametrize("name", [*WRITES, *READS])
def test_whichever_system_call_fails_the_error_is_ours_and_says_what_happened(
    folder: Path, name: str, code: int, stays: bool
) -> None:
    """One after the other fails. Without an error it is done; NotDurableError says so, too; any other: no change."""
    operation = {**WRITES, **READS}[name]
    at, count = 0, 0
    while at <= count:
        at += 1
        root = folder / str(at)
        prepared(root)
        failing = Failing(code, at, stays=stays)
        store = LocalStore(str(root), system=failing)
        before = open_descriptors()
        error = _error_of(operation, store)
        assert error in (None, NotDurableError, StorageFullError if code == errno.ENOSPC else StoreError), at
        done = error in (None, NotDurableError)
        count = failing.count
        assert open_descriptors() == before, at
        again = LocalStore(str(root))
        possible = [_OUTCOMES.get(name, OLD)] if done else [OLD]
        if error is not None:
            possible += _BETWEEN.get(name, ())
        assert contents(again) in possible, at
        upload(again, "e/z", b"works")
        upload(again, "f/g/z", b"works")
        upload(again, "z", b"works")  # what the probe of a new folder left lies in the root
        assert temporary_files(root) == [], at
    assert at > 2


def _error_of(operation: Operation, store: Store) -> type[StoreError] | None:
    try:
        operation(store)
    except StoreError as error:
        return type(error)
    return None


@pytest.mark.parametrize("name", ["put", "upload", "put if absent"])
def test_an_error_of_fsync_is_final(folder: Path, name: str) -> None:
    """The kernel forgets what it could not write: a second fsync that succeeds would prove nothing."""
    system = Watched()
    store = prepared(folder, system)
    counts = {"fsync": 0, "fsync_folder": 0}

    def fail(call: str, failing: str) -> None:
        if call in counts:
            counts[call] += 1
        if call == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    system.armed = True
    system.on_call = lambda call: fail(call, "fsync")
    with pytest.raises(StoreError) as raised:
        WRITES[name](store)
    assert not isinstance(raised.value, NotDurableError)
    assert counts == {"fsync": 1, "fsync_folder": 0}
    assert contents(LocalStore(str(folder))) == OLD
    system.on_call = lambda call: fail(call, "fsync_folder")
    with pytest.raises(NotDurableError):
        WRITES[name](store)
    assert counts == {"fsync": 2, "fsync_folder": 1}


# --- power loss ---


@pytest.mark.parametrize("kind", ["links", "no links"])
@pytest.mark.parametrize("name", WRITES)
def test_power_loss_at_any_moment_leaves_whole_objects(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """A name never reaches the disk before the bytes do; what was acknowledged is on it, with the folders above."""
    monkeypatch.setattr(folders, "_durable", set())

    class WithoutLinksDisk(WithoutLinks, Disk):
        pass

    disk = Disk() if kind == "links" else WithoutLinksDisk()
    disk.armed = True
    store = LocalStore(str(folder / "new" / "root"), system=disk)
    store.put("e/x", b"old")
    disk.check(folder, {"new/root/e/x": b"old"})
    disk.possible.clear()
    WRITES[name](store)
    after = {f"new/root/{key}": content for key, content in _OUTCOMES[name].items()}
    disk.check(folder, after)
    assert all(set(values) <= {None, b"old", b"new"} for values in disk.possible.values()), disk.possible


def test_a_folder_that_a_killed_process_made_is_made_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, but perhaps not on the disk: whoever writes into it first syncs the one above, once."""
    prepared(folder / "root")
    monkeypatch.setattr(folders, "_durable", set())
    disk = Disk()
    store = LocalStore(str(folder / "root"), system=disk)
    disk.armed = True
    store.put("e/y", b"1")
    assert {folder, folder / "root", folder / "root" / "e"} <= set(disk.synced_folders)
    disk.synced_folders.clear()
    store.put("e/y", b"2")
    assert disk.synced_folders == [folder / "root" / "e"]


def test_a_folder_that_is_made_again_is_made_durable_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system may give it the number of the one that was deleted, as ext4 does."""
    monkeypatch.setattr(folders, "_identity", lambda path: (str(path), 0, 0))
    monkeypatch.setattr(folders, "_durable", set())
    disk = Disk()
    store = LocalStore(str(folder / "root"), system=disk)
    disk.armed = True
    for _ in range(2):
        store.put("e/y", b"1")
        assert {folder, folder / "root"} <= set(disk.synced_folders)
        disk.synced_folders.clear()
        shutil.rmtree(folder / "root")


def test_each_barrier_is_an_fsync_of_the_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file before it has its key, and of the folder after: for a put, a stream and a deletion."""
    store = prepared(folder)
    real, seen = os.fsync, list[str]()

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append(f"{'folder' if is_folder else 'file'} {sorted(keys(store, 'e'))}")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.put("e/y", b"new", if_version=ABSENT)
    upload(store, "e/z", b"new")
    store.delete("e/x")
    assert seen == [
        "file ['e/x']",
        "folder ['e/x', 'e/y']",
        "file ['e/x', 'e/y']",
        "folder ['e/x', 'e/y', 'e/z']",
        "folder ['e/y', 'e/z']",
    ]


def test_deleting_what_is_gone_makes_sure_that_it_is(folder: Path) -> None:
    """Whoever deleted it may have been killed before its end was on the disk."""
    disk = Disk()
    store = prepared(folder, disk)
    store.delete("e/x")
    disk.armed = True
    store.delete("e/x")
    assert disk.synced_folders == [folder / "e"]


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_what_was_done_of_many_before_an_error_is_durable(folder: Path, call: str) -> None:
    """Whoever looks after the error finds it done, and goes on."""
    disk = Disk()
    store = prepared(folder, disk)
    store.put("e/y", b"old")
    calls = count(1)

    def fail(name: str) -> None:
        if name == call and next(calls) == 2:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    disk.armed, disk.on_call = True, fail
    operations: dict[str, tuple[Callable[[], object], dict[str, bytes]]] = {
        "replace": (
            lambda: store.put_many([Put("e/x", b"new", None), Put("e/y", b"new", None)]),
            {"e/x": b"new", "e/y": b"old"},
        ),
        "unlink": (lambda: store.delete_many([Delete("e/x"), Delete("e/y")]), {"e/y": b"old"}),
    }
    change, left = operations[call]
    with pytest.raises(StoreUnavailableError):
        change()
    assert contents(LocalStore(str(folder))) == left
    assert disk.synced_folders[-1:] == [folder / "e"]


def test_many_are_put_while_the_program_ends(folder: Path) -> None:
    """Threads start no more then: what the last background save deletes is written all the same."""
    script = f"""
import atexit
from concurrent.futures import ThreadPoolExecutor
from ckpt_lib.store import ABSENT, Put, open_store
store = open_store({str(folder)!r})
atexit.register(lambda: store.put_many([Put("e/x", b"1", ABSENT), Put("e/y", b"2", ABSENT)]))
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert contents(LocalStore(str(folder))) == {"e/x": b"1", "e/y": b"2"}


# --- interrupts ---


@contextmanager
def interrupted_at(count: int) -> Iterator[list[int]]:
    """Raise ``KeyboardInterrupt`` before the ``count``-th bytecode of the local store; the list counts them."""
    seen = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if "/store/local/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            seen[0] += 1
            if seen[0] == count:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


def is_lock_free(root: Path) -> bool:
    """Tell whether another process would get the lock at once."""
    with io.FileIO(root / "e" / ".ckpt-tmp" / "lock", "r+") as file:
        return System().try_lock(file)


@pytest.mark.parametrize("name", ["put if absent", "put if version", "put many", "upload", "delete if version"])
def test_an_interrupt_at_any_bytecode_leaves_no_lock_and_no_descriptor(folder: Path, name: str) -> None:
    """Ctrl-C anywhere: all is whole, nothing is held once the exception is dealt with, and the next call works."""
    with interrupted_at(0) as seen:
        WRITES[name](prepared(folder / "counted"))
    total = seen[0]
    assert total > 500
    chance = random.Random(name)
    for at in sorted(chance.sample(range(1, total), 40)):
        root = folder / str(at)
        store = prepared(root)
        before = open_descriptors()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # what an interrupt leaves is closed by its end
            with suppress(KeyboardInterrupt), interrupted_at(at):
                WRITES[name](store)
            assert open_descriptors() == before, at
        assert is_lock_free(root), at
        assert contents(store) in (OLD, *_BETWEEN.get(name, ()), _OUTCOMES[name]), at
        upload(store, "e/z", b"works")
        assert temporary_files(root) == [], at


# Python drops an interrupt that comes within the callback of a weak reference, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_at_random_moments_leave_no_lock_and_no_descriptor(folder: Path) -> None:
    """As above, by real signals, which come between system calls as they do in a terminal."""
    assert threading.current_thread() is threading.main_thread()
    store = prepared(folder)
    chance, interrupts = random.Random(1), 0
    before = open_descriptors()
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            while interrupts < 50:
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 3e-3))
                    store.put("e/x", b"new")
                    upload(store, "e/y", b"new")
                    store.delete("e/y", if_version=version_of(store, "e/y"))
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupts += 1
                with suppress(KeyboardInterrupt):  # of a timer that ran out as it was stopped
                    if not store.stat("e/y"):
                        store.put("e/y", b"new")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert open_descriptors() == before
    assert is_lock_free(folder)
    upload(store, "e/z", b"works")
    assert temporary_files(folder) == []
