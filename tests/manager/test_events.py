"""Events of a manager: what has happened to its checkpoints, told once it has."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, ConfigError, ProtectedCheckpointError, StorageFullError
from ckpt_lib.events import Event, subscribe
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.store.local import LocalStore
from tests.helpers import flip_bit


class Heard:
    """A manager and what its listener hears."""

    def __init__(self, folder: Path, **options: Any) -> None:
        given = {"backup_checkpoints": False, "max_checkpoints": 10, **options}
        self.manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(folder), **given), "run")
        self.events: list[Event] = []
        self.manager.on_event(self.events.append)

    def save(self, epoch: int, loss: float = 1.0, **options: Any) -> str:
        saved = self.manager.save_checkpoint(model=nn.Linear(2, 2), epoch=epoch, metrics={"val_loss": loss}, **options)
        assert saved is not None
        return saved

    def take(self) -> list[tuple[str, str | None]]:
        """Kind and checkpoint of what was heard since the last call."""
        taken = [(event.kind.removeprefix("checkpoint."), event.checkpoint_id) for event in self.events]
        for event in self.events:
            assert event.checkpoint is None or event.checkpoint.checkpoint_id == event.checkpoint_id
        self.events.clear()
        return taken

    def payload(self, checkpoint_id: str, folder: str = "") -> Path:
        return Path(self.manager.config.checkpoint_dir, "run", folder, f"{checkpoint_id}.pt")


def test_a_save_is_told_with_its_metadata(tmp_path: Path) -> None:
    """Once it is committed: the listener can already load it. The best is told only when it is another one."""
    heard = Heard(tmp_path)
    loaded = []
    heard.manager.on_event(lambda event: loaded.append(heard.manager.load_checkpoint(event.checkpoint_id or "")))
    first = heard.save(1, loss=2.0, tags=["a"])
    saved = heard.events[0].checkpoint
    assert saved is not None
    assert (saved.epoch, saved.tags, saved.metrics, saved.is_best, saved.is_latest) == (
        1,
        ("a",),
        {"val_loss": 2.0},
        True,
        True,
    )
    assert saved == heard.manager.get_checkpoint(first)
    assert heard.take() == [("saved", first), ("best_changed", first)]
    assert [item["epoch"] for item in loaded] == [1, 1]
    second = heard.save(2, loss=3.0)
    assert heard.take() == [("saved", second)]
    third = heard.save(3, loss=1.0)
    assert heard.events[1].details == {"before": first}
    assert heard.take() == [("saved", third), ("best_changed", third)]


def test_background_saves_are_told(tmp_path: Path) -> None:
    """On the thread that writes, when they are durable."""
    heard = Heard(tmp_path)
    saved = heard.manager.save_checkpoint_async(model=nn.Linear(2, 2), epoch=1).result()
    heard.manager.flush()
    assert heard.take() == [("saved", saved)]


def test_a_fresh_manager_knows_the_best(tmp_path: Path) -> None:
    """What another process has saved before is no change of the best."""
    best = Heard(tmp_path).save(1, loss=1.0)
    heard = Heard(tmp_path)
    worse = heard.save(2, loss=2.0)
    assert heard.take() == [("saved", worse)]
    other = Heard(tmp_path)
    other.manager.delete_checkpoint(best)
    assert other.take() == [("deleted", best), ("best_changed", worse)]
    other.manager.undelete_checkpoint(best)
    assert other.take() == [("best_changed", best)]


def test_telling_of_a_save_lists_only_for_a_new_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save asks the store no more often with a listener, a best and all, but once for a best to tell of."""
    listings: list[str] = []
    list_keys = LocalStore.list

    def counted(self: LocalStore, prefix: str, **options: Any) -> Any:
        listings.append(prefix)
        return list_keys(self, prefix, **options)

    monkeypatch.setattr("ckpt_lib.experiment.index._LISTING_SHARE", 1e-9)  # one listing is enough for the whole test
    heard = Heard(tmp_path)
    heard.save(1)
    monkeypatch.setattr(LocalStore, "list", counted)
    with monkeypatch.context() as patch:
        patch.setattr("ckpt_lib.experiment.best.BestWatch.tell_of_save", lambda *_: None)
        heard.save(2, loss=0.5)
    silent = len(listings)
    listings.clear()
    heard.events.clear()
    saved = heard.save(3, loss=0.25)
    assert heard.take() == [("saved", saved), ("best_changed", saved)]
    assert len(listings) == silent + 1
    listings.clear()
    saved = heard.save(4, loss=0.75)
    assert heard.take() == [("saved", saved)]
    assert len(listings) == silent


def test_no_save_is_called_the_best_while_there_is_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process has saved since the last listing counts, and is the one that is told of."""
    monkeypatch.setattr("ckpt_lib.experiment.index._LISTING_SHARE", 1e-9)  # one listing is enough for the whole test
    heard = Heard(tmp_path)
    first = heard.save(1, loss=0.5)
    heard.events.clear()
    best = Heard(tmp_path).save(2, loss=0.1)
    worse = heard.save(3, loss=0.3)
    assert [event.checkpoint.is_best for event in heard.events if event.checkpoint] == [False, True]
    assert heard.events[1].details == {"before": first}
    assert heard.take() == [("saved", worse), ("best_changed", best)]


def test_a_save_that_was_done_before_tells_nothing(tmp_path: Path) -> None:
    """Repeating a save with its idempotency key saves nothing, and nothing has happened."""
    heard = Heard(tmp_path)
    first = heard.save(1, idempotency_key="once")
    heard.events.clear()
    assert heard.save(1, idempotency_key="once") == first
    assert heard.take() == []


def test_a_save_that_fails_tells_of_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is refused, nor one for which there is no room."""
    heard = Heard(tmp_path)
    with pytest.raises(ConfigError):
        heard.save(-1)
    assert heard.take() == []
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 10)
    with pytest.raises(StorageFullError):
        heard.save(1)
    assert {kind for kind, _ in heard.take()} == {"store.full", "save.failed"}


def test_backups_are_told_when_they_are_made(tmp_path: Path) -> None:
    """Each once, and not those that are there already."""
    heard = Heard(tmp_path)
    first = heard.save(1)
    heard.events.clear()
    assert [heard.manager.backup_checkpoint(first) for _ in range(2)] == [True, False]
    assert heard.take() == [("backed_up", first)]
    heard.manager.delete_backup(first)
    assert heard.take() == []


def test_verdicts_are_told_when_they_change(tmp_path: Path) -> None:
    """Intact, damaged, repaired, intact again: each once, whatever reads it, and whether it was damaged before."""
    heard = Heard(tmp_path, backup_checkpoints=True)
    first = heard.save(1)
    heard.events.clear()
    for _ in range(2):
        assert heard.manager.validate_checkpoint(first)
        assert heard.manager.scrub()
    told = [(event.kind, event.details) for event in heard.events if not event.details["is_backup"]]
    assert told == [("checkpoint.validated", {"is_backup": False, "was_damaged": False})]
    assert len(heard.events) == 2  # and its backup
    heard.events.clear()
    flip_bit(heard.payload(first), 100)
    assert not heard.manager.scrub(restart=True)
    assert not heard.manager.validate_checkpoint(first)
    assert heard.take() == [("corrupted", first)]
    heard.manager.repair_checkpoint(first)
    assert heard.take() == [("repaired", first)]
    heard.manager.repair_checkpoint(first)
    assert heard.manager.validate_checkpoint(first)
    assert heard.events[0].details["was_damaged"]
    assert heard.take() == [("validated", first)]


def test_what_is_set_aside_is_told(tmp_path: Path) -> None:
    """Once, with the best that takes its place; an intact one is refused, and nothing is told."""
    heard = Heard(tmp_path)
    best, other = heard.save(1, loss=1.0), heard.save(2, loss=2.0)
    heard.events.clear()
    with pytest.raises(ProtectedCheckpointError):
        heard.manager.quarantine_checkpoint(best)
    assert heard.take() == []
    flip_bit(heard.payload(best), 100)
    for _ in range(2):
        assert heard.manager.quarantine_checkpoint(best).is_quarantined
    assert heard.take() == [("quarantined", best), ("best_changed", other)]


def test_deletions_are_told(tmp_path: Path) -> None:
    """By hand, by retention after a save, and by a cleanup; a refused one and a dry run tell nothing."""
    heard = Heard(tmp_path, max_checkpoints=3)
    first, second, third = (heard.save(epoch, loss=1 / epoch) for epoch in (1, 2, 3))
    heard.events.clear()
    fourth = heard.save(4, loss=0.1)
    assert heard.take() == [("saved", fourth), ("best_changed", fourth), ("deleted", first)]
    heard.manager.pin_checkpoint(second)
    with pytest.raises(ProtectedCheckpointError):
        heard.manager.delete_checkpoint(second)
    heard.manager.cleanup_checkpoints(policy=KeepNewest(count=1), dry_run=True)
    assert heard.take() == []
    heard.manager.cleanup_checkpoints(policy=KeepNewest(count=1))
    assert heard.take() == [("deleted", third)]
    heard.manager.unpin_checkpoint(second)
    heard.manager.delete_checkpoint(second)
    assert heard.take() == [("deleted", second)]


@pytest.mark.parametrize(
    "call",
    [
        CheckpointManager.backup_checkpoint,
        CheckpointManager.validate_checkpoint,
        CheckpointManager.repair_checkpoint,
        CheckpointManager.quarantine_checkpoint,
        CheckpointManager.delete_checkpoint,
    ],
)
def test_what_is_refused_tells_nothing(tmp_path: Path, call: Callable[[CheckpointManager, str], object]) -> None:
    """A checkpoint that is not there: the call raises, and nothing has happened."""
    heard = Heard(tmp_path)
    heard.save(1)
    heard.events.clear()
    with pytest.raises(CheckpointError):
        call(heard.manager, "checkpoint_epoch_0009_step_000000_20261124_080000")
    assert heard.take() == []


def test_set_monitor_may_change_the_best(tmp_path: Path) -> None:
    """The same checkpoints, by another measure."""
    heard = Heard(tmp_path)
    first, second = heard.save(1, loss=1.0), heard.save(2, loss=2.0)
    heard.events.clear()
    heard.manager.set_monitor("val_loss", "max")
    assert heard.events[0].details == {"before": first}
    assert heard.take() == [("best_changed", second)]


def test_listeners_are_of_one_manager(tmp_path: Path) -> None:
    """Another manager of the same experiment, and a copy, are not heard; the process hears all, until it stops."""
    heard, other = Heard(tmp_path), Heard(tmp_path)
    everything: list[Event] = []
    stop, stop_own = subscribe(everything.append), heard.manager.on_event(heard.events.append)
    stop_own()
    saved = heard.save(1)
    pickle.loads(pickle.dumps(heard.manager)).save_checkpoint(model=nn.Linear(2, 2), epoch=2)
    stop()
    heard.save(3)
    assert other.take() == []
    assert [event.checkpoint_id for event in heard.events if event.kind == "checkpoint.saved"][:1] == [saved]
    assert [
        event.checkpoint.epoch for event in everything if event.kind == "checkpoint.saved" and event.checkpoint
    ] == [1, 2]
    assert [
        event.checkpoint.epoch for event in heard.events if event.kind == "checkpoint.saved" and event.checkpoint
    ] == [1, 3]


def test_a_listener_that_fails_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The save, its backup and its retention go on, and so do other listeners."""
    heard = Heard(tmp_path, backup_checkpoints=True, max_checkpoints=1)

    def fail(_: Event) -> None:
        raise RuntimeError("a bug")

    heard.manager.on_event(fail)
    first, second = heard.save(1, loss=2.0), heard.save(2, loss=1.0)
    assert heard.manager.checkpoint_ids() == [second]
    assert heard.manager.backup_ids() == [first, second]
    assert ("deleted", first) in heard.take()
    assert "a listener failed at checkpoint.saved" in caplog.text


def test_a_detail_that_cannot_be_told_fails_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and whoever had something to tell goes on."""
    heard = Heard(tmp_path)
    heard.manager._locations.events.emit("save.retried", "a bug", detail=object())
    assert heard.take() == []
    assert "the event save.retried could not be told" in caplog.text
