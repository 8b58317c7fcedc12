"""The version of a folder: the same for as long as nothing happens in it, and another one after each change."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from ckpt_lib.errors import InvalidNameError, VersionConflictError
from ckpt_lib.store import ABSENT, Store
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.folder_lock import FolderLock, open_lock
from ckpt_lib.store.local.system import System
from ckpt_lib.store.memory import MemoryStore
from tests.store.systems import WithoutLocks

_numbers = count()


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(str(tmp_path)) if request.param == "local" else MemoryStore(f"versions-{next(_numbers)}")


def upload(store: Store, key: str) -> None:
    begun = store.open_write(key)
    begun.write(b"1")
    begun.commit()


def replace(store: Store, key: str) -> None:
    entry = store.stat(key)
    assert entry is not None
    store.put(key, b"2", if_version=entry.version)


CHANGES: list[Callable[[Store], object]] = [
    lambda store: store.put("e/x", b"1"),
    lambda store: store.put("e/y", b"1", if_version=ABSENT),
    lambda store: store.put("e/clock", b"", durable=False),
    lambda store: upload(store, "e/z"),
    lambda store: replace(store, "e/x"),
    lambda store: store.delete("e/z"),
]


def test_each_change_gives_the_folder_another_version(store: Store) -> None:
    """Writes of every kind, and deletions; none of them twice."""
    found: list[str | None] = []
    for _ in range(3):
        for change in CHANGES:
            if change is CHANGES[1]:
                store.delete("e/y")
            change(store)
            found.append(store.folder_version("e"))
    assert None not in found
    assert len(set(found)) == len(found)


def test_it_stays_while_nothing_happens(store: Store) -> None:
    """Reading, listing and asking for it change nothing."""
    store.put("e/x", b"1")
    before = store.folder_version("e")
    store.list("e")
    store.stat("e/x")
    store.open_read("e/x").close()
    assert store.folder_version("e") == before


def test_a_bad_name_is_refused(store: Store) -> None:
    """As by every other question."""
    with pytest.raises(InvalidNameError):
        store.folder_version("../e")


def test_a_write_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """The date of the folder is that of before, as on a file system whose clock is coarse."""
    store = LocalStore(str(tmp_path))
    store.put("e/x", b"1")
    before, date = store.folder_version("e"), (tmp_path / "e").stat().st_mtime_ns
    store.put("e/x", b"2")
    os.utime(tmp_path / "e", ns=(date, date))
    assert store.folder_version("e") not in (before, None)


def test_a_write_that_was_refused_may_change_it(tmp_path: Path) -> None:
    """It had its date already; the next question lists once more than it must."""
    store = LocalStore(str(tmp_path))
    store.put("e/x", b"1")
    with pytest.raises(VersionConflictError):
        store.put("e/x", b"2", if_version=ABSENT)
    assert store.folder_version("e") == store.folder_version("e")


def test_there_is_none_while_somebody_writes(tmp_path: Path) -> None:
    """A write that has its date, and not its name yet, would be missed."""
    store = LocalStore(str(tmp_path))
    store.put("e/x", b"1")
    with open_lock(tmp_path / "e" / OWN_FOLDER, System()) as file, FolderLock(file, System(), 1.0):
        assert store.folder_version("e") is None
    assert store.folder_version("e") is not None


def test_there_is_none_where_nothing_was_written(tmp_path: Path) -> None:
    """No folder, a folder of somebody else, and a file system without locks; none of them is written to."""
    (tmp_path / "theirs").mkdir()
    store = LocalStore(str(tmp_path))
    assert store.folder_version("none") is None
    assert store.folder_version("theirs") is None
    assert list((tmp_path / "theirs").iterdir()) == []
    without = LocalStore(str(tmp_path / "without"), system=WithoutLocks())
    without.put("e/x", b"1")
    assert without.folder_version("e") is None
