"""Local stores of other operating systems, and of file systems that can do less."""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_lib.errors import (
    InvalidNameError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.store import ABSENT, Store, open_store
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.testing.store_contract import get, keys, upload
from tests.store.helpers import temporary_files
from tests.store.systems import MacLike, Watched, WindowsLike, WithoutLinks, WithoutLocks, WithoutTimes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


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


def test_nothing_of_ours_runs_when_a_locked_file_is_freed(root: Path) -> None:
    """Python forgets a Ctrl-C that arrives in the callback of a weak reference."""
    system = System()
    root.mkdir()
    with system.create(root / "file") as file:
        assert system.try_lock(file)
        assert [reference.__callback__ for reference in weakref.getweakrefs(file)] == [None]
