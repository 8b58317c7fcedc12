"""What dead processes leave in a local store, and what living ones and their forks hold there."""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ckpt_lib.errors import (
    StoreError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.store import ABSENT, Store, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.store.local.temporary import LEFT_AFTER_SECONDS
from ckpt_lib.testing.store_contract import get, keys, upload, version_of
from tests.store.helpers import Fork, in_fork, temporary_files
from tests.store.systems import Watched, WithoutLocks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


def begin_and_say_so(root: Path) -> Callable[[Callable[[str], object]], object]:
    """Return work for a fork: it begins an upload, says so, and sleeps."""

    def work(tell: Callable[[str], object]) -> None:
        begun = open_store(root).open_write("e/x")
        begun.write(b"half")
        tell("begun")
        time.sleep(60)

    return work


def test_an_upload_removes_what_the_dead_left_and_nothing_of_the_living(store: Store, root: Path) -> None:
    """Of this process and of others, whatever their age; files that are not ours stay."""
    mine = store.open_write("e/x")
    (root / "e" / ".ckpt-tmp" / "note.txt").write_bytes(b"foreign")
    with Fork(begin_and_say_so(root)) as living, Fork(begin_and_say_so(root)) as dying:
        assert living.heard() == dying.heard() == "begun"
        for name in temporary_files(root / "e"):
            os.utime(root / "e" / ".ckpt-tmp" / name, (0, 0))
        store.open_write("e/y").abort()
        assert len(temporary_files(root / "e")) == 4
        os.kill(dying.pid, signal.SIGKILL)
        dying.wait()
        store.open_write("e/y").abort()
        assert len(temporary_files(root / "e")) == 3
    mine.write(b"whole")
    mine.commit()
    assert get(store, "e/x") == b"whole"
    store.open_write("e/y").abort()
    assert temporary_files(root / "e") == ["note.txt"]


def test_what_the_dead_left_goes_from_folders_where_nobody_uploads_any_more(store: Store, root: Path) -> None:
    """Of a payload of several files: with the next deletion in its folder, or the next upload in a folder below."""
    for folder in ("e", "e/payload"):
        store.put(f"{folder}/x", b"1")
        living = store.open_write(f"{folder}/y")
        (root / folder / ".ckpt-tmp" / "dead.tmp").write_bytes(b"half")
        if folder == "e":
            store.open_write("e/payload/x").abort()
        else:
            store.delete(f"{folder}/never there")
        (left,) = temporary_files(root / folder)
        assert left != "dead.tmp"
        living.write(b"whole")
        living.commit()
    store.delete("nowhere/x")
    assert not (root / "nowhere").exists()


def test_without_locks_only_age_tells_what_the_dead_left(root: Path) -> None:
    """A day, by the store's clock."""
    store = LocalStore(str(root), system=WithoutLocks())
    store.put("e/x", b"1")
    own = root / "e" / ".ckpt-tmp"
    now = (root / "e" / "x").stat().st_mtime
    for name, age in (("old.tmp", LEFT_AFTER_SECONDS + 60), ("young.tmp", LEFT_AFTER_SECONDS - 60)):
        (own / name).write_bytes(b"")
        os.utime(own / name, (now - age, now - age))
    upload(store, "e/x", b"2")
    assert temporary_files(root / "e") == ["young.tmp"]


def test_a_fork_has_none_of_its_parents_locks(store: Store, root: Path) -> None:
    """What a killed process had begun can be removed, and what it had locked is free, though its forks live on."""

    def work(tell: Callable[[str], object]) -> None:
        system = Watched()
        own = LocalStore(str(root), system=system)
        begun = own.open_write("e/x")
        begun.write(b"half")

        def fork_and_die(name: str) -> None:
            if name == "replace":
                if os.fork() == 0:
                    tell(str(os.getpid()))
                    time.sleep(60)
                    os._exit(0)
                os.kill(os.getpid(), signal.SIGKILL)

        system.on_call = fork_and_die
        system.armed = True
        own.put("e/y", b"1")

    store.put("e/y", b"0")
    with Fork(work) as parent:
        grandchild = int(parent.heard())
        assert parent.wait() == -signal.SIGKILL
        try:
            began = time.monotonic()
            upload(store, "e/y", b"2")
            assert time.monotonic() - began < 30  # the child would sleep for a minute
            assert temporary_files(root / "e") == []
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_a_fork_at_any_moment_can_work(store: Store, root: Path) -> None:
    """Whatever other threads of its parent were doing when it was made, such as holding a lock."""
    stop = threading.Event()

    def write(number: int) -> None:
        while not stop.is_set():
            upload(store, f"e/{number}", b"1")
            store.put(f"e/{number}", b"2", if_version=version_of(store, f"e/{number}"))

    threads = [threading.Thread(target=write, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(15):
            assert in_fork(partial(store.put, f"e/fork {number}", b"1", if_version=ABSENT)) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(keys(store, "e")) == 17


def test_a_fork_cannot_end_what_its_parent_began(store: Store, root: Path) -> None:
    """It neither commits nor aborts it, and the parent goes on."""
    begun = store.open_write("e/x")
    begun.write(b"parent")

    def work() -> None:
        for use in (lambda: begun.write(b"fork"), begun.commit):
            with pytest.raises(StoreError):
                use()
        begun.abort()
        upload(open_store(root), "e/y", b"fork")

    assert in_fork(work) == 0
    begun.commit()
    assert get(store, "e/x") == b"parent"
    assert get(store, "e/y") == b"fork"


def test_a_process_that_stands_still_with_the_lock_makes_others_wait_and_is_named(root: Path) -> None:
    """The lock is not broken, however long that takes; both writers succeed or are refused as if it had been quick."""
    store = LocalStore(str(root), patience_seconds=0.3)
    version = store.put("e/x", b"0").version

    def work(tell: Callable[[str], object]) -> None:
        system = Watched()
        own = LocalStore(str(root), system=system)

        def say_so_and_sleep(name: str) -> None:
            if name == "replace":
                tell("locked")
                time.sleep(0.3)

        system.on_call = say_so_and_sleep
        system.armed = True
        own.put("e/x", b"1", if_version=version)
        tell("done")

    with Fork(work) as child:
        assert child.heard() == "locked"
        child.stop()
        operations: list[Callable[[], object]] = [
            lambda: store.put("e/x", b"2", if_version=version),
            lambda: store.put("e/y", b"2", if_version=ABSENT),
            lambda: store.delete("e/x", if_version=version),
            lambda: upload(store, "e/y", b"2"),
        ]
        before = random.getstate()
        for operation in operations:
            with pytest.raises(StoreUnavailableError, match=f"process {child.pid} on "):
                operation()
        assert random.getstate() == before  # waiting draws none of the training's random numbers
        assert get(store, "e/x") == b"0"
        os.kill(child.pid, signal.SIGCONT)
        assert child.heard() == "done"
        assert child.wait() == 0
    with pytest.raises(VersionConflictError):
        store.put("e/x", b"2", if_version=version)
    assert get(store, "e/x") == b"1"
    assert temporary_files(root / "e") == []


def test_a_lock_file_that_was_removed_is_not_the_lock(store: Store, root: Path) -> None:
    """Others lock the new one: who waited for the old one is refused, and tries again."""
    first = store.put("e/x", b"1")
    path = root / "e" / ".ckpt-tmp" / "lock"

    def replace_lock() -> None:
        path.unlink()
        held.close()

    held = System().open(path, "r+")
    assert System().try_lock(held)
    thread = threading.Timer(0.2, replace_lock)
    thread.start()
    with pytest.raises(StoreUnavailableError, match="removed"):
        store.put("e/x", b"2", if_version=first.version)
    thread.join()
    store.put("e/x", b"2", if_version=first.version)


def test_a_full_disk_hides_only_who_holds_the_lock(root: Path) -> None:
    """The lock is had all the same."""

    class Full(System):
        def write(self, file: object, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    first = open_store(root).put("e/x", b"1")
    (root / "e" / ".ckpt-tmp" / "lock").write_bytes(b"damaged \xff")
    LocalStore(str(root), system=Full()).delete("e/x", if_version=first.version)
    assert keys(open_store(root), "e") == []


def test_files_are_made_with_the_rights_that_the_umask_leaves(store: Store, root: Path) -> None:
    """A group that shares a folder shares what is in it, the store's own files as well."""
    before = os.umask(0o002)
    try:
        store.put("e/x", b"1")
        upload(store, "e/y", b"1")
    finally:
        os.umask(before)
    for path in ("e/x", "e/y", "e/.ckpt-tmp/lock"):
        assert stat.S_IMODE((root / path).stat().st_mode) == 0o664
