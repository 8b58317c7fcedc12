"""What only a local store does: links, disks that vanish, other operating systems, locks and forks, full disks."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckpt_lib.errors import (
    InvalidNameError,
    NotAStoreError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.store import ABSENT, Store, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.store.local.temporary import LEFT_AFTER_SECONDS
from ckpt_lib.testing.store_contract import get, keys, upload, version_of
from tests.store.children import Fork, in_fork, run_python
from tests.store.systems import Failing, MacLike, Watched, WindowsLike, WithoutLinks, WithoutLocks, WithoutTimes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in (folder / ".ckpt-tmp").glob("*") if path.name != "lock"]


def test_reading_creates_nothing(store: Store, root: Path) -> None:
    """Neither the root, nor a lock, nor anything that a reader without rights would miss."""
    assert (keys(store), keys(store, "e", recursive=True), store.stat("e/x")) == ([], [], None)
    with pytest.raises(FileNotFoundError):
        store.open_read("e/x")
    store.delete("e/x")
    assert store.free_bytes()
    assert not root.exists()


# --- what else lies in a folder ---


def test_links_and_devices_are_not_seen(store: Store, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only regular files and folders are: a planted link cannot make a foreign file look like a checkpoint."""
    store.put("e/x", b"1")
    folder = root / "e"
    planted = ("link", "dangling", "up", "fifo", "socket")
    (folder / "link").symlink_to(folder / "x")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "fifo")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
        assert keys(store, "e") == keys(store, "e", recursive=True) == ["e/x"]
        for name in planted:
            assert store.stat(f"e/{name}") is None
            with pytest.raises(FileNotFoundError):
                store.open_read(f"e/{name}")
    assert {"x", *planted} <= set(os.listdir(folder))


def test_foreign_names_that_are_no_keys_are_not_seen(store: Store, root: Path) -> None:
    """What no operation could ask for is in no listing."""
    store.put("e/x", b"1")
    for name in (b"a\\b", b"a\nb", b"\xff"):
        (root / "e" / os.fsdecode(name)).write_bytes(b"1")
    assert keys(store, "e") == ["e/x"]


def test_a_link_in_the_place_of_a_folder_is_not_followed(store: Store, root: Path) -> None:
    """Below the root; the root itself may be one, as people arrange their disks."""
    foreign = root.parent / "foreign"
    foreign.mkdir()
    (foreign / "x").write_bytes(b"precious")
    root.mkdir()
    (root / "e").symlink_to(foreign)
    operations: list[Callable[[], object]] = [
        lambda: store.list("e"),
        lambda: store.stat("e/x"),
        lambda: store.open_read("e/x"),
        lambda: store.open_write("e/x"),
        lambda: store.open_write("e/deeper/x"),
        lambda: store.put("e/x", b"1"),
        lambda: store.delete("e/x"),
    ]
    for operation in operations:
        with pytest.raises(NotAStoreError):
            operation()
    assert keys(store) == []
    assert os.listdir(foreign) == ["x"]
    (root.parent / "root").symlink_to(foreign)
    assert get(open_store(root.parent / "root"), "x") == b"precious"


@pytest.mark.parametrize("name", [".ckpt-tmp", "lock"])
def test_a_link_in_the_place_of_the_stores_own_is_not_followed(store: Store, root: Path, name: str) -> None:
    """Neither that of its folder nor that of its lock: no foreign file is written."""
    victim = root.parent / "victim"
    (root / "e").mkdir(parents=True)
    if name == "lock":
        (root / "e" / ".ckpt-tmp").mkdir()
        victim.write_bytes(b"precious")
        (root / "e" / ".ckpt-tmp" / "lock").symlink_to(victim)
    else:
        victim.mkdir()
        (root / "e" / ".ckpt-tmp").symlink_to(victim)
    for operation in (store.put, lambda key, data: upload(store, key, data)):
        with pytest.raises((NotAStoreError, StoreError)):
            operation("e/x", b"1")
    assert keys(store, "e") == []
    assert (victim.read_bytes() == b"precious") if name == "lock" else (os.listdir(victim) == [])


def test_a_link_in_the_place_of_a_key_is_replaced_not_followed(store: Store, root: Path) -> None:
    """The foreign file it points to stays as it is; on a condition, the name is taken."""
    victim = root.parent / "victim"
    store.put("e/other", b"1")
    for is_there in (True, False):
        if is_there:
            victim.write_bytes(b"precious")
        else:
            victim.unlink()
        for write in (store.put, lambda key, data: upload(store, key, data)):
            (root / "e" / "x").unlink(missing_ok=True)
            (root / "e" / "x").symlink_to(victim)
            with pytest.raises(VersionConflictError):
                store.put("e/x", b"new", if_version=ABSENT)
            write("e/x", b"new")
            assert get(store, "e/x") == b"new"
            assert not is_there or victim.read_bytes() == b"precious"
            assert victim.exists() is is_there


def test_a_folder_in_the_place_of_a_key_is_not_changed(store: Store, root: Path) -> None:
    """Every change of it is an error of ours; for readers there is no such object."""
    (root / "e" / "x").mkdir(parents=True)
    (root / "e" / "x" / "inner").write_bytes(b"1")
    assert store.stat("e/x") is None
    with pytest.raises(FileNotFoundError):
        store.open_read("e/x")
    for operation in (lambda: store.put("e/x", b"2"), lambda: upload(store, "e/x", b"2"), lambda: store.delete("e/x")):
        with pytest.raises(StoreError):
            operation()
    assert os.listdir(root / "e" / "x") == ["inner"]
    assert temporary_files(root / "e") == []


@pytest.mark.parametrize("place", ["dangling", "dangling/below", "loop", "file", "file/below"])
def test_a_store_that_cannot_be_there_is_no_empty_store(tmp_path: Path, place: str) -> None:
    """A link that leads nowhere, as to an unmounted disk, and a file: every call says so, and nothing is made."""
    (tmp_path / "dangling").symlink_to(tmp_path / "unmounted")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("mine")
    store = open_store(tmp_path / place)
    operations: list[Callable[[], object]] = [
        lambda: store.list(""),
        lambda: store.list("e", recursive=True),
        lambda: store.stat("e/x"),
        lambda: store.open_read("e/x"),
        lambda: store.open_write("e/x"),
        lambda: store.put("e/x", b"1", if_version=ABSENT),
        lambda: store.delete("e/x"),
    ]
    for operation in operations:
        with pytest.raises(NotAStoreError):
            operation()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "file", "loop"]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_disk_that_is_gone_behind_a_link_is_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    """Whether it was there before or not: one situation, one class."""
    disk = Path(tempfile.mkdtemp(dir="/dev/shm"))
    (tmp_path / "link").symlink_to(disk)
    store = open_store(tmp_path / "link")
    store.put("e/x", b"1")
    shutil.rmtree(disk)
    for one in (store, open_store(tmp_path / "link")):
        for operation in (one.list, lambda key, one=one: one.open_write(f"{key}/x")):
            with pytest.raises(NotAStoreError, match="leads nowhere"):
                operation("e")


_UNMOUNTED = """
import os, sys
from pathlib import Path
from tests.torture.namespaces import enter_namespace, mounted, read_only, tmpfs
enter_namespace()
from ckpt_lib.errors import StorePermissionError, StoreUnavailableError
from ckpt_lib.store import open_store

base = Path(sys.argv[1])
disk, device = base / "disk", base / "device"
refused = []
with tmpfs(device, 2**20):
    store = open_store(disk / "store")
    with mounted(device, disk):
        store.put("e/x", b"1")
        with read_only(device):
            pass
    for operation in (lambda: store.list("e"), lambda: store.put("e/x", b"2"), lambda: store.open_write("e/x")):
        try:
            operation()
        except StoreUnavailableError as error:
            refused.append("Mount it again" in str(error))
    assert os.listdir(disk) == []
    with mounted(device, disk):
        store.put("e/y", b"2")
        print(refused, [entry.key for entry in store.list("e")])
with tmpfs(disk, 2**20):
    store = open_store(disk / "store")
    store.put("e/x", b"1")
    with read_only(disk):
        assert store.stat("e/x") and store.open_read("e/x").read_at(0, 1) == b"1"
        for operation in (lambda: store.put("e/x", b"2"), lambda: store.open_write("e/x"), lambda: store.delete("e/x")):
            for one in (store, open_store(disk / "store")):
                try:
                    operation()
                except StorePermissionError:
                    print("read-only")
    store.put("e/x", b"2")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_disk_that_is_unmounted_or_read_only(tmp_path: Path) -> None:
    """Nothing is written to the empty folder below, where it would be hidden; what is read-only can be read."""
    assert run_python(_UNMOUNTED, tmp_path) == "[True, True, True] ['e/x', 'e/y']\n" + "read-only\n" * 6


_FULL = """
import sys
from pathlib import Path
from tests.torture.namespaces import enter_namespace, tmpfs
enter_namespace()
from ckpt_lib.errors import StorageFullError
from ckpt_lib.store import open_store
from ckpt_lib.testing.store_contract import keys, upload

with tmpfs(Path(sys.argv[1]), 100_000) as disk:
    store = open_store(disk / "store")
    refused, kept = 0, []
    for size in range(8_000, 200_000, 4_000):
        write = store.put if size % 8_000 else lambda key, data: upload(store, key, data)
        try:
            write(f"e/{size}", bytes(size))
            kept.append(f"e/{size}")
        except StorageFullError:
            refused += 1
        assert keys(store, recursive=True) == sorted(kept)
        assert [path.name for path in (disk / "store" / "e" / ".ckpt-tmp").iterdir()] == ["lock"]
        while refused and kept:
            key = kept.pop()
            store.delete(key, if_version=store.stat(key).version if size % 8_000 else None)
    upload(store, "e/last", bytes(40_000))
    print(refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_full_disk_is_a_full_store(tmp_path: Path) -> None:
    """A real file system of 100 kB runs full: the right error each time, no residue, and deleting helps."""
    assert int(run_python(_FULL, tmp_path / "disk")) > 5


def test_a_file_size_limit_is_no_full_store(store: Store, root: Path) -> None:
    """Freeing space would not help. It is seen at the write, and nothing is left behind."""
    store.put("e/x", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        for write in (store.put, lambda key, data: upload(store, key, data)):
            with pytest.raises(StoreError, match="ulimit -f") as refused:
                write("e/x", bytes(20_000))
            assert not isinstance(refused.value, StorageFullError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert temporary_files(root / "e") == []
    assert get(store, "e/x") == b"old"


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that may not be written, as a user whom that stops."""
    folder = Path(tempfile.mkdtemp())
    open_store(folder).put("e/x", b"old")
    for path in (folder, folder / "e", folder / "e" / ".ckpt-tmp"):
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in (folder, folder / "e", folder / "e" / ".ckpt-tmp"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_folder_without_rights_refuses_every_change() -> None:
    """With the permission error of ours, and reading goes on."""
    with unprivileged() as folder:
        store = LocalStore(str(folder))
        operations: list[Callable[[], object]] = [
            lambda: store.open_write("e/x"),
            lambda: store.open_write("f/x"),
            lambda: store.put("e/x", b"new"),
            lambda: store.put("e/y", b"new", if_version=ABSENT),
            lambda: store.put("e/x", b"new", if_version=version_of(store, "e/x")),
            lambda: store.delete("e/x"),
            lambda: store.delete("e/x", if_version=version_of(store, "e/x")),
        ]
        for operation in operations:
            with pytest.raises(StorePermissionError):
                operation()
        assert get(store, "e/x") == b"old"
        assert keys(store, recursive=True) == ["e/x"]
        assert sorted(os.listdir(folder)) == ["e"]


def test_a_folder_that_vanished_under_its_writer_is_an_error_of_the_store(store: Store, root: Path) -> None:
    """Someone removed the folder during a save: that is a failure of the store, not a missing checkpoint."""
    begun = store.open_write("e/x")
    begun.write(b"abc")
    shutil.rmtree(root / "e")
    with pytest.raises(StoreUnavailableError):
        begun.commit()
    assert keys(store, recursive=True) == []
    begun = store.open_write("e/x")
    for path in temporary_files(root / "e"):
        path.unlink()
    with pytest.raises(StoreUnavailableError):
        begun.commit()
    store.put("e/x", b"works")


# --- bytes ---


def test_a_short_write_is_completed(root: Path) -> None:
    """The kernel may take fewer bytes than offered; all of them arrive."""

    class Short(System):
        def write(self, file: object, data: memoryview) -> int:
            return super().write(file, data[:3])  # type: ignore[arg-type]

    store = LocalStore(str(root), system=Short())
    store.put("e/x", b"0123456789")
    upload(store, "e/y", b"0123456789")
    assert get(store, "e/x") == get(store, "e/y") == b"0123456789"


def test_bytes_that_the_file_system_lost_are_noticed(root: Path) -> None:
    """The size is asked for before an object gets its key."""

    class Lossy(System):
        def write(self, file: object, data: memoryview) -> int:
            return super().write(file, data[:-1]) + 1  # type: ignore[arg-type]

    open_store(root).put("e/x", b"old")
    store = LocalStore(str(root), system=Lossy())
    for write in (store.put, lambda key, data: upload(store, key, data)):
        with pytest.raises(StoreError, match="9 of 10"):
            write("e/x", b"0123456789")
    assert get(store, "e/x") == b"old"


def test_reading_bytes_that_cannot_be_read_is_an_error_of_the_store() -> None:
    """The error of a disk surfaces while reading, long after opening."""
    with open_store("/proc/self").open_read("mem") as reader, pytest.raises(StoreError):
        reader.read_at(0, 10)


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


@pytest.mark.parametrize(("code", "expected"), _EXPECTED.items(), ids=[errno.errorcode[code] for code in _EXPECTED])
def test_each_reason_has_its_error(root: Path, code: int, expected: type[StoreError]) -> None:
    """What a person can do about it decides the class; the reason and the place are in the message."""
    store = LocalStore(str(root), system=Failing(code, only="fsync"))
    for write in (store.put, lambda key, data: upload(store, key, data)):
        with pytest.raises(StoreError) as raised:
            write("e/x", b"1")
        assert type(raised.value) is expected
        assert os.strerror(code) in str(raised.value)
        assert str(root / "e" / "x") in str(raised.value)
        assert isinstance(raised.value.__cause__, OSError)
    assert keys(store, "e") == []
    assert temporary_files(root / "e") == []


def test_running_out_of_descriptors_is_transient(store: Store) -> None:
    """Trying again later may help, and does."""
    store.put("e/x", b"1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    held: list[int] = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for operation in (lambda: store.put("e/x", b"2"), lambda: get(store, "e/x"), lambda: store.open_write("e/y")):
            with pytest.raises(StoreUnavailableError):
                operation()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert get(store, "e/x") == b"1"
    store.put("e/x", b"2")


# --- versions ---


def test_versions_grow_though_the_clock_stands_still_or_is_set_back(root: Path) -> None:
    """Every write of a folder is dated after the one before, whatever numbers of files are used again."""

    class Slow(System):
        def fsync(self, file: object) -> None:
            super().fsync(file)  # type: ignore[arg-type]
            os.utime(file.fileno(), ns=(10**18, 10**18))  # type: ignore[attr-defined]

    store = LocalStore(str(root), system=Slow())
    times = []
    for number in range(20):
        key = f"e/{number % 2}"
        times.append(int(store.put(key, b"same size").version.partition("-")[0], 16))
        if number % 3 == 0:
            store.delete(key)
    assert times == sorted(set(times))
    shutil.rmtree(root / "e" / ".ckpt-tmp")  # the record of it is lost: what is there is replaced all the same
    version = version_of(store, "e/1")
    assert store.put("e/1", b"same size").version != version


@pytest.mark.parametrize("tool", ["copy", "truncate", "append", "write"])
def test_a_version_changes_with_whatever_writes_the_file(store: Store, root: Path, tool: str) -> None:
    """Also by other programs: a missed change would cost trust."""
    before = store.put("e/x", b"abc").version
    path = root / "e" / "x"
    time.sleep(0.02)  # the kernel's clock moves in steps
    if tool == "copy":
        shutil.copy2(path, root / "e" / "y")
        (root / "e" / "y").replace(path)
    elif tool == "truncate":
        os.truncate(path, 2)
    else:
        with path.open("ab" if tool == "append" else "r+b") as file:
            file.write(b"d")
    assert version_of(store, "e/x") != before


# --- other systems ---


@pytest.mark.parametrize("name", ["con", "NUL.json", "com1.pt", "ends.", "ends ", "a:b", "a*b"])
def test_reserved_names_are_refused_on_windows(root: Path, name: str) -> None:
    """Before anything is written, and there alone."""
    store = LocalStore(str(root), system=WindowsLike())
    for key in (name, f"e/{name}", f"{name}/x"):
        for operation in (store.open_write, lambda key: store.put(key, b"1")):
            with pytest.raises(InvalidNameError, match="this system"):
                operation(key)
    assert not root.exists()
    open_store(root).put(f"e/{name}", b"1")


def test_on_windows_an_open_file_is_waited_for_and_left_as_it_is(root: Path) -> None:
    """Who closes it in time is not noticed; who does not costs the writer a typed error, and nothing is left."""
    store = LocalStore(str(root), system=WindowsLike())
    first = store.put("e/x", b"old")
    with store.open_read("e/x") as reader:
        assert reader.fileno() is None
        changes: list[Callable[[], object]] = [
            lambda: store.put("e/x", b"new"),
            lambda: store.put("e/x", b"new", if_version=first.version),
            lambda: upload(store, "e/x", b"new"),
            lambda: store.delete("e/x"),
            lambda: store.delete("e/x", if_version=first.version),
        ]
        for change in changes:
            with pytest.raises(StoreUnavailableError, match="has the file open"):
                change()
        assert store.stat("e/x") == first
    assert temporary_files(root / "e") == []
    slow = store.open_read("e/x")
    thread = threading.Timer(0.1, slow.close)
    thread.start()
    store.put("e/x", b"new")
    thread.join()
    assert get(store, "e/x") == b"new"


def test_names_that_differ_in_case_only_are_kept_apart(root: Path) -> None:
    """Where they lead to one file, one of them is there, and the other is refused rather than mixed up with it."""
    store = LocalStore(str(root), system=MacLike())
    first = store.put("e/X", b"1")
    assert store.stat("e/x") is None
    with pytest.raises(FileNotFoundError):
        store.open_read("e/x")
    writes: list[Callable[[], object]] = [
        lambda: store.put("e/x", b"2"),
        lambda: store.put("e/x", b"2", if_version=ABSENT),
        lambda: store.put("e/x", b"2", if_version=first.version),
        lambda: upload(store, "e/x", b"2"),
    ]
    for write in writes:
        with pytest.raises(VersionConflictError):
            write()
    store.delete("e/x")
    store.delete("e/x", if_version=first.version)
    assert store.stat("e/X") == first
    assert keys(store, "e") == ["e/X"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_links_a_free_name_is_given_under_the_lock(root: Path, code: int) -> None:
    """However the system says so; a name that another program has taken is refused, and its file left alone."""
    system = WithoutLinks()
    system.code = code
    store = LocalStore(str(root), system=system)
    assert store.capabilities.create_if_absent
    store.put("e/x", b"1", if_version=ABSENT)
    (root / "e" / "y").write_bytes(b"foreign")
    (root / "e" / "z").symlink_to("nowhere")
    for key in ("e/x", "e/y", "e/z"):
        with pytest.raises(VersionConflictError):
            store.put(key, b"2", if_version=ABSENT)
    assert (get(store, "e/x"), get(store, "e/y")) == (b"1", b"foreign")


def test_what_a_file_system_cannot_do_is_no_capability(root: Path) -> None:
    """Each lack takes away what depends on it; and asking leaves nothing behind, before the root is there or after."""

    class Neither(WithoutLinks, WithoutLocks):
        pass

    class SaysYes(System):
        def try_lock(self, file: object) -> bool:
            return True

    expected = {
        System: (True, True, True),
        WithoutLinks: (True, True, True),
        WithoutLocks: (True, False, False),
        SaysYes: (True, False, False),
        WithoutTimes: (True, False, False),
        Neither: (False, False, False),
    }
    for made in (False, True):
        if made:
            root.mkdir()
        for kind, flags in expected.items():
            found = LocalStore(str(root), system=kind()).capabilities
            assert (found.create_if_absent, found.replace_if_version, found.delete_if_version) == flags, kind
        assert [path.name for path in root.parent.rglob("*")] == (["store"] if made else [])


def test_a_failing_probe_proves_nothing(root: Path) -> None:
    """A disk that is full, or failed for a moment, is not one that can do less."""
    root.mkdir()
    system = Watched()
    system.armed = True
    store = LocalStore(str(root), system=system)

    def fail(name: str) -> None:
        if name in ("try_lock", "link", "set_modified"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    system.on_call = fail
    assert store.capabilities.replace_if_version
    system.on_call = lambda _: None
    assert store.capabilities.replace_if_version


# --- what dead processes leave, and what living ones hold ---


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
        for path in temporary_files(root / "e"):
            os.utime(path, (0, 0))
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
    assert [path.name for path in temporary_files(root / "e")] == ["note.txt"]


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
    assert [path.name for path in temporary_files(root / "e")] == ["young.tmp"]


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
            assert time.monotonic() - began < 5
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
            assert in_fork(lambda number=number: store.put(f"e/fork {number}", b"1", if_version=ABSENT)) == 0
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
