"""A failing store: saves are tried again, go to the fallback folder, or are given up; and everything comes home."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core import facts
from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    ConfigError,
    NotAStoreError,
    NotDurableError,
    NoValidCheckpointError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    UnsupportedStateError,
    VersionConflictError,
)
from ckpt_lib.events import Event, subscribe
from ckpt_lib.experiment import claims
from ckpt_lib.experiment.copies import copy
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.policies.saving import OnImprovement
from ckpt_lib.saving import failover, fallback
from ckpt_lib.saving.fallback import Fallback
from ckpt_lib.saving.free_space import FreeSpace
from ckpt_lib.store import Condition, Entry
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    is_bookkeeping,
    payload_path,
    save,
    snapshot,
    start_python,
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "RETRY_DELAYS_SECONDS", (0.001, 0.001))


@pytest.fixture
def fallback_dir(tmp_path: Path) -> Path:
    return tmp_path / "fallback"


@pytest.fixture
def make_safe(make_manager: MakeManager, fallback_dir: Path) -> MakeManager:
    """Managers with a fallback folder, that keep all and make no backups."""

    def make(experiment_name: str = "run", **options: Any) -> CheckpointManager:
        given = {"max_checkpoints": 1000, "backup_checkpoints": False, "fallback_dir": str(fallback_dir), **options}
        return make_manager(experiment_name, **given)

    return make


@pytest.fixture
def seen() -> Iterator[list[Event]]:
    """The events of the test."""
    events: list[Event] = []
    end = subscribe(events.append)
    yield events
    end()


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


# --- before a save ---


def test_too_little_space_is_said_before_anything_is_written(
    make_manager: MakeManager, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has how much is needed, how much is there, and where."""
    manager = make_manager()
    save(manager, 1)
    before = files(store_path)
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 5000)
    monkeypatch.setattr(LocalStore, "open_write", lambda self, key: pytest.fail("something was written"))
    with pytest.raises(StorageFullError) as raised:
        save(manager, 2)
    needed_bytes = int(raised.value.expected.split()[0])  # type: ignore[attr-defined]
    assert needed_bytes > payload_path(manager, ids(manager)[0]).stat().st_size
    assert raised.value.got == "5000 bytes free"
    assert raised.value.path == str(experiment_folder(manager))
    assert files(store_path) == before


def test_where_there_is_plenty_nothing_is_predicted_twice(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Laying a payload out takes as long as writing a small one: the first save's size is enough to go by."""
    asked: list[int] = []
    original = ArchiveLayout.size_bytes

    def counted(self: ArchiveLayout) -> int:
        asked.append(original.__get__(self))
        return asked[-1]

    monkeypatch.setattr(ArchiveLayout, "size_bytes", property(counted))
    manager = make_manager()
    saved = [save(manager, epoch) for epoch in range(3)]
    assert asked == [payload_path(manager, saved[0]).stat().st_size]
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 36_000)
    save(manager, 4)
    assert len(asked) == 2


def test_a_store_that_does_not_tell_is_written_to(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """As object stores do not, and some network file systems."""
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: None)
    save(make_manager(), 1)


def test_a_file_system_that_says_it_has_no_size_does_not_tell(tmp_path: Path) -> None:
    """``/proc`` is one."""
    assert LocalStore("/proc").free_bytes() is None
    assert (LocalStore(str(tmp_path / "not/there/yet")).free_bytes() or 0) > 0


# --- retries ---


@pytest.mark.parametrize("error", [AWAY, VersionConflictError("this process stood still")])
def test_what_is_transient_is_tried_again(make_manager: MakeManager, seen: list[Event], error: Exception) -> None:
    """A bounded number of times; each is told."""
    manager, drawn = make_manager(), random.getstate()
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


def committing(store: LocalStore, error: Exception) -> Callable[..., Entry]:
    """A ``put`` that makes a checkpoint live and then raises an error."""
    original = store.put

    def put(key: str, data: bytes, *, if_version: Condition = None, durable: bool = True) -> Entry:
        entry = original(key, data, if_version=if_version)
        if b'"state": "live"' in data:
            raise error
        return entry

    return put


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


# --- fallback ---


@pytest.mark.parametrize("error", STORE_FAILURES, ids=lambda error: type(error).__name__)
def test_a_failing_store_strands_the_save(
    make_safe: MakeManager, fallback_dir: Path, seen: list[Event], error: Exception
) -> None:
    """An ordinary checkpoint in an ordinary store: whoever looks there can list, validate and load it."""
    manager = make_safe()
    first = save(manager, 1)
    with failing(manager, error):
        stranded = save(manager, 2, tags=["kept"])
        assert manager.load_checkpoint(stranded)["epoch"] == 2
        assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded]
    there = CheckpointManager(CheckpointConfig(checkpoint_dir=str(fallback_dir)), "run")
    assert ids(there) == [stranded]
    assert there.validate_checkpoint(stranded)
    assert (there.get_checkpoint(stranded).tags, there.get_checkpoint(stranded).parent_id) == (("kept",), first)
    degraded, kept = (event for event in seen if event.kind in ("save.degraded", "checkpoint.stranded"))
    assert (degraded.kind, kept.kind, kept.checkpoint_id) == ("save.degraded", "checkpoint.stranded", stranded)
    assert kept.details["path"] == str(fallback_dir / "run" / f"{stranded}.pt")
    assert degraded.details["error"] == type(error).__name__


@pytest.mark.parametrize("error", STORE_FAILURES, ids=lambda error: type(error).__name__)
def test_warn_never_raises_what_the_store_did(make_manager: MakeManager, seen: list[Event], error: Exception) -> None:
    """Without a fallback folder: nothing is saved, ``None`` says so, and training goes on."""
    manager = make_manager(on_save_failure="warn")
    with failing(manager, error):
        assert manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1) is None
        assert manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=2).result() is None
        manager.flush()
    assert kinds(seen).count("save.failed") == 2
    assert seen[-1].details["error"] == type(error).__name__
    assert ids(manager) == []
    save(manager, 3)


def test_when_both_fail_the_error_is_the_stores_own(make_safe: MakeManager, fallback_dir: Path) -> None:
    """With a note about the other; with "warn", nothing is raised."""
    fallback_dir.parent.mkdir(exist_ok=True)
    manager = make_safe()
    assert manager._fallback is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStore, "open_write", lambda self, key: (_ for _ in ()).throw(StoreError(f"no: {self.url}")))
        with pytest.raises(StoreError, match=f"no: {manager.config.checkpoint_dir}") as raised:
            save(manager, 1)
        assert f"no: {fallback_dir}" in raised.value.__notes__[0]
        warning = make_safe(on_save_failure="warn")
        assert warning.save_checkpoint(model=nn.Linear(2, 1), epoch=1) is None


def test_bad_input_and_bugs_are_raised_whatever_is_configured(make_safe: MakeManager) -> None:
    """Only the store's failures degrade."""
    manager = make_safe(on_save_failure="warn")
    with pytest.raises(UnsupportedStateError):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1, extra_state={"object": object()})
    with pytest.raises(ConfigError):
        manager.save_checkpoint(model=nn.Linear(2, 1), epoch=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArchiveLayout, "write", lambda self, stream: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1)
        with pytest.raises(ZeroDivisionError):
            manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=1).result()
    assert manager.list_stranded() == []


def test_background_saves_degrade_as_well(make_safe: MakeManager) -> None:
    """The handle has the id of the stranded one; the next healthy save brings it home."""
    manager = make_safe()
    with failing(manager, EIO):
        handles = [manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=epoch) for epoch in (1, 2)]
        stranded = [handle.result() for handle in handles]
        manager.flush()
    assert [item.checkpoint_id for item in manager.list_stranded()] == stranded
    last = manager.save_checkpoint_async(model=nn.Linear(2, 1), epoch=3)
    manager.flush()
    assert ids(manager) == [*stranded, last.result()]
    assert manager.list_stranded() == []


def test_a_failure_after_the_commit_is_none_of_the_save(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is durable is acknowledged, though looking at it fails."""
    manager = make_safe()
    monkeypatch.setattr(manager._known, "remember", lambda *_, **__: (_ for _ in ()).throw(EIO))
    saved = manager.save_checkpoint(model=nn.Linear(2, 1), epoch=1)
    monkeypatch.undo()
    assert ids(manager) == [saved]
    assert manager.list_stranded() == []


def test_the_save_policy_goes_by_what_was_seen_last(make_safe: MakeManager, fallback_dir: Path) -> None:
    """A store that cannot be listed does not make every loss an improvement, and stranded ones count."""
    config = make_safe(on_save_failure="warn").config
    manager = CheckpointManager(config, "run", save_policy=OnImprovement())
    save(manager, 1, loss=0.5)
    with failing(manager, AWAY):
        assert manager.save_checkpoint(model=nn.Linear(2, 1), epoch=2, metrics={"val_loss": 0.7}) is None
        better = save(manager, 3, loss=0.3)
        assert manager.save_checkpoint(model=nn.Linear(2, 1), epoch=4, metrics={"val_loss": 0.4}) is None
    assert [item.checkpoint_id for item in manager.list_stranded()] == [better]


def test_a_repeated_save_is_the_same_wherever_it_is(make_safe: MakeManager) -> None:
    """By its key: while it is stranded, and when it has come home."""
    manager = make_safe()
    with failing(manager, EIO, "open_write"):
        stranded = save(manager, 1, idempotency_key="run/1")
        assert save(manager, 1, idempotency_key="run/1") == stranded
    assert save(make_safe(), 1, idempotency_key="run/1") == stranded
    manager.reconcile()
    assert save(make_safe(), 1, idempotency_key="run/1") == stranded
    assert ids(manager) == [stranded]


def test_the_fallback_folder_follows_the_retention_rules_when_it_is_full(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Days without a store must not fill it: then the policy decides what stays."""
    manager = make_safe(max_checkpoints=2)
    assert manager._fallback is not None
    with failing(manager, EIO, "open_write"):
        stranded = [save(manager, epoch, loss=10 - epoch) for epoch in range(4)]
        with failing_in(manager._fallback.experiment, StorageFullError("full"), times=1):
            stranded.append(save(manager, 9, loss=0.0))
    assert [item.checkpoint_id for item in manager.list_stranded()] == [*stranded[2:4], stranded[4]]


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


@pytest.mark.parametrize("option", ["checkpoint_dir", "backup_dir"])
def test_a_fallback_folder_must_lie_elsewhere(tmp_path: Path, option: str) -> None:
    """Refused before anything is written, through links as well."""
    (tmp_path / "link").symlink_to(tmp_path / "store")
    options: dict[str, Any] = {"checkpoint_dir": str(tmp_path / "checkpoints"), option: str(tmp_path / "store")}
    with pytest.raises(ConfigError, match="fallback_dir"):
        CheckpointManager(CheckpointConfig(**options, fallback_dir=str(tmp_path / "link")), "run")


# --- coming home ---


def strand(manager: CheckpointManager, *epochs: int, **options: Any) -> list[str]:
    with failing(manager, EIO, "open_write"):
        return [save(manager, epoch, **options) for epoch in epochs]


def test_what_comes_home_is_what_was_saved(make_safe: MakeManager, seen: list[Event]) -> None:
    """Id, uid, metrics, tags, time, parent, key and bytes; its place is the last."""
    manager = make_safe()
    first = save(manager, 1)
    (stranded,) = strand(manager, 2, loss=0.25, tags=["a"], description="text", idempotency_key="key")
    before = stranded_manifest(manager, stranded)
    report = manager.reconcile()
    assert (bool(report), report.moved, report.failed) == (True, {stranded: stranded}, {})
    assert report.moved_bytes == before.size_bytes
    brought = manager._locations.home.get(stranded)
    assert brought.describe() == before.describe().model_copy(update={"sequence": 2})
    assert (brought.uid, brought.parent_id, brought.idempotency_key) == (before.uid, first, "key")
    assert brought.payload.sha256 == before.payload.sha256
    assert manager.list_stranded() == []
    assert kinds(seen)[-1] == "checkpoint.reconciled"
    assert manager.reconcile().moved == {}


def stranded_manifest(manager: CheckpointManager, checkpoint_id: str) -> Manifest:
    assert manager._locations.fallback is not None
    return manager._locations.fallback.get(checkpoint_id)


def home_payload(manager: CheckpointManager, checkpoint_id: str) -> Path:
    """Where the payload of one that came home lies: no file name is used twice."""
    home = manager._locations.home
    return Path(home.location(home.get(checkpoint_id).payload.name))


def test_the_next_healthy_save_brings_them_home_in_order(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of one second, epoch and step: the order is that of saving, and who finds its id taken gets another."""
    monkeypatch.setattr(facts, "datetime", StoppedClock)
    manager = make_safe(backup_checkpoints=True)
    save(manager, 1, 0.1)
    strand(manager, 1, loss=0.2)
    strand(manager, 1, loss=0.3)
    save(manager, 1, 0.4)
    strand(manager, 1, loss=0.5)
    save(manager, 1, 0.6)
    assert [item.metrics["val_loss"] for item in manager.list_checkpoints()] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [item.sequence for item in manager.list_checkpoints()] == [1, 2, 3, 4, 5, 6]
    assert manager.list_stranded() == []
    assert sorted(backup_ids(manager)) == sorted(ids(manager))


class StoppedClock:
    """A clock on which no second passes."""

    @staticmethod
    def now(zone: Any) -> Any:
        from datetime import datetime

        return datetime(2024, 1, 1, tzinfo=zone)


def test_a_place_that_another_process_took_is_not_taken_twice(
    make_safe: MakeManager, make_manager: MakeManager
) -> None:
    """One without a fallback folder knows nothing of the stranded ones, which then come as the newest, in order."""
    manager = make_safe()
    first = save(manager, 1)
    stranded = strand(manager, 2, 3)
    others = save(make_manager(max_checkpoints=1000), 4)
    manager.reconcile()
    found = {item.checkpoint_id: item.sequence for item in manager.list_checkpoints()}
    assert set(found) == {first, others, *stranded}
    assert found[first] < found[others] < found[stranded[0]] < found[stranded[1]]


def test_what_lost_its_place_is_followed_by_what_went_on_from_it(
    make_safe: MakeManager, make_manager: MakeManager
) -> None:
    """A gap that retirement left is no place for a child of something newer."""
    manager = make_safe()
    save(manager, 1)
    stranded = strand(manager, 2, 3)
    other = make_manager(max_checkpoints=1000, trash_seconds=0, backup_checkpoints=False)
    others = [save(other, epoch) for epoch in (4, 5, 6)]
    other.delete_checkpoint(others[1])  # which had the place of the second stranded one
    manager.reconcile()
    assert ids(manager)[-2:] == stranded


def test_a_run_that_began_blind_is_newer_than_what_was_there(make_safe: MakeManager) -> None:
    """It never saw the order of its store: its checkpoints come home first, behind the old and before the new."""
    old = [save(make_safe(), epoch) for epoch in (1, 2, 3)]
    make_safe().delete_checkpoint(old[0])
    blind = make_safe()
    with failing(blind, AWAY):
        stranded = [save(blind, epoch) for epoch in (4, 5)]
    new = save(blind, 6)
    assert ids(blind) == [*old[1:], *stranded, new]
    assert [item.sequence for item in blind.list_checkpoints()] == [2, 3, 4, 5, 6]


def test_a_damaged_one_stays_and_keeps_no_other_from_coming_home(
    make_safe: MakeManager, fallback_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with the reason; saves do not read it again and again."""
    manager = make_safe()
    stranded = strand(manager, 1, 2)
    flip_bit(fallback_dir / "run" / f"{stranded[0]}.pt", 300)
    saved = save(manager, 3)
    assert ids(manager) == [stranded[1], saved]
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded[0]]
    assert manager._fallback is not None
    assert not manager._fallback.has_work
    report = manager.reconcile()
    assert not report
    assert list(report.failed) == stranded[:1]
    assert "damaged" in report.failed[stranded[0]]
    assert (fallback_dir / "run" / f"{stranded[0]}.pt").exists()


def test_a_copy_that_is_damaged_at_home_does_not_cost_the_good_one(make_safe: MakeManager, fallback_dir: Path) -> None:
    """Only what verifies at home is removed here."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    flip_bit(home_payload(manager, stranded), 300)
    report = make_safe().reconcile()
    assert list(report.failed) == [stranded]
    assert "in the store is damaged" in report.failed[stranded]
    assert CheckpointManager(CheckpointConfig(checkpoint_dir=str(fallback_dir)), "run").validate_checkpoint(stranded)


def test_deleting_the_damaged_copy_at_home_does_not_cost_the_good_one(
    make_safe: MakeManager, fallback_dir: Path
) -> None:
    """Which is what the error advises: then the good one comes home."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    flip_bit(home_payload(manager, stranded), 300)
    manager.delete_checkpoint(stranded)
    (home_id,) = make_safe().reconcile().moved.values()
    assert manager.validate_checkpoint(home_id)
    assert manager.list_stranded() == []


def test_what_was_committed_but_may_not_be_durable_is_followed_home(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in both places: the report tells which is left, and the next save goes on from that."""
    manager = make_safe(save_metadata=False)
    with monkeypatch.context() as patch:
        patch.setattr(store_of(manager), "put", committing(store_of(manager), NotDurableError("not durable")))
        stranded = save(manager, 1)
    (home_id,) = ids(manager)
    assert manager.reconcile().already_home == {stranded: home_id}
    assert manager._locations.home.get(save(manager, 2)).parent_id == home_id


def test_room_is_made_in_the_fallback_folder_while_the_store_does_not_answer(make_safe: MakeManager) -> None:
    """By the metric that was monitored when they were saved: nobody else can be asked."""
    manager = make_safe(max_checkpoints=2)
    assert manager._fallback is not None
    with failing(manager, AWAY):
        stranded = [save(manager, epoch, loss=10 - epoch) for epoch in range(4)]
        with failing_in(manager._fallback.experiment, StorageFullError("full"), times=1):
            stranded.append(save(manager, 4, loss=1))
    assert len(manager.list_stranded()) < len(stranded)


def test_resuming_takes_the_good_copy_of_a_damaged_one(make_safe: MakeManager, fallback_dir: Path) -> None:
    """It is in both places, and the copy at home is damaged."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    flip_bit(home_payload(manager, stranded), 300)
    resumed = make_safe().resume()
    assert resumed is not None
    assert (resumed["checkpoint_id"], resumed["passed_over"]) == (stranded, [])


def interrupted(manager: CheckpointManager, stranded: str) -> None:
    """Killed between the copying and the removing: it is in both places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fallback, "_remove", lambda self, manifest: None)
        manager.reconcile()
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded]


def test_what_is_deleted_at_home_while_it_comes_home_stays_here(
    make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes could not be verified there."""
    manager = make_safe(trash_seconds=0)
    first, second = strand(manager, 1, 2)

    def copied_and_deleted(*arguments: Any, **options: Any) -> Manifest | None:
        brought = copy(*arguments, **options)
        if brought and brought.checkpoint_id == first:
            make_safe().delete_checkpoint(first)
            make_safe().empty_trash()
        return brought

    monkeypatch.setattr(fallback, "copy", copied_and_deleted)
    report = manager.reconcile()
    assert list(report.moved) == [second]
    assert list(report.failed) == [first]
    assert [item.checkpoint_id for item in manager.list_stranded()] == [first]
    monkeypatch.undo()
    save(manager, 3)
    assert manager.list_stranded() == []  # it is not given up as damaged: what was deleted at home goes here, too


def test_what_is_home_already_is_only_removed(make_safe: MakeManager, fallback_dir: Path) -> None:
    """One checkpoint, told by its uid, though someone has changed its tags at home meanwhile."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    manager.edit_checkpoint(stranded, add_tags=["changed"])
    report = make_safe().reconcile()
    assert (report.moved, report.already_home) == ({}, {stranded: stranded})
    assert ids(manager) == [stranded]
    assert manager.get_checkpoint(stranded).tags == ("changed",)
    assert manager.list_stranded() == []


def test_what_was_deleted_at_home_does_not_come_back(make_safe: MakeManager, fallback_dir: Path) -> None:
    """Someone has deleted it there after it came home; what is left here goes, too."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    interrupted(manager, stranded)
    manager.delete_checkpoint(stranded)
    assert make_safe().reconcile().already_home == {stranded: stranded}
    assert (ids(manager), manager.list_stranded()) == ([], [])
    assert manager.undelete_checkpoint(stranded).checkpoint_id == stranded


def test_without_room_at_home_nothing_is_begun(make_safe: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays where it is, and a save that fits is made nevertheless."""
    manager = make_safe()
    (stranded,) = strand(manager, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_of(manager), "free_bytes", lambda: 1)
        with pytest.raises(StorageFullError, match=f"move {stranded}"):
            manager.reconcile()
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded]
    assert manager.reconcile().moved == {stranded: stranded}


def test_a_store_that_fails_on_the_way_loses_nothing(make_safe: MakeManager) -> None:
    """The error is raised; what has come home is home, the rest is stranded still."""
    manager = make_safe()
    stranded = strand(manager, 1, 2, 3)
    calls = 0
    original = store_of(manager).open_write

    def open_write(folder: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise EIO
        return original(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_of(manager), "open_write", open_write)
        with pytest.raises(StoreError):
            manager.reconcile()
    assert ids(manager) == stranded[:1]
    assert [item.checkpoint_id for item in manager.list_stranded()] == stranded[1:]
    manager.reconcile()
    assert ids(manager) == stranded


def test_reconciling_without_a_fallback_folder_is_refused(make_manager: MakeManager) -> None:
    """Rather than doing nothing."""
    with pytest.raises(ConfigError, match="fallback"):
        make_manager().reconcile()
    assert make_manager().list_stranded() == []


_RECONCILER = """
import sys
from ckpt_lib import CheckpointConfig, CheckpointManager
options = dict(checkpoint_dir=sys.argv[1], fallback_dir=sys.argv[2], max_checkpoints=1000, backup_checkpoints=False)
manager = CheckpointManager(CheckpointConfig(**options), "run")
manager.list_checkpoints()
print("ready", flush=True)
sys.stdin.readline()
manager.reconcile()
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_point_a_rerun_converges(make_safe: MakeManager, fallback_dir: Path) -> None:
    """Real kills, at random: nothing is lost, nothing doubled, everything verifies."""
    manager = make_safe()
    rng = random.Random(10)
    saved = [save(manager, 0)]
    for round_number in range(4):
        saved += strand(manager, *range(10 * round_number + 1, 10 * round_number + 7))
        child = start_python(_RECONCILER, manager.config.checkpoint_dir, fallback_dir)
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        child.stdin.write("go\n")
        child.stdin.flush()
        time.sleep(rng.uniform(0.0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert manager.reconcile(), round_number
        assert ids(manager) == saved
        assert all(manager.validate_all())
        assert manager.list_stranded() == []


class Crash(BaseException):
    """Nothing catches it: the process is gone, and no clean-up is done by it."""


def test_stopped_at_each_step_a_rerun_converges(make_safe: MakeManager) -> None:
    """Every change of a name on the way, in turn, is the last thing that the process does."""
    steps, step = 10**6, 0
    while step < steps:
        manager = make_safe(f"run-{step}")
        saved = [save(manager, 1), *strand(manager, 2, 3)]
        count = 0

        def counted(original: Callable[..., Any], last: int = step) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count > last:
                    raise Crash
                return original(*args, **kwargs)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for name in ("open_write", "put", "delete"):
                patch.setattr(LocalStore, name, counted(getattr(LocalStore, name)))
            try:
                manager.reconcile()
            except Crash:
                pass
            else:
                steps = step
        again = make_safe(f"run-{step}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "is_proven_dead", lambda owner: True)
            assert again.reconcile(), step
        assert ids(again) == saved, step
        assert all(again.validate_all()), step
        assert again.list_stranded() == [], step
        step += 1
    assert step > 15


# --- going on ---


def test_resuming_finds_what_is_stranded(make_safe: MakeManager) -> None:
    """A new process on the same machine: healthy again, the store gets it first."""
    manager = make_safe()
    save(manager, 1)
    (stranded,) = strand(manager, 2)
    resumed = make_safe()
    payload = resumed.resume()
    assert payload is not None
    assert payload["checkpoint_id"] == stranded
    assert resumed.list_stranded() == []
    assert ids(resumed)[-1] == stranded


@pytest.mark.parametrize("methods", [(), ("open_write", "put", "delete")], ids=["away", "read-only"])
def test_resuming_while_the_store_fails(make_safe: MakeManager, methods: tuple[str, ...]) -> None:
    """Where it cannot be read, what is stranded is what there is; where it can, the newest of both."""
    manager = make_safe()
    save(manager, 1)
    (stranded,) = strand(manager, 2)
    resumed = make_safe()
    with failing(resumed, AWAY, *methods):
        payload = resumed.resume()
        assert payload is not None
        assert (payload["checkpoint_id"], payload["epoch"]) == (stranded, 2)
        assert resumed.load_checkpoint(stranded)["epoch"] == 2
        assert resumed.validate_checkpoint(stranded)
        later = save(resumed, 3)
    assert save(resumed, 4) == ids(resumed)[-1]
    assert [item.checkpoint_id for item in resumed.list_checkpoints()][1:3] == [stranded, later]
    assert resumed.get_checkpoint(later).parent_id == stranded


def test_resuming_without_anything_stranded_is_as_ever(make_safe: MakeManager) -> None:
    """A store that does not answer is not an empty one."""
    manager = make_safe()
    assert manager.resume() is None
    save(manager, 1)
    with failing(manager, AWAY), pytest.raises(StoreUnavailableError):
        manager.resume()
    flip_bit(payload_path(manager, ids(manager)[0]), 300)
    with pytest.raises(NoValidCheckpointError):
        manager.resume()


def test_a_stranded_one_that_is_gone_on_from_is_followed_home(make_safe: MakeManager) -> None:
    """It is protected at home from then on, and no copy stays behind."""
    manager = make_safe(max_checkpoints=1)
    (stranded,) = strand(manager, 1, loss=5.0)
    with failing(manager, EIO, "open_write", "put"):
        assert manager.resume() is not None
    newer = [save(manager, epoch, loss=1.0 / epoch) for epoch in (2, 3)]
    assert manager._locations.fallback is not None
    view = manager._locations.fallback.index.view()
    assert (view.manifests, view.deleted) == ((), ())
    assert ids(manager) == [stranded, newer[-1]]


def test_an_id_that_is_nowhere_is_named_as_ever(make_safe: MakeManager) -> None:
    """The fallback folder hides no mistake."""
    manager = make_safe()
    strand(manager, 1)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        manager.load_checkpoint("checkpoint_epoch_0009_step_000000_20240101_000000")
