"""The bytes and the versions of what a local store holds, and the errors of its disk."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import time
from pathlib import Path

import pytest

from ckpt_lib.errors import (
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.store import Store, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.testing.store_contract import get, keys, upload, version_of
from tests.store.helpers import temporary_files
from tests.store.systems import Failing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


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
