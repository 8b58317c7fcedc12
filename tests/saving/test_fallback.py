"""A store that goes on failing: saves go to the fallback folder, or are given up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, StorageFullError, StoreError, UnsupportedStateError
from ckpt_lib.events import Event
from ckpt_lib.formats.torch.writing import ArchiveLayout
from ckpt_lib.policies.saving import OnImprovement
from ckpt_lib.store.local import LocalStore
from tests.helpers import MakeManager, ids, save
from tests.saving.failing_stores import AWAY, EIO, STORE_FAILURES, failing, failing_in, kinds

pytestmark = pytest.mark.usefixtures("_no_waiting")


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


@pytest.mark.parametrize("option", ["checkpoint_dir", "backup_dir"])
def test_a_fallback_folder_must_lie_elsewhere(tmp_path: Path, option: str) -> None:
    """Refused before anything is written, through links as well."""
    (tmp_path / "link").symlink_to(tmp_path / "store")
    options: dict[str, Any] = {"checkpoint_dir": str(tmp_path / "checkpoints"), option: str(tmp_path / "store")}
    with pytest.raises(ConfigError, match="fallback_dir"):
        CheckpointManager(CheckpointConfig(**options, fallback_dir=str(tmp_path / "link")), "run")


def test_room_is_made_in_the_fallback_folder_while_the_store_does_not_answer(make_safe: MakeManager) -> None:
    """By the metric that was monitored when they were saved: nobody else can be asked."""
    manager = make_safe(max_checkpoints=2)
    assert manager._fallback is not None
    with failing(manager, AWAY):
        stranded = [save(manager, epoch, loss=10 - epoch) for epoch in range(4)]
        with failing_in(manager._fallback.experiment, StorageFullError("full"), times=1):
            stranded.append(save(manager, 4, loss=1))
    assert len(manager.list_stranded()) < len(stranded)
