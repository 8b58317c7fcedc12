"""The local store: the contract of all stores, and what only a POSIX file system can do to it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib.errors import (
    CheckpointExistsError,
    ConfigError,
    LeaseLostError,
    NotAStoreError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.store import FolderLock, Store, leases, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.testing import SharedStoreContract
from ckpt_lib.testing.store_contract import begin, delete, get, names, put
from tests.helpers import is_bookkeeping, run_python


class _LocalContract(SharedStoreContract):
    def plant(self, store: Store, path: str, content: bytes) -> None:
        target = Path(store.location(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


class TestLocalByPath(_LocalContract):
    """The contract, for a store that is named by a path."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "not there yet" / "store")


class TestLocalByUrl(_LocalContract):
    """The contract, for a store that is named by a ``file://`` URL."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/store"


def unfinished(folder: Path) -> list[Path]:
    """The files in a folder that have no name yet."""
    return [path for path in folder.glob(".ckpt-lease-*/*") if path.name not in ("lease", "free")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


# --- roots ---


@pytest.mark.parametrize(
    "name", ["a b", "a%20b", "a#b", "a?b", "a*[b]", "ü", "a::b", "a:b", "a\nb", "'\"", "~", "$HOME", "-rf", "trailing/"]
)
@pytest.mark.parametrize("prefix", ["", "file://", "local://"])
def test_a_root_of_any_name_is_that_folder(tmp_path: Path, prefix: str, name: str) -> None:
    """No character of a path is taken for a pattern, an escape, a fragment or a home directory."""
    store = open_store(f"{prefix}{tmp_path}/{name}")
    put(store, "e/x", b"1")
    found = [path for path in tmp_path.rglob("*") if path.is_file() and not is_bookkeeping(str(path))]
    assert found == [tmp_path / name / "e" / "x"]
    assert store.location("e/x") == str(tmp_path / name / "e" / "x")


def test_a_relative_root_is_relative_to_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its directory later goes on writing to the same place."""
    monkeypatch.chdir(tmp_path)
    store = open_store("checkpoints")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    put(store, "e/x", b"1")
    assert (tmp_path / "checkpoints" / "e" / "x").exists()


def test_a_path_object_is_a_root(tmp_path: Path) -> None:
    """``pathlib`` is how most people spell paths."""
    assert open_store(tmp_path).location("x") == str(tmp_path / "x")


@pytest.mark.parametrize("url", ["s3://bucket/x", "nonsense://x", "http://x", "memory://x"])
def test_an_unknown_scheme_is_refused_by_name(url: str) -> None:
    """And never becomes a folder called ``s3:``."""
    with pytest.raises(ConfigError, match=url.partition(":")[0]):
        open_store(url)


# --- what else lies in a folder ---


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_disk_that_is_gone_behind_a_link_is_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    """Whether it was there before or not: one situation, one class."""
    disk = Path(tempfile.mkdtemp(dir="/dev/shm"))
    (tmp_path / "link").symlink_to(disk)
    store = open_store(tmp_path / "link")
    put(store, "e/x", b"1")
    shutil.rmtree(disk)
    for one in (store, open_store(tmp_path / "link")):
        with pytest.raises(NotAStoreError, match="leads nowhere"):
            one.entries("e")
        with pytest.raises(NotAStoreError, match="leads nowhere"):
            one.open_write("e")


def test_links_and_devices_are_not_seen(store: Store, root: Path) -> None:
    """Only regular files and folders are: a planted link cannot make a foreign file look like a checkpoint."""
    put(store, "e/x", b"1")
    folder = root / "e"
    planted = ("link", "dangling", "up", "fifo", "socket")
    (folder / "link").symlink_to(folder / "x")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as unix, _inside(folder):
        unix.bind("socket")
        assert names(store, "e") == ["x"]
        for name in planted:
            assert store.stat(f"e/{name}") is None
            with pytest.raises(FileNotFoundError):
                store.open_read(f"e/{name}")
        with store.lock("e") as held:
            assert held.sweep() == []
    assert {"x", *planted} <= set(os.listdir(folder))


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def test_a_link_in_the_place_of_a_folder_is_not_followed(store: Store, root: Path) -> None:
    """Below the root; the root itself may be one, as people arrange their disks."""
    foreign = root.parent / "foreign"
    foreign.mkdir()
    (foreign / "x").write_bytes(b"precious")
    root.mkdir()
    (root / "e").symlink_to(foreign)
    operations: list[Callable[[], object]] = [
        lambda: store.entries("e"),
        lambda: store.stat("e/x"),
        lambda: store.open_read("e/x"),
        lambda: store.open_write("e"),
        lambda: store.open_write("e/deeper"),
        lambda: delete(store, "e/x"),
        lambda: store.held("e"),
        lambda: store.leftovers("e"),
    ]
    for operation in operations:
        with pytest.raises(NotAStoreError):
            operation()
    assert os.listdir(foreign) == ["x"]
    (root.parent / "root").symlink_to(foreign)
    assert get(open_store(root.parent / "root"), "x") == b"precious"


def test_a_link_planted_as_unfinished_file_is_not_followed(store: Store, root: Path) -> None:
    """Writing goes to a file of our own or nowhere, though the next names can be guessed."""
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    with store.lock("e"):
        pass  # so that the folder has a lock already
    pending = begin(store, "e", b"1")
    (first,) = unfinished(root / "e")
    for number in range(int(first.name) + 1, 40):
        (first.parent / str(number)).symlink_to(victim)
    for replace in (False, True):
        with pytest.raises(StoreError):
            put(store, "e/x", b"new", replace=replace)
    with store.lock("e") as held:
        with pytest.raises(StoreError):
            held.put("e/x", b"new")
        held.sweep()
    pending.discard()
    assert victim.read_bytes() == b"precious"
    assert names(store, "e") == []


def test_a_link_in_the_place_of_the_target_is_replaced_not_followed(store: Store, root: Path) -> None:
    """The foreign file it points to stays as it is, whatever is done under the name of the link."""
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    put(store, "e/other", b"1")
    (root / "e" / "x").symlink_to(victim)
    with pytest.raises(CheckpointExistsError):
        put(store, "e/x", b"new")
    with store.lock("e") as held, pytest.raises(StoreError):
        held.patch("e/x", [(0, b"new")], size_bytes=3)
    delete(store, "e/x")
    assert not (root / "e" / "x").is_symlink()
    changes: list[Callable[[FolderLock], object]] = [
        lambda held: held.put("e/x", b"new"),
        lambda held: held.link("e/other", "e/x"),
        lambda held: held.publish(begin(store, "e", b"new"), "e/x", replace=True),
    ]
    for change in changes:
        (root / "e" / "x").unlink(missing_ok=True)
        (root / "e" / "x").symlink_to(victim)
        with store.lock("e") as held:
            change(held)
        assert victim.read_bytes() == b"precious"
        assert get(store, "e/x") != b"precious"


def test_a_dangling_link_takes_a_name(store: Store, root: Path) -> None:
    """Publishing must not create the file it points to."""
    put(store, "e/other", b"1")
    (root / "e" / "x").symlink_to(root.parent / "created")
    with pytest.raises(CheckpointExistsError):
        put(store, "e/x", b"new")
    put(store, "e/x", b"new", replace=True)
    assert not (root.parent / "created").exists()
    assert get(store, "e/x") == b"new"


def test_a_folder_in_the_place_of_a_file_is_not_changed(store: Store, root: Path) -> None:
    """Every change of it is an error of ours; for readers there is no such file."""
    put(store, "e/other", b"1")
    (root / "e" / "x").mkdir()
    (root / "e" / "x" / "inner").write_bytes(b"1")
    with pytest.raises(FileNotFoundError):
        store.open_read("e/x")
    changes: list[Callable[[FolderLock], object]] = [
        lambda held: held.put("e/x", b"2"),
        lambda held: held.link("e/other", "e/x"),
        lambda held: held.delete("e/x"),
        lambda held: held.patch("e/x", [(0, b"2")], size_bytes=1),
    ]
    for change in changes:
        with store.lock("e") as held, pytest.raises(StoreError):
            change(held)
    assert os.listdir(root / "e" / "x") == ["inner"]


def test_the_folder_of_a_run_at_work_can_be_copied(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the copy nobody renews the lease: its lock becomes free, what was unfinished goes, checkpoints stay."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    put(store, "e/x.pt", b"1")
    pending = begin(store, "e", b"unfinished")
    with store.lock("e"):
        shutil.copytree(root / "e", root / "f")
    os.utime(root / "f" / "x.pt", (0, 0))  # age has no say
    (copied,) = unfinished(root / "f")
    with store.lock("f") as held:
        held.sweep()
    assert not copied.parent.exists()
    assert names(store, "f") == ["x.pt"]
    with store.lock("e") as held:
        held.publish(pending, "e/y.pt")
    assert names(store, "e") == ["x.pt", "y.pt"]


# --- versions ---


def version(store: Store, path: str) -> str:
    entry = store.stat(path)
    assert entry is not None
    return entry.version


@pytest.mark.parametrize("seconds", [0, 12345])
def test_a_version_changes_though_the_modification_time_is_set_back(store: Store, root: Path, seconds: int) -> None:
    """Same size, same inode, same mtime: the change time gives it away."""
    put(store, "e/x", b"abc")
    path = root / "e" / "x"
    os.utime(path, (seconds, seconds))
    before = version(store, "e/x")
    time.sleep(0.02)  # the kernel's clock moves in steps
    with open(path, "r+b") as file:
        file.write(b"abd")
    os.utime(path, (seconds, seconds))
    assert path.stat().st_mtime == seconds
    assert version(store, "e/x") != before


@pytest.mark.parametrize("tool", ["copy", "truncate", "append", "chmod"])
def test_a_version_changes_with_whatever_touches_the_file(store: Store, root: Path, tool: str) -> None:
    """A false alarm costs a reading; a missed change would cost trust."""
    put(store, "e/x", b"abc")
    before = version(store, "e/x")
    path = root / "e" / "x"
    time.sleep(0.02)
    if tool == "copy":
        shutil.copy2(path, root / "e" / "y")
        (root / "e" / "y").replace(path)
    elif tool == "truncate":
        os.truncate(path, 2)
    elif tool == "append":
        with open(path, "ab") as file:
            file.write(b"d")
    else:
        path.chmod(0o600)
    assert version(store, "e/x") != before


# --- at the instants between system calls ---


@pytest.mark.parametrize(("call", "replace"), [("link", False), ("replace", True)])
def test_a_rival_waits_while_a_file_gets_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, replace: bool
) -> None:
    """One who wants the same name at that moment comes after it: he is refused, or replaces what is whole."""
    real, outcomes, threads = getattr(os, call), list[object](), list[threading.Thread]()
    instants = []

    def rival(client: Store) -> None:
        try:
            put(client, "e/x", b"rival", replace=replace)
            outcomes.append("put")
        except CheckpointExistsError:
            outcomes.append("refused")

    def rename(source: Any, target: Any, **options: Any) -> None:
        if target == "x" and not threads:
            threads.extend(threading.Thread(target=rival, args=[client]) for client in (store, open_store(store.url)))
            for thread in threads:
                thread.start()
            time.sleep(0.1)
            instants.append(list(outcomes))
        real(source, target, **options)

    monkeypatch.setattr(os, call, rename)
    put(store, "e/x", b"mine", replace=replace)
    for thread in threads:
        thread.join()
    assert instants == [[]]
    assert outcomes == (["put"] * 2 if replace else ["refused"] * 2)
    assert get(store, "e/x") == (b"rival" if replace else b"mine")


def test_racing_writers_of_one_name_never_disturb_each_other_or_readers(store: Store, root: Path) -> None:
    """Each publishes in its turn, and every reader has one whole file, in hundreds of meetings."""
    put(store, "e/x", bytes(5000))
    stop, surprises, meetings = threading.Event(), list[object](), list[int]()

    def repeat(once: Callable[[Store], object]) -> None:
        client = open_store(root)
        try:
            while not stop.is_set():
                once(client)
                meetings.append(1)
        except BaseException as error:
            surprises.append(error)

    def write(client: Store) -> None:
        put(client, "e/x", bytes([threading.get_ident() % 251]) * 5000, replace=True)

    def read(client: Store) -> None:
        content = get(client, "e/x")
        if content != content[:1] * 5000:
            surprises.append(content)

    threads = [threading.Thread(target=repeat, args=[once]) for once in (write, write, write, read)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    stop.set()
    for thread in threads:
        thread.join()
    assert surprises == []
    assert len(meetings) > 20
    assert os.listdir(root / "e").count("x") == 1
    assert names(store, "e") == ["x"]
    assert unfinished(root / "e") == []


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_that_vanished_under_its_writer_is_an_error_of_the_store(
    store: Store, root: Path, replace: bool
) -> None:
    """Someone removed the folder during a save: that is a failure of the store, not a missing checkpoint."""
    pending = begin(store, "e", b"abc")
    shutil.rmtree(root / "e")
    with store.lock("e") as held, pytest.raises(StoreError):
        held.publish(pending, "e/x", replace=replace)
    pending.discard()
    pending = begin(store, "e", b"abc")
    with store.lock("e") as held:
        shutil.rmtree(root / "e")
        with pytest.raises(LeaseLostError):
            held.publish(pending, "e/x", replace=replace)
        with pytest.raises(LeaseLostError):
            held.put("e/x", b"abc")
    pending.discard()
    assert names(store, "e") == []
    put(store, "e/x", b"works")


def test_an_unfinished_file_that_vanished_is_an_error_of_the_store(store: Store, root: Path) -> None:
    """The folder and its lock are whole, and go on to be used."""
    pending = begin(store, "e", b"abc")
    (path,) = unfinished(root / "e")
    path.unlink()
    with store.lock("e") as held:
        with pytest.raises(StoreError, match="removed an unfinished file"):
            held.publish(pending, "e/x")
        held.put("e/y", b"1")
    pending.discard()
    assert names(store, "e") == ["y"]


def test_a_folder_that_was_moved_is_an_error_of_the_store(store: Store, root: Path) -> None:
    """Names in it are not called durable in a place where they are not."""
    put(store, "e/x", b"1")
    with store.lock("e") as held:
        (root / "e").rename(root / "moved")
        held.put("e/y", b"2")
        with pytest.raises(StoreError, match="moved"):
            held.sync()
    assert names(store, "moved") == ["x", "y"]


def test_bytes_that_the_file_system_lost_are_noticed(store: Store, root: Path) -> None:
    """The size is asked for before a file is called durable."""
    pending = store.open_write("e")
    pending.write(b"0123456789")
    (path,) = unfinished(root / "e")
    os.truncate(path, 4)
    with pytest.raises(StoreError, match="4 of 10"):
        pending.sync()
    pending.discard()


def test_bytes_that_were_said_to_be_written_are_missed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small files as well, before they have their name."""
    put(store, "e/x", b"old")
    real = os.write
    with store.lock("e") as held, monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:-1]) + 1)
        with pytest.raises(StoreError, match="9 of 10"):
            held.put("e/x", b"0123456789")
    assert get(store, "e/x") == b"old"


def test_a_short_write_is_completed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take fewer bytes than offered; all of them arrive."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    put(store, "e/x", b"0123456789")
    with store.lock("e") as held:
        held.put("e/y", b"0123456789")
        held.put("e/z", bytes(10))
        held.patch("e/z", [(0, b"0123456789")], size_bytes=10)
    assert [get(store, f"e/{name}") for name in names(store, "e")] == [b"0123456789"] * 3


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links_works(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """FAT and some network file systems have none: a rename takes its place, and a taken name is still refused."""
    monkeypatch.setattr(os, "link", _failing(code))
    put(store, "e/x", b"first")
    with pytest.raises(CheckpointExistsError):
        put(store, "e/x", b"second")
    pending = begin(store, "e", b"second")
    Path(store.location("e/y")).write_bytes(b"foreign")
    with store.lock("e") as held:
        with pytest.raises(CheckpointExistsError):
            held.publish(pending, "e/y")
        with pytest.raises(StoreError):
            held.link("e/x", "e/z")
        held.publish(pending, "e/y", replace=True)
    assert (get(store, "e/x"), get(store, "e/y")) == (b"first", b"second")
    assert names(store, "e") == ["x", "y"]


# --- errors ---

_EXPECTED = {
    errno.ENOSPC: StorageFullError,
    errno.EDQUOT: StorageFullError,
    errno.EFBIG: StoreError,
    errno.EACCES: StorePermissionError,
    errno.EPERM: StorePermissionError,
    errno.EROFS: StorePermissionError,
    errno.EAGAIN: StoreUnavailableError,
    errno.EBUSY: StoreUnavailableError,
    errno.EMFILE: StoreUnavailableError,
    errno.ENFILE: StoreUnavailableError,
    errno.ENOLCK: StoreUnavailableError,
    errno.ESTALE: StoreUnavailableError,
    errno.ETIMEDOUT: StoreUnavailableError,
    errno.ENETDOWN: StoreUnavailableError,
    errno.EIO: StoreError,
    errno.ENAMETOOLONG: StoreError,
    errno.EINVAL: StoreError,
    errno.ELOOP: StoreError,
}


def _failing(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize(("code", "expected"), _EXPECTED.items(), ids=[errno.errorcode[code] for code in _EXPECTED])
def test_each_reason_has_its_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[StoreError]
) -> None:
    """What a person can do about it decides the class; the reason and the place are in the message."""
    pending = store.open_write("e")
    pending.write(b"abc")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _failing(code))
        with pytest.raises(StoreError) as raised:
            pending.sync()
    pending.discard()
    assert type(raised.value) is expected
    assert os.strerror(code) in str(raised.value)
    assert store.location("e") in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)
    assert names(store, "e") == []


CODES = [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EMFILE]


def lock(store: Store, folder: str) -> None:
    with store.lock(folder):
        pass


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("call", "operation"),
    [
        ("open", lambda store: store.entries("e")),
        ("scandir", lambda store: store.entries("e")),
        ("stat", lambda store: store.stat("e/x")),
        ("open", lambda store: store.open_read("e/x")),
        ("open", lambda store: store.open_write("e")),
        ("mkdir", lambda store: store.open_write("f")),
        ("write", lambda store: put(store, "e/new", b"1")),
        ("fstat", lambda store: put(store, "e/new", b"1")),
        ("fsync", lambda store: put(store, "e/new", b"1")),
        ("open", lambda store: lock(store, "e")),
        ("mkdir", lambda store: lock(store, "f")),
        ("link", lambda store: lock(store, "e")),
        ("listdir", lambda store: lock(store, "e")),
        ("listdir", lambda store: store.held("e")),
        ("listdir", lambda store: store.leftovers("e")),
    ],
)
def test_no_operation_lets_a_bare_error_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, operation: Callable[[Store], object], code: int
) -> None:
    """A system call that an operation cannot do without fails: what comes out is an error of this library."""
    put(store, "e/x", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _failing(code))
        with pytest.raises(_EXPECTED[code]):
            operation(store)
    assert get(store, "e/x") == b"old"
    put(store, "e/afterwards", b"works")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("call", "change"),
    [
        ("rename", lambda held, pending: held.publish(pending, "e/new")),
        ("link", lambda held, pending: held.publish(pending, "e/new")),
        ("replace", lambda held, pending: held.publish(pending, "e/x", replace=True)),
        ("open", lambda held, _: held.put("e/x", b"1")),
        ("write", lambda held, _: held.put("e/x", b"1")),
        ("fsync", lambda held, _: held.put("e/x", b"1")),
        ("replace", lambda held, _: held.put("e/x", b"1")),
        ("link", lambda held, _: held.link("e/x", "e/new")),
        ("utime", lambda held, _: held.link("e/x", "e/new")),
        ("replace", lambda held, _: held.link("e/x", "e/new")),
        ("stat", lambda held, _: held.delete("e/x")),
        ("rename", lambda held, _: held.delete("e/x")),
        ("open", lambda held, _: held.patch("e/x", [(0, b"1")], size_bytes=1)),
        ("write", lambda held, _: held.patch("e/x", [(0, b"1")], size_bytes=3)),
        ("ftruncate", lambda held, _: held.patch("e/x", [], size_bytes=1)),
        ("fsync", lambda held, _: held.sync()),
        ("listdir", lambda held, _: held.sweep()),
    ],
)
def test_no_change_lets_a_bare_error_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, change: Callable[[FolderLock, Any], object], code: int
) -> None:
    """As above, under the lock: the names stay as they were, and the lock is good for the next change."""
    put(store, "e/x", b"old")
    pending = begin(store, "e", b"new")
    with store.lock("e") as held:
        with monkeypatch.context() as patched:
            patched.setattr(os, call, _failing(code))
            with pytest.raises(_EXPECTED[code]):
                change(held, pending)
        assert names(store, "e") == ["x"]
        assert get(store, "e/x") == b"old"
        held.put("e/afterwards", b"works")
    pending.discard()
    put(store, "e/afterwards", b"works", replace=True)


def hold(store: Store) -> None:
    with store.hold("e", "x", "reading"):
        assert get(store, "e/x") == b"old"


def small_changes(store: Store) -> None:
    with store.lock("e") as held:
        held.put("e/x", b"new")
        held.patch("e/x", [(0, b"new")], size_bytes=3)
        held.link("e/x", "e/y")
        held.sweep()
        held.sync()


def open_descriptors() -> int:
    leases.leases.end_all()  # each has one
    return len(os.listdir("/proc/self/fd"))


OPERATIONS: dict[str, Callable[[Store], object]] = {
    "entries": lambda store: store.entries("e"),
    "stat": lambda store: store.stat("e/x"),
    "read": lambda store: get(store, "e/x"),
    "hold": hold,
    "held": lambda store: store.held("e"),
    "leftovers": lambda store: store.leftovers("e"),
    "put new": lambda store: put(store, "e/y", b"new"),
    "put over": lambda store: put(store, "e/x", b"new", replace=True),
    "delete": lambda store: delete(store, "e/x"),
    "first": lambda store: put(store, "f/g/x", b"new"),
    "small changes": small_changes,
}
SYSTEM_CALLS = (
    *("open", "close", "stat", "fstat", "scandir", "listdir", "mkdir", "rmdir", "unlink", "rename", "replace"),
    *("link", "readlink", "write", "read", "fsync", "utime", "ftruncate", "dup", "lseek"),
)


class _Failing:
    """Lets the ``at``-th system call of this thread fail, and with ``stays`` all that follow."""

    def __init__(self, patched: pytest.MonkeyPatch, code: int, at: int, *, stays: bool) -> None:
        self.count = 0
        self._code, self._at, self._stays = code, at, stays
        self._thread = threading.get_ident()
        for name in SYSTEM_CALLS:
            patched.setattr(os, name, self._around(name, getattr(os, name)))

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if threading.get_ident() == self._thread:
                self.count += 1
                if self.count == self._at or (self._stays and self.count > self._at):
                    if name == "close":
                        real(*arguments)  # as Linux does, whatever else it says
                    raise OSError(self._code, os.strerror(self._code))
            return real(*arguments, **options)

        return call


@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["EIO", "ENOSPC"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_whichever_system_call_fails_the_error_is_ours_and_files_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, stays: bool
) -> None:
    """One after the other fails; the operation is done without it, or ends in the right error; then all works again."""
    at, is_past_the_last = 0, False
    while not is_past_the_last:
        at += 1
        store = open_store(tmp_path / str(at))
        put(store, "e/x", b"old")
        before = open_descriptors()
        with monkeypatch.context() as patched:
            failing = _Failing(patched, code, at, stays=stays)
            with suppress(_EXPECTED[code]):
                OPERATIONS[name](store)
            is_past_the_last = failing.count < at
        contents = {get(store, f"e/{found}") for found in names(store, "e")}
        assert contents <= {b"old", b"new"}, at
        put(store, "e/afterwards", b"works")
        assert get(store, "e/afterwards") == b"works", at
        assert open_descriptors() == before, at
    assert at > 3


def test_reading_bytes_that_cannot_be_read_is_an_error_of_the_store() -> None:
    """The error of a disk surfaces while reading, long after opening."""
    memory = open_store("/proc/self")
    operations: list[Callable[[Any], object]] = [
        lambda file: file.read(10),
        lambda file: file.read(),
        lambda file: file.readall(),
        lambda file: file.readinto(bytearray(10)),
    ]
    for operation in operations:
        with memory.open_read("mem") as file, pytest.raises(StoreError):
            operation(file)


def test_failures_leave_no_descriptor_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run that retries for days must not run out of files."""
    put(store, "e/x", b"1")
    before = open_descriptors()
    for call in ("open", "mkdir", "fsync", "link", "rename", "write", "stat", "fstat"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, _failing(errno.EIO))
            for _ in range(5):
                with suppress(StoreError):
                    put(store, "e/new", b"1", replace=True)
                with suppress(StoreError):
                    lock(store, "e")
                with suppress(StoreError):
                    get(store, "e/x")
    for _ in range(5):
        with pytest.raises(CheckpointExistsError):
            put(store, "e/x", b"2")
        with pytest.raises(FileNotFoundError):
            store.open_read("e/y")
        with store.lock("e") as held:
            held.sweep()
        with store.hold("e", "x", "reading"):
            store.entries("e")
    assert open_descriptors() == before


def test_running_out_of_descriptors_is_transient(store: Store) -> None:
    """Trying again later may help, and does."""
    put(store, "e/x", b"1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    operations: list[Callable[[], object]] = [
        lambda: store.open_write("e"),
        lambda: store.open_read("e/x"),
        lambda: store.entries("e"),
        lambda: lock(store, "e"),
    ]
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for operation in operations:
            with pytest.raises(StoreUnavailableError):
                operation()
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    put(store, "e/y", b"2")
    assert names(store, "e") == ["x", "y"]


def test_a_file_size_limit_is_no_full_store(store: Store, root: Path) -> None:
    """Freeing space would not help. It is seen at the write, and nothing is left behind."""
    put(store, "e/x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        pending = store.open_write("e")
        with pytest.raises(StoreError, match="ulimit -f") as refused:
            pending.write(bytes(20_000))
        assert not isinstance(refused.value, StorageFullError)
        pending.discard()
        with store.lock("e") as held, pytest.raises(StoreError, match="ulimit -f"):
            held.put("e/x", bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert unfinished(root / "e") == []
    assert names(store, "e") == ["x"]
    assert get(store, "e/x") == b"old"


_FILL = """
import sys
from pathlib import Path
from tests.torture.namespaces import enter_namespace, tmpfs
enter_namespace()
from ckpt_lib.errors import StorageFullError
from ckpt_lib.store import open_store
from ckpt_lib.testing.store_contract import delete, names, put
from tests.store.test_store_local import unfinished

with tmpfs(Path(sys.argv[1]), 100_000) as disk:
    store = open_store(disk / "store")
    refused, kept = 0, []
    for size in range(8_000, 200_000, 8_000):
        try:
            put(store, f"e/{size}", bytes(size))
            kept.append(str(size))
        except StorageFullError:
            refused += 1
        assert unfinished(disk / "store" / "e") == []
        assert names(store, "e") == sorted(kept), (names(store, "e"), kept)
        while refused and kept:
            delete(store, f"e/{kept.pop()}")
    put(store, "e/last", bytes(40_000))
    print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_full_disk_is_a_full_store(tmp_path: Path) -> None:
    """A real file system of 100 kB runs full: the right error each time, no residue, and deleting helps."""
    assert int(run_python(_FILL, tmp_path / "disk")) > 5


@contextmanager
def _unprivileged() -> Iterator[Path]:
    """A folder that may not be written, as a user whom that stops."""
    folder = Path(tempfile.mkdtemp())
    put(open_store(folder), "e/x", b"old")
    leases.leases.end_all()  # what it has there could not be removed as somebody else
    for path in (folder, folder / "e"):
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in (folder, folder / "e"):
            path.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "operation",
    [
        lambda store: store.open_write("e"),
        lambda store: store.open_write("f"),
        lambda store: put(store, "e/x", b"new", replace=True),
        lambda store: delete(store, "e/x"),
        lambda store: lock(store, "e"),
        lambda store: lock(store, "f"),
    ],
)
def test_a_read_only_folder_refuses_every_change(operation: Callable[[Store], object]) -> None:
    """With the permission error of ours, and reading goes on."""
    with _unprivileged() as folder:
        store = LocalStore(str(folder))
        with pytest.raises(StorePermissionError):
            operation(store)
        with store.hold("e", "x", "reading"):
            assert get(store, "e/x") == b"old"
        assert names(store, "e") == ["x"]
        assert store.held("e") == {}
        assert store.leftovers("e") == []
        assert os.listdir(folder) == ["e"]
