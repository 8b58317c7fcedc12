"""A failing store: saves are tried again a bounded number of times, or once there is room, and save nothing twice."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.errors import NotDurableError, StorageFullError, StoreError, StoreUnavailableError, VersionConflictError
from ckpt_lib.events import Event
from ckpt_lib.saving import failover
from ckpt_lib.saving.free_space import FreeSpace
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import MakeManager, experiment_folder, ids, save
from tests.saving.failing_stores import AWAY, EIO, committing, failing, kinds, store_of

pytestmark = pytest.mark.usefixtures("_no_waiting")


@pytest.mark.parametrize("error", [AWAY, VersionConflictError("this process stood still")])
def test_what_is_transient_is_tried_again(make_manager: MakeManager, seen: list[Event], error: Exception) -> None:
    """A bounded number of times; each is told."""
    manager, drawn = make_manager(backup_checkpoints=False), random.getstate()
    with failing(manager, error, "open_write", times=2):
        saved = save(manager, 1)
    assert ids(manager) == [saved]
    assert kinds(seen) == ["save.retried"] * 2
    assert random.getstate() == drawn, "the training's own random numbers are others now"


def test_a_store_that_stays_away_is_given_up(make_manager: MakeManager, seen: list[Event]) -> None:
    """After three attempts, with its own error."""
    manager = make_manager()
    with failing(manager, AWAY, "open_write"), pytest.raises(StoreUnavailableError) as raised:
        save(manager, 1)
    assert raised.value is AWAY
    assert kinds(seen) == ["save.retried", "save.retried", "save.failed"]
    assert ids(manager) == []


def test_a_store_that_comes_back_late_is_asked_three_times(
    make_manager: MakeManager, seen: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the question what an earlier attempt left is not answered either."""
    manager = make_manager(backup_checkpoints=False, save_metadata=False)
    answers: Iterator[Exception | None] = iter([AWAY, None])
    original = failover.SaveTarget._left_behind

    def left_behind(self: failover.SaveTarget, facts: CheckpointFacts) -> Any:
        if error := next(answers):
            raise error
        return original(self, facts)

    monkeypatch.setattr(failover.SaveTarget, "_left_behind", left_behind)
    with failing(manager, AWAY, "open_write", times=1):
        saved = save(manager, 1)
    assert ids(manager) == [saved]
    assert kinds(seen) == ["save.retried"] * 2


def test_a_store_that_takes_long_to_fail_is_not_asked_again(
    make_manager: MakeManager, seen: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training waits for a blocking save."""
    monkeypatch.setattr(failover, "MAX_RETRY_SECONDS", -1.0)
    manager = make_manager()
    with failing(manager, AWAY, "open_write"), pytest.raises(StoreUnavailableError):
        save(manager, 1)
    assert kinds(seen) == ["save.failed"]


def test_a_failed_fsync_is_never_tried_again(
    make_manager: MakeManager, seen: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped the pages and say that all is well the second time."""
    calls = []
    original = System.fsync

    def fail(self: System, file: io.FileIO) -> None:
        if os.fstat(file.fileno()).st_size < 1000:  # a claim
            return original(self, file)
        calls.append(self)
        raise EIO

    monkeypatch.setattr(System, "fsync", fail)
    with pytest.raises(StoreError, match="Input/output"):
        save(make_manager(), 1)
    assert len(calls) == 1
    assert kinds(seen) == ["save.failed"]


def test_a_lost_acknowledgement_makes_no_second_checkpoint(
    make_manager: MakeManager, seen: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is asked what became of it, and nothing is written again."""
    manager = make_manager(backup_checkpoints=False, save_metadata=False)
    monkeypatch.setattr(store_of(manager), "put", committing(store_of(manager), AWAY))
    saved = save(manager, 1)
    assert ids(manager) == [saved]
    assert kinds(seen) == []


def test_a_commit_without_any_answer_makes_no_second_checkpoint(make_manager: MakeManager) -> None:
    """Neither of the write nor of the look for it: the next attempt finds what the first one saved."""
    plan = FaultPlan(error=StoreUnavailableError, when="after", only=frozenset({"put", "stat"}))
    manifests: list[str] = []

    def fail_twice(operation: str, key: str) -> None:
        manifests.extend([key] if operation == "put" and "/checkpoint_epoch" in key else [])
        if len(manifests) == 2 and not plan.fail_at:
            plan.fail_at, plan.persistent = len(plan.calls) + 1, True
        plan.persistent = plan.persistent and len(plan.calls) < plan.fail_at + 1

    plan.between = fail_twice
    with faults_injected(plan):
        saved = save(make_manager(backup_checkpoints=False, save_metadata=False), 1)
    assert plan.failures == 2
    assert ids(make_manager()) == [saved]


def test_a_commit_that_may_not_be_durable_is_not_tried_again(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one checkpoint, whole; that it may not be durable is said."""
    manager = make_manager(backup_checkpoints=False, save_metadata=False)
    monkeypatch.setattr(store_of(manager), "put", committing(store_of(manager), NotDurableError("not durable")))
    with pytest.raises(NotDurableError):
        save(manager, 1)
    assert len(ids(manager)) == 1


def test_a_full_store_is_given_room_once_and_tried_once_more(
    make_manager: MakeManager, seen: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it told of free space, as one with a quota does; what is in the trash goes."""
    manager = make_manager(backup_checkpoints=False)
    first, second = save(manager, 1), save(manager, 2)
    manager.delete_checkpoint(first)
    assert [item.checkpoint_id for item in manager.list_deleted()] == [first]
    with failing(manager, StorageFullError("the store is full"), "open_write", times=1):
        third = save(manager, 3)
    assert manager.list_deleted() == []
    assert ids(manager) == [second, third]
    assert kinds(seen) == ["store.full", "store.reclaimed"]
    with failing(manager, StorageFullError("the store is full"), "open_write"), pytest.raises(StorageFullError):
        save(manager, 4)


def test_room_is_made_as_far_as_needed_and_by_the_rules(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted ones go first, the earliest first; then what retention gives up, but no pinned, best or last one."""
    generous = make_manager(backup_checkpoints=False, max_checkpoints=100)
    saved = [save(generous, epoch, loss=1 + epoch) for epoch in range(6)]  # the first is the best
    generous.pin_checkpoint(saved[1])
    for deleted in (saved[4], saved[2]):
        generous.delete_checkpoint(deleted)
        time.sleep(0.02)
    strict = make_manager(backup_checkpoints=False, max_checkpoints=1)
    space = FreeSpace(strict._cleaner, strict._backup_cleaner)
    gone = {name: experiment_folder(strict) / f"{name}.pt" for name in saved}

    def free_until(count: int) -> None:
        """As much room as is needed is there once so many payloads went."""

        def free_bytes(_store: LocalStore) -> int:
            return 10**9 if sum(not path.exists() for path in gone.values()) >= count else 0

        monkeypatch.setattr(LocalStore, "free_bytes", free_bytes)

    free_until(1)
    space.make(10**6)
    assert [item.checkpoint_id for item in strict.list_deleted()] == [saved[2]]
    free_until(2)
    space.make(10**6)
    assert strict.list_deleted() == []
    assert ids(strict) == [saved[0], saved[1], saved[3], saved[5]]
    free_until(100)
    space.make(10**6)
    assert ids(strict) == [saved[0], saved[1], saved[5]]
