"""A local store, and what else lies in its folder: links, devices, disks that vanish or are full."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckpt_lib.errors import (
    NotAStoreError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.store import ABSENT, Store, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.testing.store_contract import get, keys, upload, version_of
from tests.store.helpers import run_python, temporary_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


def test_reading_creates_nothing(store: Store, root: Path) -> None:
    """Neither the root, nor a lock, nor anything that a reader without rights would miss."""
    assert (keys(store), keys(store, "e", recursive=True), store.stat("e/x")) == ([], [], None)
    with pytest.raises(FileNotFoundError):
        store.open_read("e/x")
    store.delete("e/x")
    assert store.free_bytes()
    assert not root.exists()


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
            with pytest.raises(NotAStoreError, match="does not exist"):
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
    for name in temporary_files(root / "e"):
        (root / "e" / ".ckpt-tmp" / name).unlink()
    with pytest.raises(StoreUnavailableError):
        begun.commit()
    store.put("e/x", b"works")


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_record_can_be_written_on_a_disk_that_is_full_to_the_last_byte(tmp_path: Path) -> None:
    """By room that the first upload sets aside, and no new record takes; a disk that has little gets no reserve."""
    code = """
import sys
from contextlib import suppress
from pathlib import Path
from tests.torture.namespaces import enter_namespace, tmpfs
enter_namespace()
from ckpt_lib.errors import StorageFullError
from ckpt_lib.store.base import ABSENT
from ckpt_lib.store.local import LocalStore
from ckpt_lib.testing.store_contract import get, upload
disk = Path(sys.argv[1])
disk.mkdir()
with tmpfs(disk, 2 * 2**20):
    store = LocalStore(str(disk))
    version = store.put("e/x", b"old").version
    upload(store, "e/payload", bytes(10_000))
    with (disk / "other").open("wb", buffering=0) as other, suppress(OSError):
        while other.write(bytes(4096)):
            pass
    with suppress(StorageFullError):
        store.put("e/y", bytes(9_000), if_version=ABSENT)
        print("a new record took the room")
    store.put("e/x", bytes(9_000), if_version=version)
    assert get(store, "e/x") == bytes(9_000)
    try:
        store.put("e/y", bytes(2**20))
    except StorageFullError:
        print("full")
"""
    assert run_python(code, tmp_path / "disk") == "full\n"
