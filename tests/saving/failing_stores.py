"""Stores that fail, what is stranded then, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    NotAStoreError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.events import Event
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.saving.fallback import Fallback
from ckpt_lib.store import Condition, Entry
from ckpt_lib.store.local import LocalStore
from tests.helpers import is_bookkeeping, save, snapshot


def files(folder: Path) -> dict[str, str]:
    """A snapshot without what the store keeps for itself, and without what became of ids."""
    return {name: digest for name, digest in snapshot(folder).items() if not is_bookkeeping(name)}


def kinds(seen: list[Event]) -> list[str]:
    """The kinds of events about failures, and what comes of them."""
    expected = {"checkpoint.saved", "checkpoint.best_changed", "checkpoint.backed_up", "checkpoint.deleted"}
    return [event.kind for event in seen if event.kind not in expected]


def store_of(manager: CheckpointManager) -> LocalStore:
    store = manager._locations.home.store
    assert isinstance(store, LocalStore)
    return store


@contextmanager
def failing(manager: CheckpointManager, error: Exception, *methods: str, times: int = 10**6) -> Iterator[None]:
    """The manager's store fails so often, in those methods or in all that ask or change something."""
    left = times

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        nonlocal left
        if left <= 0:
            return None
        left -= 1
        raise error

    store = store_of(manager)
    originals = {
        name: getattr(store, name) for name in methods or ("list", "stat", "open_read", "open_write", "put", "delete")
    }

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            fail()
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name, original in originals.items():
            patch.setattr(store, name, wrapped(original))
        yield


EIO = StoreError("the store failed: Input/output error")
AWAY = StoreUnavailableError("the store did not answer")
STORE_FAILURES = [
    EIO,
    AWAY,
    StorageFullError("the store is full"),
    StorePermissionError("the store refuses access"),
    VersionConflictError("this process stood still"),
    OSError(107, "Transport endpoint is not connected"),
    NotAStoreError("a file or a link is where a folder should be"),
]


def committing(store: LocalStore, error: Exception) -> Callable[..., Entry]:
    """A ``put`` that makes a checkpoint live and then raises an error."""
    original = store.put

    def put(key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        entry = original(key, data, if_version=if_version)
        if b'"state": "live"' in data:
            raise error
        return entry

    return put


@contextmanager
def failing_in(experiment: Experiment, error: Exception, times: int) -> Iterator[None]:
    left = [times]
    original = experiment.store.open_write

    def open_write(path: str) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return original(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.store, "open_write", open_write)
        yield


def strand(manager: CheckpointManager, *epochs: int, **options: Any) -> list[str]:
    with failing(manager, EIO, "open_write"):
        return [save(manager, epoch, **options) for epoch in epochs]


def stranded_manifest(manager: CheckpointManager, checkpoint_id: str) -> Manifest:
    assert manager._locations.fallback is not None
    return manager._locations.fallback.get(checkpoint_id)


def home_payload(manager: CheckpointManager, checkpoint_id: str) -> Path:
    """Where the payload of one that came home lies: no file name is used twice."""
    home = manager._locations.home
    return Path(home.location(home.get(checkpoint_id).payload.name))


def interrupted(manager: CheckpointManager, stranded: str) -> None:
    """Killed between the copying and the removing: it is in both places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fallback, "_remove", lambda self, manifest: None)
        manager.reconcile()
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded]
