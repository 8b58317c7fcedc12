"""The local store: the contract of all stores, and what only a POSIX file system can do to it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import socket
import subprocess
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
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.store import Store, open_store
from ckpt_lib.store.local import LocalStore
from tests.store_contract import StoreContract, get, names, put


class _LocalContract(StoreContract):
    def plant(self, store: Store, path: str, content: bytes) -> None:
        Path(store.location(path)).write_bytes(content)


class TestByPath(_LocalContract):
    """The contract, for a store that is named by a path."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return str(tmp_path / "not there yet" / "store")


class TestByUrl(_LocalContract):
    """The contract, for a store that is named by a ``file://`` URL."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/store"


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
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name / "e" / "x"]
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


def test_links_and_devices_are_not_seen(store: Store, root: Path) -> None:
    """Only regular files and folders are: a planted link cannot make a foreign file look like a checkpoint."""
    put(store, "e/x", b"1")
    folder = root / "e"
    (folder / "link").symlink_to(folder / "x")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as unix, _inside(folder):
        unix.bind("socket")
        assert names(store, "e") == ["x"]
        for name in ("link", "dangling", "up", "fifo", "socket"):
            assert store.stat(f"e/{name}") is None
        assert store.sweep("e") == []


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("replace", [False, True])
def test_a_link_planted_as_temporary_file_is_not_followed(store: Store, root: Path, replace: bool) -> None:
    """Writing goes to a file of our own or nowhere."""
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    (root / "e").mkdir(parents=True)
    (root / "e" / ".x.ckpt-tmp").symlink_to(victim)
    with suppress(StoreError):
        put(store, "e/x", b"new", replace=replace)
    with store.lock("e"):
        store.sweep("e")
    assert victim.read_bytes() == b"precious"


def test_a_link_in_the_place_of_the_target_is_replaced_not_followed(store: Store, root: Path) -> None:
    """The foreign file it points to stays as it is."""
    victim = root.parent / "victim"
    victim.write_bytes(b"precious")
    put(store, "e/other", b"1")
    (root / "e" / "x").symlink_to(victim)
    with pytest.raises(CheckpointExistsError):
        store.open_write("e/x")
    put(store, "e/x", b"new", replace=True)
    assert victim.read_bytes() == b"precious"
    assert get(store, "e/x") == b"new"


def test_a_dangling_link_takes_a_name(store: Store, root: Path) -> None:
    """Publishing must not create the file it points to."""
    put(store, "e/other", b"1")
    (root / "e" / "x").symlink_to(root.parent / "created")
    with pytest.raises(CheckpointExistsError):
        store.open_write("e/x")
    assert not (root.parent / "created").exists()


def test_a_folder_in_the_place_of_a_file_is_an_error_of_ours(store: Store, root: Path) -> None:
    """For every operation on it, and it stays."""
    (root / "e" / "x").mkdir(parents=True)
    operations: list[Callable[[], object]] = [
        lambda: put(store, "e/x", b"1", replace=True),
        lambda: store.open_read("e/x"),
        lambda: store.delete("e/x"),
    ]
    for operation in operations:
        with pytest.raises(StoreError):
            operation()
    assert (root / "e" / "x").is_dir()


def test_a_leftover_that_is_a_folder_is_not_swept(store: Store, root: Path) -> None:
    """Our temporary files are files."""
    (root / "e" / ".x.ckpt-tmp").mkdir(parents=True)
    assert store.sweep("e") == []


def test_a_copied_temporary_file_is_swept_and_a_copied_checkpoint_is_not(store: Store, root: Path) -> None:
    """Whatever its age: the name says what it is, the kernel whether its owner lives."""
    put(store, "e/x.pt", b"1")
    shutil.copy(root / "e" / "x.pt", root / "e" / ".x.pt.ckpt-tmp")
    shutil.copy(root / "e" / "x.pt", root / "e" / "y.pt")
    os.utime(root / "e" / "y.pt", (0, 0))
    with store.lock("e"):
        assert store.sweep("e") == [".x.pt.ckpt-tmp"]
    assert {"x.pt", "y.pt"} <= set(names(store, "e"))


# --- versions ---


@pytest.mark.parametrize("seconds", [0, 12345])
def test_a_version_changes_though_the_modification_time_is_set_back(store: Store, root: Path, seconds: int) -> None:
    """Same size, same inode, same mtime: the change time gives it away."""
    put(store, "e/x", b"abc")
    path = root / "e" / "x"
    os.utime(path, (seconds, seconds))
    before = StoreContract.version(store, "e/x")
    time.sleep(0.02)  # the kernel's clock moves in steps
    with open(path, "r+b") as file:
        file.write(b"abd")
    os.utime(path, (seconds, seconds))
    assert path.stat().st_mtime == seconds
    assert StoreContract.version(store, "e/x") != before


@pytest.mark.parametrize("tool", ["copy", "truncate", "append", "chmod"])
def test_a_version_changes_with_whatever_touches_the_file(store: Store, root: Path, tool: str) -> None:
    """A false alarm costs a reading; a missed change would cost trust."""
    put(store, "e/x", b"abc")
    before = StoreContract.version(store, "e/x")
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
    assert StoreContract.version(store, "e/x") != before


# --- claims, at the instants between system calls ---


@pytest.mark.parametrize(("call", "replace"), [("link", False), ("replace", True)])
def test_a_rival_does_not_take_over_a_file_that_is_being_published(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, replace: bool
) -> None:
    """The claim lasts until the rename is done: a writer of the same name who comes right then is refused."""
    real, refused = getattr(os, call), []

    def rename(source: Any, target: Any, **options: Any) -> None:
        if os.fspath(target).endswith("/x"):
            for client in (store, open_store(store.url)):
                with pytest.raises(StoreUnavailableError if replace else CheckpointExistsError):
                    client.open_write("e/x", replace=replace)
                refused.append(client)
        real(source, target, **options)

    monkeypatch.setattr(os, call, rename)
    put(store, "e/x", b"mine", replace=replace)
    assert len(refused) == 2
    assert get(store, "e/x") == b"mine"


def test_racing_writers_of_one_name_never_disturb_each_other(store: Store, root: Path) -> None:
    """Who has the claim publishes; who has not is refused; no other outcome in thousands of meetings."""
    stop, surprises = threading.Event(), []
    (root / "e").mkdir(parents=True)

    def write() -> None:
        client = open_store(root)
        while not stop.is_set():
            try:
                put(client, "e/x", b"whole", replace=True)
            except StoreUnavailableError:
                continue
            except BaseException as error:
                surprises.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    stop.set()
    for thread in threads:
        thread.join()
    assert surprises == []
    assert get(store, "e/x") == b"whole"
    assert names(store, "e") == ["x"]


def test_a_file_that_vanished_under_its_writer_is_an_error_of_the_store(store: Store, root: Path) -> None:
    """Someone removed the folder during a save: that is a failure of the store, not a missing checkpoint."""
    for replace in (False, True):
        pending = store.open_write("e/x", replace=replace)
        pending.write(b"abc")
        shutil.rmtree(root / "e")
        with pytest.raises(StoreError):
            pending.publish()
        pending.discard()


def test_bytes_that_the_file_system_lost_are_noticed(store: Store, root: Path) -> None:
    """The size is asked for before a file is called durable."""
    pending = store.open_write("e/x")
    pending.write(b"0123456789")
    os.truncate(root / "e" / ".x.ckpt-tmp", 4)
    with pytest.raises(StoreError, match="4 of 10"):
        pending.sync()
    pending.discard()


def test_a_short_write_is_completed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may take fewer bytes than offered; all of them arrive."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    put(store, "e/x", b"0123456789")
    assert get(store, "e/x") == b"0123456789"


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_a_file_system_without_hard_links_works(store: Store, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """FAT and some network file systems have none: a rename takes its place, and a taken name is still refused."""

    def no_links(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_links)
    put(store, "e/x", b"first")
    pending = store.open_write("e/y")
    pending.write(b"second")
    Path(store.location("e/y")).write_bytes(b"foreign")
    with pytest.raises(CheckpointExistsError):
        pending.publish()
    pending.discard()
    assert (get(store, "e/x"), get(store, "e/y")) == (b"first", b"foreign")
    assert names(store, "e") == ["x", "y"]


# --- errors ---

_EXPECTED = {
    errno.ENOSPC: StorageFullError,
    errno.EDQUOT: StorageFullError,
    errno.EFBIG: StorageFullError,
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
    pending = store.open_write("e/x")
    pending.write(b"abc")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _failing(code))
        with pytest.raises(StoreError) as raised:
            pending.sync()
    pending.discard()
    assert type(raised.value) is expected
    assert os.strerror(code) in str(raised.value)
    assert store.location("e/x") in str(raised.value)
    assert isinstance(raised.value.__cause__, OSError)
    assert names(store, "e") == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC, errno.EMFILE])
@pytest.mark.parametrize(
    ("call", "operation"),
    [
        ("scandir", lambda store: store.entries("e")),
        ("lstat", lambda store: store.stat("e/x")),
        ("open", lambda store: store.open_write("e/new")),
        ("mkdir", lambda store: store.open_write("f/new")),
        ("write", lambda store: put(store, "e/new", b"1")),
        ("fstat", lambda store: put(store, "e/new", b"1")),
        ("fsync", lambda store: put(store, "e/new", b"1")),
        ("link", lambda store: put(store, "e/new", b"1")),
        ("replace", lambda store: put(store, "e/x", b"1", replace=True)),
        ("unlink", lambda store: store.delete("e/x")),
        ("fsync", lambda store: store.sync("e")),
        ("open", lambda store: store.sync("e")),
        ("open", lambda store: store.lock("e").__enter__()),
    ],
)
def test_no_operation_lets_a_bare_error_out(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, operation: Callable[[Store], object], code: int
) -> None:
    """Every system call an operation makes may fail; what comes out is an error of this library."""
    put(store, "e/x", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, _failing(code))
        with pytest.raises(_EXPECTED[code]):
            operation(store)
    assert get(store, "e/x") == b"old"
    put(store, "e/afterwards", b"works")


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


def test_a_file_system_without_locks_is_refused_and_nothing_stays(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks no leftover could be told from a file in use; the attempt ends, in an error of ours."""
    (root / "e").mkdir(parents=True)
    for code in (errno.ENOLCK, errno.EOPNOTSUPP):
        with monkeypatch.context() as patched:
            patched.setattr(fcntl, "flock", _failing(code))
            with pytest.raises(StoreError):
                store.open_write("e/x")
        assert names(store, "e") == []
        put(store, f"e/{code}", b"works")
        store.delete(f"e/{code}")


def test_failures_leave_no_descriptor_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run that retries for days must not run out of files."""
    put(store, "e/x", b"1")
    before = len(os.listdir("/proc/self/fd"))
    for call in ("fsync", "link", "write"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, _failing(errno.EIO))
            for _ in range(5):
                with pytest.raises(StoreError):
                    put(store, "e/new", b"1")
    for _ in range(5):
        with pytest.raises(CheckpointExistsError):
            store.open_write("e/x")
        with store.lock("e"):
            store.sweep("e")
    assert len(os.listdir("/proc/self/fd")) == before


def test_running_out_of_descriptors_is_transient(store: Store) -> None:
    """Trying again later may help, and does."""
    put(store, "e/x", b"1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for operation in (lambda: store.open_write("e/y"), lambda: store.open_read("e/x"), lambda: store.entries("e")):
            with pytest.raises(StoreUnavailableError):
                operation()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    put(store, "e/y", b"2")
    assert names(store, "e") == ["x", "y"]


def test_a_file_size_limit_is_a_full_store(store: Store) -> None:
    """Seen at the write, long before the commit, and nothing is left behind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        pending = store.open_write("e/x")
        with pytest.raises(StorageFullError):
            pending.write(bytes(20_000))
        pending.discard()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(store, "e") == []


_FILL = """
import sys
from ckpt_lib.errors import StorageFullError
from ckpt_lib.store import open_store
store = open_store(sys.argv[1])
def names(): return [entry.name for entry in store.entries("e")]
refused = 0
for size in range(8_000, 200_000, 8_000):
    pending = store.open_write(f"e/{size}")
    try:
        pending.write(bytes(size)); pending.sync(); pending.publish()
    except StorageFullError:
        refused += 1
    finally:
        pending.discard()
    assert all(not name.startswith(".") for name in names()), names()
    for name in names():
        if refused: store.delete(f"e/{name}")
print(refused)
"""


def test_a_full_disk_is_a_full_store(tmp_path: Path) -> None:
    """A real file system of 100 kB runs full: the right error each time, no residue, and deleting helps."""
    script = f"mount -t tmpfs -o size=100k tmpfs {tmp_path} && exec {sys.executable} -c '{_FILL}' {tmp_path}/store"
    if not shutil.which("unshare") or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 5


@contextmanager
def _unprivileged() -> Iterator[Path]:
    """A folder that may not be written, as a user whom that stops."""
    folder = Path(tempfile.mkdtemp())
    store = open_store(folder)
    put(store, "e/x", b"old")
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
        lambda store: store.open_write("e/new"),
        lambda store: store.open_write("e/x", replace=True),
        lambda store: store.open_write("f/new"),
        lambda store: store.delete("e/x"),
        lambda store: store.lock("e").__enter__(),
        lambda store: store.lock("f").__enter__(),
    ],
)
def test_a_read_only_folder_refuses_every_change(operation: Callable[[Store], object]) -> None:
    """With the permission error of ours, and reading goes on."""
    with _unprivileged() as folder:
        store = LocalStore(str(folder))
        with pytest.raises(StorePermissionError):
            operation(store)
        assert get(store, "e/x") == b"old"
        assert names(store, "e") == ["x"]
