"""Backups in the background: training does not wait, the newest comes first, and none is forgotten."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import StoreError, StoreUnavailableError
from ckpt_lib.saving import backups
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import MakeManager, backup_ids, build, flip_bit, ids, run_python, save


class Vault:
    """A backup location that can be held up, or made to fail, while the store works."""

    def __init__(self, make_manager: MakeManager, url: str, plan: FaultPlan) -> None:
        self._make, self.url, self.plan = make_manager, url, plan
        self.open = threading.Event()
        self.open.set()
        self.is_asked = threading.Event()
        plan.between = self._wait

    def manager(self, **options: Any) -> CheckpointManager:
        """A manager like that of a new process."""
        return self._make(**{"backup_dir": self.url, "backup_mode": "background", **options})

    def _wait(self, operation: str, _key: str) -> None:
        if operation == "open_write":
            self.is_asked.set()
            assert self.open.wait(60)

    def fail(self, error: type[StoreError] = StoreUnavailableError, times: int | None = None) -> None:
        """Let the next upload fail, or all."""
        self.plan.calls.clear()
        self.plan.only, self.plan.error = frozenset({"open_write"}), error
        self.plan.fail_at, self.plan.persistent = 1, times is None

    def answer(self) -> None:
        self.plan.fail_at = 0


@pytest.fixture
def vault(make_manager: MakeManager, store_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(backups, "RETRY_DELAYS_SECONDS", (0.01, 0.01))
    plan = FaultPlan()
    with faults_injected(plan, scheme="memory"):
        held = Vault(make_manager, f"memory://{store_path.parent.name}", plan)
        yield held
        held.open.set()


def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that nobody tells of."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_save_does_not_wait_for_its_backup(vault: Vault, in_background: bool) -> None:
    """The call returns once the checkpoint is safe at home; flush waits for the backup as well."""
    manager = vault.manager()
    vault.open.clear()
    handle = manager.save_checkpoint_async(**build().kwargs(), epoch=1) if in_background else None
    saved = str(handle.result(30)) if handle else save(manager, 1)
    assert vault.is_asked.wait(30)
    assert ids(manager) == [saved]
    assert backup_ids(manager) == []
    assert manager.backup_status(saved).state == "local only"
    vault.open.set()
    manager.flush()
    assert backup_ids(manager) == [saved]
    assert all(manager.validate_all_backups())


def test_a_blocking_backup_is_there_when_the_save_returns(vault: Vault) -> None:
    """Which is what backup_mode says by default."""
    manager = vault.manager(backup_mode="blocking")
    saved = save(manager, 1)
    assert backup_ids(manager) == [saved]


def test_the_status_says_what_was_read_back(make_manager: MakeManager, tmp_path: Path) -> None:
    """Written is not verified; what is written anew counts as not read; damage and silence are told."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    first, second = save(manager, 1), save(manager, 2)

    def states() -> list[str]:
        return [make_manager(backup_dir=str(tmp_path / "vault")).backup_status(item).state for item in (first, second)]

    assert states() == ["written", "written"]
    assert manager.validate_backup(first)
    assert states() == ["verified", "written"]
    assert manager.scrub()
    assert states() == ["verified", "verified"]
    payload = tmp_path / "vault" / "run" / f"{second}.pt"
    flip_bit(payload, 100)
    manager.repair_backup(second)
    assert states() == ["verified", "written"]
    assert [bool(report) for report in manager.validate_all_backups()] == [True, True]
    assert states() == ["verified", "verified"]
    payload.unlink()
    manager.delete_backup(first)
    assert states() == ["local only", "damaged"]


def test_a_status_without_an_answer_is_unknown(vault: Vault) -> None:
    """No error, and no claim that there is no backup."""
    manager = vault.manager(backup_mode="blocking")
    saved = save(manager, 1)
    assert manager.backup_status().state == "written"
    vault.plan.calls.clear()
    vault.plan.fail_at, vault.plan.persistent, vault.plan.error = 1, True, StoreUnavailableError
    assert manager.backup_status(saved).state == "unknown"
    vault.answer()


def test_a_location_that_does_not_answer_is_asked_again(vault: Vault) -> None:
    """What is over by the next attempt is no failure."""
    manager = vault.manager()
    vault.fail(times=1)
    saved = save(manager, 1)
    manager.flush()
    assert backup_ids(manager) == [saved]


def test_a_failure_is_raised_once_and_stops_no_save(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, by id, and raised by flush; the next save goes on as if nothing had been."""
    manager = vault.manager()
    vault.fail()
    first = save(manager, 1)
    until(lambda: f"backing up {first} failed" in caplog.text)
    second = save(manager, 2)
    until(lambda: f"backing up {second} failed" in caplog.text)
    with pytest.raises(StoreUnavailableError, match="injected"):
        manager.flush()
    manager.flush()
    assert ids(manager) == [first, second]


def test_the_next_backup_makes_up_for_those_that_failed(vault: Vault) -> None:
    """When the location is back, nothing is missing there, and there is no error left to raise."""
    manager = vault.manager()
    vault.fail()
    saved = [save(manager, epoch) for epoch in (1, 2)]
    with pytest.raises(StoreUnavailableError):
        manager.close()
    vault.answer()
    saved.append(save(manager, 3))
    manager.flush()
    assert backup_ids(manager) == saved


def test_flush_does_not_wait_for_ever(vault: Vault, caplog: pytest.LogCaptureFixture) -> None:
    """After the deadline it names what has no backup yet; a later process makes that with its first save."""
    manager = vault.manager(backup_deadline_seconds=0.2)
    vault.open.clear()
    saved = [save(manager, epoch) for epoch in (1, 2)]
    assert vault.is_asked.wait(30)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="ckpt_lib"):
        manager.flush()
    assert time.monotonic() - started < 20
    assert all(f"{checkpoint_id}" in caplog.text.partition("not backed up within")[2] for checkpoint_id in saved)
    vault.open.set()
    manager.flush()
    assert backup_ids(manager) == saved


def test_the_newest_comes_first_and_the_queue_has_an_end(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of what waits behind a slow backup the oldest is given up, by name, and made when nothing waits any more."""
    monkeypatch.setattr(backups, "MAX_WAITING", 2)
    manager = vault.manager()
    made: list[str] = []
    manager.on_event(
        lambda event: made.append(str(event.checkpoint_id)) if event.kind == "checkpoint.backed_up" else None
    )
    vault.open.clear()
    saved = [save(manager, 1)]
    assert vault.is_asked.wait(30)
    saved += [save(manager, epoch) for epoch in (2, 3, 4)]
    assert f"{saved[1]} has none for now" in caplog.text
    vault.open.set()
    manager.flush()
    assert made[:3] == [saved[0], saved[3], saved[2]]
    assert backup_ids(manager) == saved


def test_a_preempted_run_waits_for_its_last_backup(vault: Vault) -> None:
    """SIGTERM: the last checkpoint is saved, backed up, and then training ends."""
    manager, parts = vault.manager(), build()

    def stopped() -> None:
        with manager.save_on_signal(lambda: {**parts.kwargs(), "epoch": 3}):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        stopped()
    assert backup_ids(manager) == ids(manager) != []


_PROCESS = """
import os, sys, threading
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.experiment import copies
from tests.helpers import build

store, vault, end = sys.argv[1:]
config = CheckpointConfig(checkpoint_dir=store, backup_dir=vault, backup_mode="background")
manager = CheckpointManager(config, "run")
begun, copy_file = threading.Event(), copies._copy_file

def killed(*arguments):
    copy_file(*arguments)
    begun.set()
    threading.Event().wait(60)

if end == "killed":
    copies._copy_file = killed
print(manager.save_checkpoint(**build().kwargs(), epoch=1))
if end == "killed":
    assert begun.wait(60)
    sys.stdout.flush()
    os._exit(9)
"""


def test_the_end_of_a_process_waits_for_its_backups(
    make_manager: MakeManager, store_path: Path, tmp_path: Path
) -> None:
    """Also where nobody closes the manager."""
    saved = run_python(_PROCESS, store_path, tmp_path / "vault", "by itself").strip()
    assert backup_ids(make_manager(backup_dir=str(tmp_path / "vault"))) == [saved]


def test_a_kill_between_commit_and_backup_costs_neither(
    make_manager: MakeManager, store_path: Path, tmp_path: Path
) -> None:
    """The next process sees no half backup, and its first save makes up for the one that is missing."""
    with pytest.raises(AssertionError, match="exit code 9"):
        run_python(_PROCESS, store_path, tmp_path / "vault", "killed")
    manager = make_manager(backup_dir=str(tmp_path / "vault"), backup_mode="background")
    (first,) = ids(manager)
    assert backup_ids(manager) == []
    second = save(manager, 2)
    manager.flush()
    assert backup_ids(manager) == [first, second]
    assert all(manager.validate_all_backups())


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_at_any_operation_of_a_backup_harms_nothing(vault: Vault, when: Any) -> None:
    """Wherever it fails for good: the checkpoint is whole, no half backup is seen, and the next one makes up for it."""
    for number in range(1, 30):
        manager = vault.manager(experiment_name=f"run-{number}")
        vault.plan.calls.clear()
        vault.plan.failures = 0
        vault.plan.fail_at, vault.plan.persistent, vault.plan.when = number, True, when
        saved = save(manager, 1)
        manager._saver._post_save.backups.wait()
        failed, vault.plan.fail_at = vault.plan.failures, 0
        assert manager.validate_checkpoint(saved)
        assert all(manager.validate_all_backups())
        later = save(manager, 2)
        manager._saver._post_save.backups.wait()
        assert backup_ids(manager) == [saved, later]
        assert all(manager.validate_all_backups())
        if not failed:
            return
    pytest.fail("the backup did not come to its end")
