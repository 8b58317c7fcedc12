"""Leases and the folder's lock: who has them, when they end, and that whoever lost them changes nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_lib.errors import CheckpointError, LeaseLostError, StoreError, StorePermissionError, StoreUnavailableError
from ckpt_lib.store import folder_lock, leases, owners
from ckpt_lib.store.base import FolderLock
from ckpt_lib.store.directory import Directory
from ckpt_lib.store.folder_lock import LOCK_NAME
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.owners import Owner
from tests.helpers import MakeManager, save, start_python
from tests.torture.leases import contents, lock_token, planted_lease
from tests.torture.processes import Child, ChildError, patched

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the processes of these tests are forks")

SHORT_SECONDS = 0.4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder ``e`` of the store, empty."""
    (tmp_path / "e").mkdir()
    return tmp_path / "e"


@pytest.fixture
def store(folder: Path) -> LocalStore:
    return LocalStore(str(folder.parent))


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that a test can wait for, and none of other tests, which would be renewed as often."""
    leases.leases.end_all()
    monkeypatch.setattr(leases, "LEASE_SECONDS", SHORT_SECONDS)


@contextlib.contextmanager
def opened(store: LocalStore) -> Iterator[Directory]:
    with store._open("e") as directory:
        yield directory


def names(folder: Path) -> list[str]:
    """What is in a folder, without the lock and the leases, which living processes keep, or take again, for a while."""
    passing = (LOCK_NAME, leases.LEASE_PREFIX, leases.NEW_PREFIX)
    return sorted(name for name in os.listdir(folder) if not name.startswith(passing))


def swept(store: LocalStore, folder: Path) -> list[str]:
    """As :func:`names`, when nothing is left of a process that ended while it was taking a lost lease again."""
    with store.lock("e") as held:
        held.sweep()
    return names(folder)


def lease_files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{leases.LEASE_PREFIX}*/lease"))


def token_of(lease: Path) -> str:
    return lease.parent.name.removeprefix(leases.LEASE_PREFIX)


def in_child(function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 60) -> Any:
    """What ``function`` returns in a fork of this process."""
    with Child(function, *arguments, timeout_seconds=timeout_seconds) as child:
        return child.result()


def stop() -> None:
    """Let this process stand still until it is told to go on."""
    os.kill(os.getpid(), signal.SIGSTOP)


def eventually(is_so: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


# --- having a lease ---


def test_a_lease_lasts_as_long_as_something_is_done_and_nothing_is_left(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a lock and a hold share one lease, which goes when there has been nothing to do for a while."""
    monkeypatch.setattr(leases, "_IDLE_SECONDS", 0.2)
    pending = store.open_write("e")
    (lease,) = lease_files(folder)
    with store.lock("e"), store.hold("e", "x", "read"):
        assert lease_files(folder) == [lease]
    time.sleep(1.5)
    assert lease_files(folder) == [lease]
    pending.discard()
    assert lease_files(folder) == [lease]
    eventually(lambda: os.listdir(folder) == [LOCK_NAME])


def test_a_lease_says_whose_it_is(store: LocalStore, folder: Path) -> None:
    """The owner is this process, as /proc knows it."""
    with store.lock("e"):
        content = json.loads(lease_files(folder)[0].read_bytes())
    assert content["owner"]["pid"] == os.getpid()
    assert Owner(**content["owner"]) == owners.this_process()
    assert content["ttl_seconds"] == leases.LEASE_SECONDS == 60
    assert not owners.is_proven_dead(owners.this_process())


@pytest.mark.usefixtures("short_leases")
def test_a_lease_is_renewed_as_long_as_it_is_used(store: LocalStore, folder: Path) -> None:
    """For several times its length, another process never sees it as over, and the work then succeeds."""

    def write_slowly() -> None:
        pending = store.open_write("e")
        pending.write(b"x")
        time.sleep(5 * SHORT_SECONDS)
        with store.lock("e") as held:
            held.publish(pending, "e/f")
        leases.leases.end_all()  # a dead owner's would be over as well

    with Child(write_slowly) as owner, opened(store) as directory:
        eventually(lambda: bool(lease_files(folder)))
        token = token_of(lease_files(folder)[0])
        while lease_files(folder) and owner.is_alive:
            # Given back, it is over as well.
            assert not leases.is_over(directory, token) or not lease_files(folder)
            time.sleep(0.01)
        owner.result()
    assert names(folder) == ["f"]


@pytest.mark.usefixtures("short_leases")
def test_a_store_that_is_away_for_a_moment_costs_no_lease(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing renewal is logged and tried again; the thread survives it."""
    touch = Directory.touch
    failures: list[str] = []

    def failing(self: Directory, name: str) -> None:
        if len(failures) < 2:
            failures.append(name)
            raise OSError(5, "Input/output error")
        touch(self, name)

    monkeypatch.setattr(Directory, "touch", failing)
    pending = store.open_write("e")
    before = lease_files(folder)[0].stat().st_mtime_ns
    eventually(lambda: lease_files(folder)[0].stat().st_mtime_ns > before)
    assert len(failures) == 2
    assert sum("was not renewed" in record.message for record in caplog.records) == 2
    pending.discard()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.usefixtures("short_leases")
def test_a_thread_that_died_is_replaced(store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended the thread that renews, the next lease starts another."""

    def dying() -> None:
        raise SystemExit  # ends a thread without a word

    with store.lock("e"):
        pass
    monkeypatch.setattr(leases.leases, "_renew_due", dying)
    thread = leases.leases._thread
    with store.lock("e"):
        eventually(lambda: thread is not None and not thread.is_alive())
    monkeypatch.undo()
    with patched(leases, "LEASE_SECONDS", SHORT_SECONDS), store.lock("e"):
        before = lease_files(folder)[0].stat().st_mtime_ns
        eventually(lambda: lease_files(folder)[0].stat().st_mtime_ns > before)


@pytest.mark.usefixtures("short_leases")
def test_ending_a_lease_while_it_is_renewed_is_no_error(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The renewal neither complains nor touches anything else when its lease is given back in that instant."""
    touch, arrived, go_on = Directory.touch, threading.Event(), threading.Event()

    def slow(self: Directory, name: str) -> None:
        arrived.set()
        assert go_on.wait(20)
        touch(self, name)

    monkeypatch.setattr(Directory, "touch", slow)
    pending = store.open_write("e")
    assert arrived.wait(20)
    pending.discard()
    go_on.set()
    eventually(lambda: names(folder) == [])
    time.sleep(0.1)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_closed_directory_reaches_nothing(folder: Path) -> None:
    """Not the folder by its path, nor whatever has the number of its descriptor next."""
    directory = Directory(folder, os.open(folder, os.O_RDONLY))
    directory.close()
    (folder / "f").touch()
    again = [os.open(folder, os.O_RDONLY) for _ in range(3)]
    for attempt in (
        lambda: directory.lstat("f"),
        lambda: directory.unlink("f"),
        lambda: directory.rename("f", "g"),
        lambda: directory.touch("f"),
        lambda: directory.open("f", os.O_RDONLY),
        directory.names,
        lambda: list(directory.scan()),
    ):
        with pytest.raises(OSError, match="Bad file descriptor"):
            attempt()
    assert names(folder) == ["f"]
    for descriptor in again:
        os.close(descriptor)


# --- the lock ---


def test_a_thread_does_not_wait_for_itself(store: LocalStore) -> None:
    """The lock is not taken twice by one thread: that is an error at once, and the first one stays."""
    with store.lock("e") as held:
        with pytest.raises(StoreError, match="this thread has the folder's lock already"), store.lock("e"):
            pass
        held.put("e/f", b"x")
        with store.lock("another"):
            pass


def test_threads_and_processes_exclude_each_other(store: LocalStore, folder: Path) -> None:
    """A counter in a file, read and written under the lock by threads of several processes, loses nothing."""

    def count() -> None:
        for _ in range(10):
            with store.lock("e") as held:
                number = int((folder / "n").read_bytes()) if (folder / "n").exists() else 0
                held.put("e/n", str(number + 1).encode(), durable=False)

    def count_in_threads() -> None:
        threads = [threading.Thread(target=count) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(count_in_threads)) for _ in range(3)]
        for child in children:
            child.result()
    assert (folder / "n").read_bytes() == b"90"
    assert names(folder) == ["n"]


def test_a_lock_whose_owner_lives_is_waited_for_and_then_given_up_on(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time-out the error says that it may help to try again; the owner notices nothing."""
    monkeypatch.setattr(folder_lock, "LOCK_TIMEOUT_SECONDS", 0.3)

    def wait() -> str:
        try:
            with store.lock("e"):
                return "had it"
        except StoreUnavailableError as error:
            return str(error)

    with store.lock("e") as held:
        before = names(folder)
        assert "held the folder's lock" in in_child(wait)
        assert names(folder) == before
        held.put("e/f", b"x")
    assert in_child(wait) == "had it"
    assert names(folder) == ["f"]


def test_a_number_that_others_have_gone_past_is_not_the_lock(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others had the lock twice between looking and taking, so the number is free again: but it is not the last."""
    sign = leases.Lease.sign

    def late(self: leases.Lease, name: str) -> None:
        monkeypatch.undo()
        for _ in range(2):
            in_child(_take_over, store)
        sign(self, name)

    monkeypatch.setattr(leases.Lease, "sign", late)
    with store.lock("e"):
        assert os.listdir(folder / LOCK_NAME) == ["3"]


def test_waiting_for_the_lock_draws_no_random_number_of_the_training(store: LocalStore, folder: Path) -> None:
    """Or else a run that was resumed would not go on as the first would have."""

    def hold() -> None:
        with store.lock("e"):
            (folder / "held").touch()
            time.sleep(0.2)

    with Child(hold) as owner:
        eventually((folder / "held").exists)
        drawn, begun = random.getstate(), time.monotonic()
        with store.lock("e"):
            assert time.monotonic() - begun > 0.02  # it had to wait
        assert random.getstate() == drawn
        owner.result()


def test_a_lease_that_is_being_written_to_is_linked_a_moment_later(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux says that a file is missing if another takes its place between its being found and its being linked."""
    link, failures = Directory.link, list[str]()

    def failing(self: Directory, source: str, target: str) -> None:
        if target.startswith(f"{LOCK_NAME}/") and source.endswith(f"/{leases.LEASE_FILE}") and not failures:
            failures.append(target)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
        link(self, source, target)

    monkeypatch.setattr(Directory, "link", failing)
    with store.lock("e") as held:
        held.put("e/f", b"x")
    assert len(failures) == 1


def test_a_lock_that_somebody_removes_while_it_is_taken_is_made_again(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tidies up by hand in the wrong moment ends no training."""
    sign = leases.Lease.sign

    def removed(self: leases.Lease, name: str) -> None:
        monkeypatch.undo()
        sign(self, name)
        shutil.rmtree(folder / LOCK_NAME)

    monkeypatch.setattr(leases.Lease, "sign", removed)
    with store.lock("e"):
        assert os.listdir(folder / LOCK_NAME) == ["1"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_the_lock_is_taken_leaves_it_free(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C between having the lock and knowing it: though this process lives on and holds something, it is free."""
    sign = leases.Lease.sign

    def interrupted(self: leases.Lease, name: str) -> None:
        if moment == "after":
            sign(self, name)
        raise KeyboardInterrupt

    with store.hold("e", "x", "read"):
        monkeypatch.setattr(leases.Lease, "sign", interrupted)
        with pytest.raises(KeyboardInterrupt), store.lock("e"):
            pass
        monkeypatch.undo()
        assert lock_token(folder) == ""
        assert in_child(_is_lock_free, store, timeout_seconds=20)
        assert list(store.held("e")) == ["x"]
    assert names(folder) == []


def _is_lock_free(store: LocalStore) -> bool:
    with store.lock("e"):
        return True


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_while_the_lock_is_given_up_leaves_it_free(store: LocalStore, folder: Path, moment: str) -> None:
    """Though this process lives on and holds something, others need not wait for it."""
    sign_off, calls = leases.Lease.sign_off, list[str]()

    def interrupted(self: leases.Lease, name: str) -> None:
        calls.append(name)
        if moment == "after" or len(calls) > 1:
            sign_off(self, name)
        if len(calls) == 1:
            raise KeyboardInterrupt

    assert _is_lock_free(store)
    with store.hold("e", "x", "read"):
        with patched(leases.Lease, "sign_off", interrupted), pytest.raises(KeyboardInterrupt), store.lock("e"):
            pass
        assert lock_token(folder) == ""
        assert in_child(_is_lock_free, store, timeout_seconds=20)
        assert list(store.held("e")) == ["x"]
    assert names(folder) == []


def test_interrupts_that_keep_the_lock_from_being_given_up_end_the_lease(store: LocalStore) -> None:
    """One after the other: the lock goes with the lease, for others and for this process."""
    assert _is_lock_free(store)
    with patched(leases.Lease, "sign_off", _interrupted), pytest.raises(KeyboardInterrupt), store.lock("e"):
        pass
    assert in_child(_is_lock_free, store, timeout_seconds=20)
    assert _is_lock_free(store)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_lock_is_had_only_if_the_one_before_it_is_there(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two turnovers since the look at it; a listing may miss both names if one takes the other's place meanwhile."""
    sign, numbers = leases.Lease.sign, folder_lock._numbers

    def late(self: leases.Lease, name: str) -> None:
        monkeypatch.undo()
        for _ in range(2):
            in_child(_take_over, store)
        sign(self, name)
        monkeypatch.setattr(folder_lock, "_numbers", missing)

    def missing(directory: Directory) -> set[int]:
        monkeypatch.undo()
        return numbers(directory) - {max(numbers(directory))}

    with store.lock("e"):
        pass
    monkeypatch.setattr(leases.Lease, "sign", late)
    with store.lock("e"):
        assert os.listdir(folder / LOCK_NAME) == ["4"]


def test_superfluous_locks_go_oldest_first(store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the one before a late one's is gone as soon as any later one is."""
    with store.lock("e"):
        pass
    for number in ("1", "2"):
        if not (folder / LOCK_NAME / number).exists():
            (folder / LOCK_NAME / number).write_bytes(leases.FREE)
    gone: list[str] = []
    unlink = os.unlink

    def noting(path: str, **options: Any) -> None:
        if path.startswith(LOCK_NAME):
            gone.append(path.rpartition("/")[2])
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", noting)
    with store.lock("e"):
        pass
    assert len(gone) > 1
    assert gone == sorted(gone)


def test_a_lock_that_one_listing_misses_is_there(store: LocalStore, folder: Path) -> None:
    """Its name is exchanged for the next one meanwhile: to begin to count anew would give the lock to two."""
    with store.lock("e"):
        pass
    numbers, looks = folder_lock._numbers, []

    def missing(directory: Directory) -> set[int]:
        looks.append(1)
        return set() if len(looks) <= 2 else numbers(directory)

    def noting(lease: leases.Lease, name: str) -> None:
        signed_off.append(name)
        sign_off(lease, name)

    sign_off, signed_off = leases.Lease.sign_off, list[str]()
    with patched(folder_lock, "_numbers", missing), patched(leases.Lease, "sign_off", noting), store.lock("e"):
        assert os.listdir(folder / LOCK_NAME) == ["2"]
    assert signed_off == [f"{LOCK_NAME}/2"]


def test_an_interrupt_takes_no_lock_from_another(store: LocalStore, folder: Path) -> None:
    """Ctrl-C while waiting for it: the lock that is there last is not this process's to give up."""
    with Child(_lost_lock, store, CHANGES["put"]) as owner:
        assert owner.wait_until_stopped()
        token = lock_token(folder)
        with patched(folder_lock, "_is_free", _interrupted), pytest.raises(KeyboardInterrupt), store.lock("e"):
            pass
        assert lock_token(folder) == token
        owner.go_on()
        assert owner.result() == "done"


@pytest.mark.usefixtures("short_leases")
def test_a_lock_that_cannot_be_given_up_ends_with_its_lease(store: LocalStore, folder: Path) -> None:
    """Though this process lives on and uses the folder: it goes by another lease, and the first is not renewed."""

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with store.lock("e"):
        pass  # the first lock of a folder is signed off before it is taken
    with store.hold("e", "x", "read"):
        with patched(leases.Lease, "sign_off", failing), store.lock("e"):
            pass
        assert in_child(_is_lock_free, store, timeout_seconds=20)
        assert list(store.held("e")) == ["x"]
    with patched(leases.Lease, "sign_off", failing), store.lock("e"):
        token = lock_token(folder)
    assert token not in map(token_of, lease_files(folder))


def test_a_lease_that_could_not_be_removed_is_over_for_this_process(store: LocalStore, folder: Path) -> None:
    """When the store works again, it need not wait for what it has given up itself."""
    with opened(store) as directory:
        lease = leases.Lease(directory)

        def failing(*_: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with patched(leases, "remove_tree", failing):
            lease.end()
        assert lease_files(folder)
        assert leases.is_over(directory, lease.token)
    with store.lock("e") as held:
        held.sweep()
    assert [token_of(found) for found in lease_files(folder)] != [lease.token]


def test_the_lock_of_a_lease_that_is_gone_is_free(store: LocalStore, folder: Path) -> None:
    """At once, whoever its owner was: everything that it could do went with the lease."""
    with opened(store) as directory:
        directory.mkdir(LOCK_NAME)
        lease = leases.Lease(directory)
        lease.sign(f"{LOCK_NAME}/1")
        lease.end()
    assert lock_token(folder) == lease.token
    assert in_child(_is_lock_free, store, timeout_seconds=20)


def test_a_lock_is_numbered_on(store: LocalStore, folder: Path) -> None:
    """No number is given twice, so that whoever comes too late with one does not have the lock."""
    for number in range(1, 4):
        with store.lock("e"):
            assert os.listdir(folder / LOCK_NAME) == [str(number)]
        assert os.listdir(folder / LOCK_NAME) == [str(number)]


def test_one_of_many_makes_the_next_number(store: LocalStore, folder: Path) -> None:
    """Two leases that sign for the same number: the second is told so, and the first one's signature stays."""
    with opened(store) as directory:
        directory.mkdir(LOCK_NAME)
        first, second = leases.Lease(directory), leases.Lease(directory)
        first.sign(f"{LOCK_NAME}/1")
        with pytest.raises(FileExistsError):
            second.sign(f"{LOCK_NAME}/1")
        assert lock_token(folder) == first.token
        first.end()
        second.end()


def test_the_lock_has_a_last_number_at_any_moment(store: LocalStore, folder: Path) -> None:
    """Also while it is given up: whoever looks in between would begin to count anew."""
    seen: list[list[str]] = []

    def looking(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            function(*arguments, **options)
            seen.append(os.listdir(folder / LOCK_NAME))

        return call

    with contextlib.ExitStack() as stack, store.lock("e"):
        for name in ("unlink", "rename", "replace", "link"):
            stack.enter_context(patched(os, name, looking(getattr(os, name))))
    assert seen
    assert all(numbers == ["1"] for numbers in seen)


def test_an_interrupt_under_the_lock_frees_it(store: LocalStore, folder: Path) -> None:
    """Whatever ends the context, with a file half done, nothing of it stays."""

    def interrupted() -> None:
        (lease_files(folder)[0].parent / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.lock("e"):
        interrupted()
    assert lock_token(folder) == ""
    assert names(folder) == []


STRAYS = (
    *(
        f"{leases.LEASE_PREFIX}",
        f"{leases.LEASE_PREFIX}..",
        f"{leases.LEASE_PREFIX}-x",
        f"{leases.LEASE_PREFIX}{'0' * 16}",
    ),
    *(
        f"{leases.BROKEN_PREFIX}",
        f"{leases.BROKEN_PREFIX}..-x",
        f"{leases.BROKEN_PREFIX}{'0' * 16}-x",
        ".ckpt-",
        ".ckpt-x",
    ),
)


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_stray_name_costs_nobody_the_lock(store: LocalStore, folder: Path, name: str, kind: str) -> None:
    """Something whose name is almost one of a lease is swept or left, and disturbs neither sweep, hold nor lock.

    Nor whoever asks what is left over: he is told of nothing that a sweep would not remove.
    """
    if kind == "folder":
        (folder / name / "inner").mkdir(parents=True)
        (folder / name / "inner" / "f").touch()
    elif kind == "link":
        (folder / name).symlink_to(folder)
    else:
        (folder / name).touch()
    for _ in range(2):
        told = {leftover.name for leftover in store.leftovers("e") if not leftover.over_in_seconds}
        with store.lock("e") as held:
            held.sweep()
            held.put("e/f", b"x")
        assert told.isdisjoint(os.listdir(folder))
        with store.hold("e", "y", "read"):
            assert list(store.held("e")) == ["y"]
    assert (folder / "f").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["stray", "00", "007", "-1", "1.5", "9" * 200, "\u0663"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_stray_name_in_the_lock_is_no_owner(store: LocalStore, folder: Path, is_folder: bool, name: str) -> None:
    """What is no number of a lock counts for nothing, be it a file or a folder."""
    stray = folder / LOCK_NAME / name
    (stray if is_folder else stray.parent).mkdir(parents=True)
    if not is_folder:
        stray.touch()
    for _ in range(2):
        with store.lock("e") as held:
            held.put("e/f", b"x")
            held.sweep()
    assert names(folder) == ["f"]
    assert stray.exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_in_the_place_of_the_lock_is_an_error_of_ours(
    store: LocalStore, folder: Path, tmp_path: Path, kind: str
) -> None:
    """It is not followed, not replaced, and nothing else is left."""
    (tmp_path / "elsewhere").mkdir()
    if kind == "file":
        (folder / LOCK_NAME).touch()
    else:
        (folder / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError), store.lock("e"):
        pass
    assert names(folder) == []
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_has_no_lock_and_can_be_read(store: LocalStore, folder: Path) -> None:
    """Locking and writing are refused; holding is done without, and says nothing."""
    (folder / "f").write_bytes(b"x")
    folder.chmod(0o555)
    try:
        _check_read_only(store, folder)
    finally:
        folder.chmod(0o755)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to become somebody else")
def test_a_read_only_folder_has_no_lock_and_can_be_read_by_others(store: LocalStore, folder: Path) -> None:
    """As above, in a process of another user."""
    (folder / "f").write_bytes(b"x")
    for above in (folder, *folder.parents):
        if above.stat().st_mode & 0o005 != 0o005:
            above.chmod(above.stat().st_mode | 0o055)

    def as_nobody() -> None:
        os.setuid(65534)
        _check_read_only(store, folder)

    in_child(as_nobody)


def _check_read_only(store: LocalStore, folder: Path) -> None:
    with pytest.raises(StorePermissionError), store.lock("e"):
        pass
    with pytest.raises(StorePermissionError):
        store.open_write("e")
    with store.hold("e", "f", "read"), store.open_read("e/f") as file:
        assert file.read() == b"x"
        assert store.held("e") == {}
    assert names(folder) == ["f"]


# --- losing it ---

CHANGES: dict[str, Callable[[FolderLock], object]] = {
    "put": lambda held: held.put("e/late", b"late"),
    "replace": lambda held: held.put("e/f", b"late"),
    "delete": lambda held: held.delete("e/f"),
    "delete what is gone": lambda held: held.delete("e/gone"),
    "link": lambda held: held.link("e/f", "e/late"),
    "patch": lambda held: held.patch("e/f", [(0, b"late")], size_bytes=4),
}


def _lost_lock(store: LocalStore, change: Callable[[FolderLock], object]) -> str:
    try:
        with store.lock("e") as held:
            stop()
            change(held)
    except LeaseLostError:
        return "lost"
    return "done"


def _take_over(store: LocalStore) -> None:
    with store.lock("e") as held:
        held.put("e/f", b"other")
        held.sweep()


@pytest.mark.usefixtures("short_leases")
@pytest.mark.parametrize("name", CHANGES)
def test_whoever_lost_the_lock_changes_nothing(store: LocalStore, folder: Path, name: str) -> None:
    """Stopped under the lock, past the lease, while another takes over: the next step says so and does nothing."""
    (folder / "f").write_bytes(b"first")
    with Child(_lost_lock, store, CHANGES[name]) as owner:
        assert owner.wait_until_stopped()
        in_child(_take_over, store)
        before = contents(folder)
        owner.go_on()
        assert owner.result() == "lost"
    assert contents(folder) == before == contents(folder)
    assert swept(store, folder) == ["f"]


@pytest.mark.parametrize("name", [*CHANGES, "publish"])
def test_a_lock_that_was_taken_away_is_lost_whatever_else_is_left(store: LocalStore, folder: Path, name: str) -> None:
    """Whoever broke it may have been killed right after: the lease and the unfinished files are there, and no use."""
    (folder / "f").write_bytes(b"first")
    pending = store.open_write("e")
    pending.write(b"late")
    changes: dict[str, Callable[[FolderLock], object]] = {
        **CHANGES,
        "publish": lambda held: held.publish(pending, "e/late"),
    }
    with store.lock("e") as held:
        token = lock_token(folder)
        os.rename(folder / f"{leases.LEASE_PREFIX}{token}", folder / f"{leases.BROKEN_PREFIX}{token}-0")
        with pytest.raises(LeaseLostError):
            changes[name](held)
    pending.discard()
    assert contents(folder) == {"f": contents(folder)["f"]}
    assert (folder / "f").read_bytes() == b"first"
    with store.lock("e") as held:
        held.sweep()
    assert names(folder) == ["f"]


def test_a_lock_is_kept_over_a_short_pause(store: LocalStore, folder: Path) -> None:
    """Stopped for less than the lease, with another one waiting, nothing is lost."""
    (folder / "f").write_bytes(b"first")
    with Child(_lost_lock, store, CHANGES["put"]) as owner:
        assert owner.wait_until_stopped()
        with Child(_take_over, store) as other:
            time.sleep(0.5)
            assert other.is_alive
            owner.go_on()
            assert owner.result() == "done"
            other.result()
    assert names(folder) == ["f", "late"]


@pytest.mark.usefixtures("short_leases")
def test_a_file_that_was_begun_under_a_lost_lease_is_not_published(store: LocalStore, folder: Path) -> None:
    """Stopped while writing, without the lock: the file was swept, and publishing it says why."""

    def write() -> str:
        pending = store.open_write("e")
        stop()
        try:
            pending.write(b"late")
            with store.lock("e") as held:
                held.publish(pending, "e/late")
        except LeaseLostError:
            return "lost"
        finally:
            pending.discard()
        return "published"

    def sweep_until_it_is_gone() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with store.lock("e") as held:
                if held.sweep():
                    return
            time.sleep(0.02)
        raise AssertionError("nothing was swept")

    with Child(write) as owner:
        assert owner.wait_until_stopped()
        in_child(sweep_until_it_is_gone)
        owner.go_on()
        assert owner.result() == "lost"
    assert swept(store, folder) == []


def test_a_lease_that_was_taken_away_is_not_used_again(store: LocalStore, folder: Path) -> None:
    """Found out when it is needed next, be it long before it would be renewed: another is taken."""
    with store.lock("e") as held:
        held.put("e/f", b"x")
    (lease,) = lease_files(folder)
    with opened(store) as directory:
        leases.bury(directory, token_of(lease))
    store.open_write("e").discard()
    assert [token_of(found) for found in lease_files(folder)] != [token_of(lease)]


def test_a_lease_that_is_taken_away_while_the_lock_is_taken_is_lost(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking at the lock and signing for it: said as what it is, and the next try works."""
    sign = leases.Lease.sign

    def late(self: leases.Lease, name: str) -> None:
        monkeypatch.undo()
        leases.bury(self.directory, self.token)
        sign(self, name)

    monkeypatch.setattr(leases.Lease, "sign", late)
    with pytest.raises(LeaseLostError), store.lock("e"):
        pass
    assert _is_lock_free(store)


@pytest.mark.usefixtures("short_leases")
def test_a_lock_that_says_nothing_is_taken_in_its_time_and_its_owner_fenced_out(
    store: LocalStore, folder: Path
) -> None:
    """Such as a copy of a lease that is not whole, where there are no links. Whose it is, cannot be told."""
    (folder / "f").write_bytes(b"first")
    with Child(_lost_lock, store, CHANGES["replace"]) as owner:
        assert owner.wait_until_stopped()
        signature = folder / LOCK_NAME / "1"
        signature.unlink()
        signature.write_bytes(b"{")
        begun = time.monotonic()
        in_child(_take_over, store)
        assert time.monotonic() - begun > SHORT_SECONDS
        owner.go_on()
        assert owner.result() == "lost"
    assert (folder / "f").read_bytes() == b"other"


@pytest.mark.usefixtures("short_leases")
def test_a_sweep_leaves_the_lease_of_who_sweeps(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it could not be renewed for a while, as on a store that was away: nobody else went on."""
    monkeypatch.setattr(leases.Lease, "renew", lambda _: True)
    with store.lock("e") as held:
        held.sweep()
        time.sleep(2 * SHORT_SECONDS)
        held.sweep()
        held.put("e/f", b"x")
    assert names(folder) == ["f"]


def test_a_payload_is_published_under_the_lease_of_the_lock(store: LocalStore, folder: Path) -> None:
    """And not under that which it was begun under, which may be there still when the lock is lost."""
    with opened(store) as directory:
        earlier = leases.leases.take(directory)
        pending = store.open_write("e")
        pending.write(b"late")
        leases.leases.give_back(earlier, is_spoilt=True)
        with store.lock("e") as held:
            token = lock_token(folder)
            assert token != earlier.token
            os.rename(folder / f"{leases.LEASE_PREFIX}{token}", folder / f"{leases.BROKEN_PREFIX}{token}-0")
            with pytest.raises(LeaseLostError):
                held.publish(pending, "e/late")
        pending.discard()
    assert not (folder / "late").exists()


def test_a_folder_that_is_exchanged_under_the_lock_is_not_called_durable(store: LocalStore, folder: Path) -> None:
    """What was written is where the folder is now, and not where everybody will look for it."""
    with store.lock("e") as held:
        held.put("e/f", b"x")
        folder.rename(folder.parent / "moved")
        folder.mkdir()
        with pytest.raises(StoreError, match="moved or replaced"):
            held.sync()


def _lock_once(store: LocalStore) -> None:
    with store.lock("e"):
        pass


def _begin_a_file(store: LocalStore) -> None:
    store.open_write("e").discard()


@pytest.mark.parametrize(
    ("call", "begin"), [("mkdir", _begin_a_file), *((call, _lock_once) for call in ("mkdir", "open", "listdir"))]
)
def test_a_folder_that_is_removed_while_it_is_opened_is_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[LocalStore], None], call: str
) -> None:
    """Of the kind that is tried again, which makes the folder anew; at whichever call it goes."""
    raised = 0
    for position in range(12):
        folder = tmp_path / str(position) / "e"
        folder.mkdir(parents=True)
        store, calls, real = LocalStore(str(folder.parent)), itertools.count(), getattr(os, call)

        def removing(*arguments: Any, **options: Any) -> Any:
            if next(calls) == position:  # noqa: B023 - called at once
                subprocess.run(["rm", "-r", folder], check=True)  # noqa: B023
            return real(*arguments, **options)  # noqa: B023

        with monkeypatch.context() as patched:
            patched.setattr(os, call, removing)
            try:
                begin(store)
            except StoreUnavailableError:
                raised += 1
        begin(store)
    assert raised


def test_a_file_whose_folder_was_removed_is_refused_by_the_next(store: LocalStore, folder: Path) -> None:
    """It went with its folder: trying again makes it anew."""
    pending = store.open_write("e")
    shutil.rmtree(folder)
    with store.lock("e") as held, pytest.raises(StoreUnavailableError, match="another one now"):
        held.publish(pending, "e/f")
    pending.discard()


def test_a_file_of_another_folder_is_not_published(store: LocalStore, folder: Path) -> None:
    """It would get its name from a lease that this lock does not end."""
    pending = store.open_write("other")
    pending.write(b"x")
    with store.lock("e") as held, pytest.raises(StoreError, match="another folder"):
        held.publish(pending, "e/f")
    pending.discard()
    assert names(folder) == []


def test_a_lease_goes_at_once(store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it finds none of its paths, from the first step of those who take it away."""
    pending = store.open_write("e")
    pending.write(b"late")
    (lease,) = lease_files(folder)
    steps = 0

    def watching(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            nonlocal steps
            function(*arguments, **options)
            steps += 1
            assert not lease.parent.exists(), f"after {function.__name__}"

        return call

    with contextlib.ExitStack() as stack, opened(store) as directory:
        for name in ("unlink", "rename", "rmdir"):
            stack.enter_context(patched(os, name, watching(getattr(os, name))))
        assert leases.bury(directory, token_of(lease)) == [f"{lease.parent.name}/0"]
    assert steps > 3
    pending.discard()


def test_a_lease_is_whole_from_its_first_moment(store: LocalStore, folder: Path) -> None:
    """Whoever is killed while he takes one leaves none of which nobody knows the owner."""

    def watching(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            with opened(store) as directory:
                seen.extend(leases.read_lease(directory, token) for token in leases.tokens(directory))
            return result

        return call

    seen: list[leases.LeaseContent | None] = []
    with opened(store) as directory, contextlib.ExitStack() as stack:
        for name in ("mkdir", "write", "rename"):
            stack.enter_context(patched(os, name, watching(getattr(os, name))))
        lease = leases.Lease(directory)
    assert [content and content.token for content in seen] == [lease.token]
    lease.end()
    assert names(folder) == []


def test_what_is_held_is_held_at_any_moment_in_which_more_is_held(store: LocalStore) -> None:
    """The content of a lease is exchanged in one step: no reader finds it half written, or gone."""
    seen: list[set[str]] = []

    def watching(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = function(*arguments, **options)
            seen.append(set(store.held("e")))
            return result

        return call

    with store.hold("e", "x", "read"), contextlib.ExitStack() as stack:
        for name in ("write", "rename", "replace", "unlink"):
            stack.enter_context(patched(os, name, watching(getattr(os, name))))
        with store.hold("e", "y", "read"):
            pass
    assert len(seen) >= 4
    assert all("x" in held for held in seen)


def test_a_lease_that_was_never_finished_is_removed(store: LocalStore, folder: Path) -> None:
    """Its owner, should he live, takes another; nobody has to wait for it."""
    (folder / f"{leases.NEW_PREFIX}{'0' * 16}").mkdir()
    (folder / f"{leases.NEW_PREFIX}{'0' * 16}" / "lease").write_bytes(b"{")
    with store.lock("e") as held:
        held.sweep()
    assert [name for name in os.listdir(folder) if name.startswith(leases.NEW_PREFIX)] == []


def test_a_lease_that_is_being_written_goes_at_once_and_is_written_again(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep in the middle of it: none of the owner's steps finds its path, so that no half a lease gets its name."""
    fill = leases.Lease._fill
    steps = []

    def watching(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            function(*arguments, **options)
            steps.append([name for name in os.listdir(folder) if name.startswith(leases.NEW_PREFIX)])

        return call

    def swept(self: leases.Lease, name: str) -> None:
        monkeypatch.undo()
        fill(self, name)
        with contextlib.ExitStack() as stack:
            for function in ("unlink", "rename", "rmdir"):
                stack.enter_context(patched(os, function, watching(getattr(os, function))))
            leases.remove_new(self.directory)

    monkeypatch.setattr(leases.Lease, "_fill", swept)
    with store.hold("e", "x", "read"):
        assert list(store.held("e")) == ["x"]
    assert len(steps) > 3
    assert not any(steps)


@pytest.mark.usefixtures("short_leases")
def test_what_is_held_is_held_again_after_the_lease_was_lost(store: LocalStore, folder: Path) -> None:
    """A process that slept too long, as a laptop does, holds on to what it goes on from once it is awake."""

    def hold() -> list[str]:
        with store.hold("e", "x", "going on from it"):
            stop()
            eventually(lambda: "x" in store.held("e"))
            with store.hold("e", "y", "read"):
                together = sorted(store.held("e"))
        return [*together, *store.held("e")]

    def bury() -> None:
        eventually(lambda: store.held("e") == {})
        with store.lock("e") as held:
            held.sweep()
        assert names(folder) == []

    with Child(hold) as owner:
        assert owner.wait_until_stopped()
        in_child(bury)
        owner.go_on()
        assert owner.result() == ["x", "y"]
    assert swept(store, folder) == []


# --- who is dead, and when a lease is over ---


def _ended_child() -> Owner:
    return Owner(**in_child(lambda: owners.this_process().model_dump()))


def test_only_a_process_of_this_system_can_be_proven_dead() -> None:
    """The same number elsewhere, before the last boot, in another container or a clone of the machine says nothing."""
    dead = _ended_child()
    assert owners.is_proven_dead(dead)
    for system in ("another boot/1", dead.system + "0", ""):
        assert not owners.is_proven_dead(dead.model_copy(update={"system": system}))
    assert not owners.is_proven_dead(dead.model_copy(update={"host": dead.host + "-clone"}))


@given(start=st.text("0123456789", min_size=1, max_size=12))
def test_a_number_that_was_given_again_is_not_the_owner(start: str) -> None:
    """A living process that began at another time is somebody else."""
    me = owners.this_process()
    other = me.model_copy(update={"started": start})
    assert owners.is_proven_dead(other) is (start != me.started)


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="there is no /proc")
def test_a_system_is_a_boot_and_a_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is gone here may be alive in another container, and its number means nothing since a boot."""
    dead = _ended_child()
    assert owners.is_proven_dead(dead)
    (tmp_path / "boot_id").write_text("another boot\n")
    (tmp_path / "self" / "ns").mkdir(parents=True)
    (tmp_path / "self" / "ns" / "pid").touch()
    with patched(owners, "_BOOT_ID", tmp_path / "boot_id"):
        assert not owners.is_proven_dead(dead)
    with patched(owners, "_PROCESSES", tmp_path):
        assert not owners.is_proven_dead(dead)
    assert owners.is_proven_dead(dead)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_a_process_whose_first_thread_ended_is_not_dead() -> None:
    """It looks like one that was killed; its other threads write on."""
    script = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    child = start_python(f"{script}ctypes.CDLL(None).pthread_exit(None)")
    try:
        status = Path(f"/proc/{child.pid}/stat")
        eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "Z")
        started = owners._start(child.pid)
        owner = owners.this_process().model_copy(update={"pid": child.pid, "started": started})
        assert started != "ended"
        assert not owners.is_proven_dead(owner)
    finally:
        child.kill()
        child.communicate()


def test_a_killed_process_that_nobody_asked_for_is_dead() -> None:
    """A zombie has its number, and does nothing any more."""
    child = Child(time.sleep, 60)
    try:
        started = owners._start(child.pid)
        assert started is not None
        owner = owners.this_process().model_copy(update={"pid": child.pid, "started": started})
        assert not owners.is_proven_dead(owner)
        os.kill(child.pid, signal.SIGKILL)
        eventually(lambda: owners.is_proven_dead(owner))
    finally:
        child.__exit__()


def test_a_process_that_cannot_be_seen_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc shows users their own processes alone (hidepid), one that is not shown may be at work."""
    owner = owners.this_process()
    dead = _ended_child()
    monkeypatch.setattr(owners, "_start", lambda _: None)
    assert not owners.is_proven_dead(owner)
    assert owners.is_proven_dead(dead)


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@given(steps=st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=30))
def test_a_lease_is_over_when_it_was_seen_unchanged_for_longer_than_it_lasts(steps: list[tuple[float, bool]]) -> None:
    """Whatever the order of looks and renewals, by the clock of whoever looks."""
    seen, clock = leases._Seen(), Clock()
    version, first_seen = 0, None
    with patched(time, "monotonic", clock.monotonic):
        for seconds, is_renewed in steps:
            clock.seconds += seconds
            if is_renewed:
                version, first_seen = version + 1, None
            first_seen = clock.seconds if first_seen is None else first_seen
            assert seen.unchanged_seconds("t", (version,)) == clock.seconds - first_seen


@pytest.mark.parametrize("days", [-365, 0, 365])
def test_the_time_of_day_has_no_say(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """A lease from a machine whose clock is a year off lasts exactly as long as any other."""
    clock = Clock()
    lease = planted_lease(folder)
    owner = Owner(host="elsewhere", system="another", pid=1, started="1")
    lease.write_text(
        leases.LeaseContent(token="0" * 16, owner=owner, taken_at="ever", ttl_seconds=60).model_dump_json()
    )
    moment = time.time() + days * 86_400
    os.utime(lease, (moment, moment))
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    with opened(store) as directory:
        for seconds, is_over in ((0, False), (59, False), (0.9, False), (0.2, True)):
            clock.seconds += seconds
            assert leases.is_over(directory, "0" * 16) is is_over
        os.utime(lease, (moment + 1, moment + 1))  # renewed, at the last moment
        assert not leases.is_over(directory, "0" * 16)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"owner": 1}', b"\xff" * 100])
def test_a_lease_that_says_nothing_lasts_as_long_as_any(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """It may be about to be written; it holds nothing."""
    clock = Clock()
    planted_lease(folder).write_bytes(content)
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    with opened(store) as directory:
        assert not leases.is_over(directory, "0" * 16)
        assert leases.living_holds(directory) == {}
        clock.seconds += leases.LEASE_SECONDS + 1
        assert leases.is_over(directory, "0" * 16)


def test_no_lease_lasts_for_ever(store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lease says of its own length is believed up to an hour."""
    clock = Clock()
    owner = Owner(host="elsewhere", system="another", pid=1, started="1")
    content = leases.LeaseContent(token="0" * 16, owner=owner, taken_at="ever", ttl_seconds=1e12)
    planted_lease(folder).write_text(content.model_dump_json())
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    with opened(store) as directory:
        assert not leases.is_over(directory, "0" * 16)
        clock.seconds += leases.MAX_LEASE_SECONDS + 1
        assert leases.is_over(directory, "0" * 16)


# --- holding ---


def test_what_is_held_is_seen_by_all_and_only_while_it_lasts(store: LocalStore, folder: Path) -> None:
    """By this process and others, with who and why; twice held is held until both have let go."""
    with store.hold("e", "x", "first"), store.hold("e", "y", "other"):
        with store.hold("e", "x", "second"):
            assert set(in_child(store.held, "e")) == {"x", "y"}
        reason = in_child(store.held, "e")["x"]
        assert "first" in reason
        assert str(os.getpid()) in reason
    eventually(lambda: store.held("e") == {})
    assert names(folder) == []


@pytest.mark.usefixtures("short_leases")
def test_holds_that_cannot_be_read_are_not_taken_for_none(store: LocalStore, folder: Path) -> None:
    """Whoever asks in order to delete is told of the failure, as long as the owner may be alive."""
    lease = planted_lease(folder)
    lease.unlink()
    lease.mkdir()  # reading it is an error of the system
    with pytest.raises(StoreError):
        store.held("e")

    def is_over() -> bool:
        with contextlib.suppress(StoreError):
            return store.held("e") == {}
        return False

    eventually(is_over)


def test_a_hold_that_begins_while_the_lease_is_replaced_is_not_lost(store: LocalStore, folder: Path) -> None:
    """It is one of the new lease, and ends there."""
    with opened(store) as directory, leases.leases.using(directory) as lease:
        (folder / lease.name).rename(folder / f"{leases.BROKEN_PREFIX}{lease.token}-x")
        with leases.leases.using(directory) as heir:
            assert heir is lease.heir
            lease.add_hold("x", "read")
            assert list(in_child(store.held, "e")) == ["x"]
            lease.remove_hold("x", "read")
            assert store.held("e") == {}


@pytest.mark.parametrize("end", ["returns", "raises", "is killed"])
def test_a_hold_ends_with_its_process(store: LocalStore, folder: Path, end: str) -> None:
    """However it ends; what a killed one leaves is swept."""

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(store.hold("e", "x", "read"))
            stop()
            if end == "raises":
                raise ValueError

    with Child(hold) as child:
        assert child.wait_until_stopped()
        assert list(store.held("e")) == ["x"]
        if end == "is killed":
            child.kill()
        else:
            child.go_on()
            with contextlib.suppress(ChildError):
                child.result()
        assert store.held("e") == {}
    with store.lock("e") as held:
        held.sweep()
    assert names(folder) == []


def test_a_manager_holds_what_it_goes_on_from_until_it_is_gone(make_manager: MakeManager) -> None:
    """Loading holds; loading another lets go of the first; a manager that is collected lets go of all."""
    manager = make_manager()
    first, second = save(manager, 1), save(manager, 2)
    store, path = manager._folder.store, manager._folder.path
    assert store.held(path) == {}
    manager.load_checkpoint(first)
    assert list(store.held(path)) == [first]
    manager.load_checkpoint(second)
    assert list(store.held(path)) == [second]
    del manager
    gc.collect()
    eventually(lambda: store.held(path) == {})  # the thread that renews may be at it


@pytest.mark.parametrize("place", ["take", "add_hold"])
def test_a_manager_may_be_collected_in_the_middle_of_anything(
    make_manager: MakeManager, store: LocalStore, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The collector runs whenever it likes, so also while leases are changed: nobody waits for himself."""
    manager = make_manager()
    save(manager, 1)
    manager.load_checkpoint()
    held, path = manager._folder.store.held, manager._folder.path
    collected: list[int] = []

    def collecting(self: leases.Lease, name: str, data: bytes) -> None:
        collected.append(gc.collect())
        write(self, name, data)

    write = leases.Lease._write
    monkeypatch.setattr(leases.Lease, "_write", collecting)

    def work(abandoned: list[Any]) -> None:
        abandoned.clear()
        with store.hold("e", "x", "read") if place == "add_hold" else store.lock("e"):
            pass

    abandoned = [manager]
    del manager
    thread = threading.Thread(target=work, args=[abandoned], daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert collected
    eventually(lambda: held(path) == {})


# --- forks ---


def test_a_fork_has_leases_of_its_own(store: LocalStore, folder: Path) -> None:
    """The child writes under its own lease; the parent's is as it was, and lasts."""
    with store.hold("e", "x", "read"):
        (lease,) = lease_files(folder)
        before = lease.read_bytes()

        def work() -> int:
            with store.lock("e") as held:
                held.put("e/f", b"child")
                return len(lease_files(folder))

        assert in_child(work) == 2
        with store.lock("e") as held:
            held.sweep()
        assert lease_files(folder) == [lease]
        assert lease.read_bytes() == before
        assert list(store.held("e")) == ["x"]
        with store.lock("e") as held:
            held.put("e/f", b"parent")
    assert names(folder) == ["f"]


def test_a_fork_that_ends_what_the_parent_began_takes_nothing_from_it(store: LocalStore, folder: Path) -> None:
    """The child unwinds the parent's file, hold and lock, as an exception in it would: all stay the parent's."""
    with contextlib.ExitStack() as stack:
        pending = store.open_write("e")
        stack.callback(pending.discard)
        stack.enter_context(store.hold("e", "x", "read"))
        held = stack.enter_context(store.lock("e"))
        before = names(folder), lease_files(folder)[0].read_bytes()

        def unwind() -> str:
            with store._open("e"), store._open("e"):  # the numbers of the parent's descriptors are taken again
                stack.close()
                with pytest.raises(StoreError):
                    held.put("e/late", b"late")
            return "unwound"

        assert in_child(unwind) == "unwound"
        assert (names(folder), lease_files(folder)[0].read_bytes()) == before
        pending.write(b"x")
        held.publish(pending, "e/f")
        assert list(in_child(store.held, "e")) == ["x"]
    assert names(folder) == ["f"]


def test_a_fork_has_no_use_of_the_parents_lock(store: LocalStore, folder: Path) -> None:
    """It would change names beside the parent: it is refused, and the parent goes on."""
    with store.lock("e") as held:

        def put() -> str:
            with pytest.raises(StoreError, match="forked"):
                held.put("e/late", b"late")
            return "refused"

        assert in_child(put) == "refused"
        held.put("e/f", b"x")
    assert names(folder) == ["f"]


def test_a_fork_ends_no_lease_that_it_inherited(store: LocalStore, folder: Path) -> None:
    """Nor a hold or a lock under it: also of a lease that this process does not use for anything new any more."""
    with opened(store) as directory:
        directory.mkdir(LOCK_NAME)
        lease = leases.Lease(directory)
        lease.add_hold("x", "read")
        lease.sign(f"{LOCK_NAME}/1")
        before = lease_files(folder)[0].read_bytes()

        def end() -> None:
            lease.remove_hold("x", "read")
            folder_lock._give_up(lease, 1)
            lease.end()

        in_child(end)
        assert lease_files(folder)[0].read_bytes() == before
        assert lock_token(folder) == lease.token
        lease.end()


def test_a_fork_goes_on_from_another_checkpoint_than_its_parent(make_manager: MakeManager) -> None:
    """A manager that has loaded is used by a child: what the parent goes on from is still held, by a living parent."""
    manager = make_manager()
    first, second = save(manager, 1), save(manager, 2)
    manager.load_checkpoint(first)
    in_child(lambda: manager.load_checkpoint(second)["checkpoint_id"])
    assert list(manager._folder.held()) == [first]
    assert f"process {os.getpid()}" in manager._folder.held()[first]


def test_a_fork_at_any_moment_can_work(store: LocalStore, folder: Path) -> None:
    """Forked while another thread has the lock, a child waits for it as any process does, and then works."""
    has_lock, go_on = threading.Event(), threading.Event()

    def keep() -> None:
        with store.lock("e"):
            has_lock.set()
            go_on.wait(20)

    thread = threading.Thread(target=keep)
    thread.start()
    assert has_lock.wait(20)
    try:
        with Child(_take_over, store) as child:
            time.sleep(0.2)
            assert child.is_alive
            go_on.set()
            child.result()
    finally:
        go_on.set()
        thread.join()
    assert names(folder) == ["f"]


def test_a_folder_that_takes_no_names_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems, such as that of processes, answer that the folder is not there while it is."""

    def refuse(self: Directory, name: str) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)

    monkeypatch.setattr(Directory, "mkdir", refuse)
    with pytest.raises(StoreUnavailableError):
        LocalStore(str(tmp_path)).open_write("")
