"""A save and its local backup in one pass: hashed once, written twice, and the checkpoint is never at risk for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import StorageFullError, StoreError, StoreUnavailableError
from ckpt_lib.experiment import twin
from ckpt_lib.stream import mirror
from ckpt_lib.testing import OPERATIONS, FaultPlan, faults_injected
from tests.helpers import MakeManager, backup_ids, build, ids, payload_path, save, snapshot
from tests.saving.test_backups import until

BACKUPS = "run/backups/"


@pytest.fixture
def plan(make_manager: MakeManager) -> Iterator[FaultPlan]:
    """Every store that is opened follows it."""
    with faults_injected(FaultPlan(only=OPERATIONS - {"stat", "list", "free_bytes"})) as plan:
        yield plan


def payload_calls(plan: FaultPlan, operation: str) -> list[str]:
    return [call for call in plan.calls if call.startswith(operation) and call.endswith(".pt")]


def is_sound(manager: CheckpointManager, checkpoint_id: str) -> bool:
    return bool(manager.validate_checkpoint(checkpoint_id) and manager.validate_backup(checkpoint_id))


@pytest.mark.parametrize("in_background", [False, True])
def test_the_payload_is_not_read_for_its_backup(
    make_manager: MakeManager, plan: FaultPlan, in_background: bool
) -> None:
    """It is written to both places, and its backup counts as written, until somebody reads it back."""
    manager = make_manager()
    if in_background:
        saved = str(manager.save_checkpoint_async(**build().kwargs(), epoch=1).result(60))
        manager.flush()
    else:
        saved = save(manager, 1)
    assert len(payload_calls(plan, "open_write")) == 2
    assert payload_calls(plan, "open_read") == []
    assert manager.backup_status(saved).state == "written"
    assert is_sound(manager, saved)


def test_it_is_the_backup_that_a_copy_would_have_been(make_manager: MakeManager) -> None:
    """But for what is each copy's own: its claim, and the revision of its manifest."""
    at_once, later = make_manager(), make_manager()
    first = save(at_once, 1)
    twin = at_once._locations.backups.get(first)
    at_once.delete_backup(first)
    later.backup_checkpoint(first)
    copied = later._locations.backups.get(first)
    assert _without_claim(twin) == _without_claim(copied)
    assert twin.claim != at_once._locations.home.get(first).claim


def _without_claim(manifest: Manifest) -> dict[str, object]:
    files = [file.model_dump() | {"name": file.part} for file in manifest.files]
    return manifest.model_dump(exclude={"claim", "revision"}) | {"files": files}


@pytest.mark.parametrize("error", [StoreError, StorageFullError, StoreUnavailableError])
def test_a_backup_location_that_fails_anywhere_fails_no_save(
    make_manager: MakeManager, plan: FaultPlan, store_path: Path, error: type[StoreError]
) -> None:
    """At each of its operations in turn; the backup is made after the save then, and nothing else is left."""
    number, is_done = 0, False
    while not is_done:
        number += 1
        seen = 0

        def strike(_operation: str, key: str, number: int = number) -> None:
            nonlocal seen
            seen += (is_backup := key.startswith(f"run-{number}/backups/"))
            if is_backup and seen == number:
                raise error("injected", path=key)

        manager = make_manager(f"run-{number}")
        plan.between = strike
        saved = save(manager, number)
        plan.between = None
        is_done = seen < number
        assert ids(manager) == [saved]
        assert manager.validate_checkpoint(saved)
        if backup_ids(manager) != [saved]:
            assert manager.backup_checkpoint(saved)
        assert is_sound(manager, saved)
        left = [name for name in snapshot(store_path / f"run-{number}" / "backups") if name.endswith(".pt")]
        assert len(left) == 1
    assert number > 5


def test_the_checkpoint_is_committed_while_its_backup_hangs(
    make_manager: MakeManager, plan: FaultPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup location that takes no more bytes is left behind, and nothing comes of what it was given."""
    monkeypatch.setattr(mirror, "PATIENCE_SECONDS", 0.05)
    hangs, gate, reader = threading.Event(), threading.Event(), make_manager()
    before: list[list[str]] = []

    def hold(operation: str, key: str) -> None:
        if operation == "write" and key.startswith(BACKUPS) and not hangs.is_set():
            hangs.set()
            assert gate.wait(60)

    def watch() -> None:
        assert hangs.wait(60)
        while not ids(reader):
            pass
        before.append(backup_ids(reader))
        gate.set()

    plan.between = hold
    watcher = threading.Thread(target=watch)
    watcher.start()
    saved = save(make_manager(), 1)
    watcher.join(60)
    assert before == [[]]
    assert backup_ids(reader) == [saved]
    assert is_sound(reader, saved)


class Hang:
    """An operation on the backups that does not return until the gate opens."""

    def __init__(self, plan: FaultPlan, operation: str) -> None:
        self.gate = threading.Event()
        self._operation = operation
        plan.between = self._hold

    def _hold(self, operation: str, key: str) -> None:
        if operation == self._operation and key.startswith(BACKUPS) and key.endswith(".pt"):
            assert self.gate.wait(60)


@pytest.mark.parametrize("operation", ["open_write", "write", "commit"])
def test_a_backup_location_that_hangs_keeps_nobody(
    make_manager: MakeManager, plan: FaultPlan, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Saves and retention go on, and so does the last save; the backups are made when the location answers again."""
    monkeypatch.setattr(mirror, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(twin, "PATIENCE_SECONDS", 0.05)
    manager = make_manager(backup_deadline_seconds=0.2, max_checkpoints=2)
    hang = Hang(plan, operation)
    saved = [save(manager, epoch) for epoch in (1, 2, 3)]
    assert saved[-1] in ids(manager)
    assert len(ids(manager)) == 2
    with pytest.raises(SystemExit), manager.save_on_signal(lambda: {**vars(build()), "epoch": 4}):
        signal.raise_signal(signal.SIGTERM)
    assert manager.get_checkpoint("latest").epoch == 4
    hang.gate.set()
    until(lambda: manager.get_checkpoint("latest").checkpoint_id in backup_ids(manager))
    last = save(manager, 5)
    until(lambda: set(backup_ids(manager)) >= set(ids(manager)))
    assert is_sound(manager, last)


@pytest.mark.parametrize("operation", ["open_write", "write", "commit"])
def test_a_save_that_fails_leaves_no_backup(
    make_manager: MakeManager, plan: FaultPlan, store_path: Path, operation: str
) -> None:
    """A backup of a checkpoint that never was would be one that nobody trained."""

    def strike(asked: str, key: str) -> None:
        if asked == operation and key.endswith(".pt") and not key.startswith(BACKUPS):
            raise StoreError("injected", path=key)

    manager = make_manager()
    plan.between = strike
    with pytest.raises(StoreError, match="injected"):
        save(manager, 1)
    plan.between = None
    saved = save(manager, 2)
    assert backup_ids(manager) == ids(manager) == [saved]
    until(lambda: len([name for name in snapshot(store_path) if name.endswith(".pt")]) == 2)
    assert [thread for thread in threading.enumerate() if thread.name == "ckpt-twin"] == []


def test_where_there_is_no_room_for_both_the_backup_waits(
    make_manager: MakeManager, plan: FaultPlan, store_path: Path
) -> None:
    """The room is the checkpoint's: on one disk, the two would take it from each other."""
    size_bytes = payload_path(manager := make_manager(), save(manager, 1)).stat().st_size
    manager = make_manager("other", backup_checkpoints=True)
    plan.calls.clear()
    plan.quota_bytes = plan.used_bytes + size_bytes * 3 // 2 + 2**15
    saved = save(manager, 1)
    assert ids(manager) == [saved]
    assert manager.validate_checkpoint(saved)
    written = [call for call in plan.calls if call.endswith(".pt") and call.startswith(("open_write", "commit"))]
    assert written[:2] == [f"open_write other/{saved}.pt", f"commit other/{saved}.pt"]


def test_a_repeated_save_writes_nothing(make_manager: MakeManager, plan: FaultPlan) -> None:
    """Neither at home nor in the backups."""
    manager = make_manager()
    saved = save(manager, 1, idempotency_key="once")
    plan.calls.clear()
    assert save(manager, 1, idempotency_key="once") == saved
    assert payload_calls(plan, "open_write") == []
