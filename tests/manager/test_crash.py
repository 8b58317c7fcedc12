"""Torn writes and failing disks, at the system calls of every operation. Kills are rows of the fault matrix."""

from __future__ import annotations

import errno
import os
import random
import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NotDurableError,
    StorageFullError,
    StoreError,
    StorePermissionError,
)
from tests.folders import memory_folder
from tests.torture import kill_methods
from tests.torture.kill_methods import Fault, injected
from tests.torture.kills import Campaign
from tests.torture.machine import another_process
from tests.torture.scenario import MODEL, OPERATIONS, PLAIN, Scenario, broken_promises, build_scenario

SAMPLE = 6
REASONS = {errno.ENOSPC: StorageFullError, errno.EIO: StoreError, errno.EACCES: StorePermissionError}


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder in memory, where there is one: a kill does not depend on a disk, and syncing to one takes its time."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder, kill_methods.one_thread():
        yield Path(folder)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    return Campaign(tmp_path)


OF_SEVERAL_FILES = ("save in the background", "save, back up, retire", "delete for good", "export", "import")
"""Operations that write or remove each file of a payload."""


def points(every: list[int], seed: str) -> list[int]:
    """The calls to strike at: a sample that always holds the first and the last ones."""
    ends = {*every[:1], *every[-SAMPLE // 2 :]}
    return sorted(ends | set(random.Random(seed).sample(every, min(SAMPLE, len(every)) - len(ends))))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_torn_write_harms_nothing(campaign: Campaign, name: str) -> None:
    """SIGKILL halfway through a write, of every operation; then everything goes on."""
    tear(campaign, name)


@pytest.mark.parametrize("name", [*OF_SEVERAL_FILES, "backup", "restore", "repair", "repair of a lost file"])
def test_a_torn_write_of_a_folder_harms_nothing(tmp_path: Path, name: str) -> None:
    """The same of a payload of several files, of which some are there and some are not."""
    tear(Campaign(tmp_path, "safetensors"), name)


def tear(campaign: Campaign, name: str) -> None:
    operation = OPERATIONS[name]
    called = kill_methods.functions_of(partial(operation.act, campaign.scenario()))
    every = [at for at, function in enumerate(called, start=1) if function in ("write", "pwrite")]
    assert every
    for at in points(every, name):
        scenario = campaign.scenario()
        fault = Fault(at, kill=True, torn=True)
        campaign.strike(
            f"at {at} of {len(called)}",
            operation,
            scenario,
            partial(kill_methods.struck, partial(operation.act, scenario), fault),
        )
    assert campaign.outcome.violations == []
    assert campaign.outcome.injected >= 1


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_error_at_any_system_call_harms_nothing(campaign: Campaign, name: str, persistent: bool) -> None:
    """ENOSPC, EIO, EACCES: the error of ours for it and no other; what came before is as it was, and all goes on."""
    operation, counted = OPERATIONS[name], Fault()
    with injected(counted):
        operation.act(campaign.scenario())
    for number, at in enumerate(points(list(range(1, len(counted.calls) + 1)), f"{name} {persistent}")):
        scenario, code = campaign.scenario(), list(REASONS)[number % len(REASONS)]
        fault = Fault(at, code=code, persistent=persistent)
        error = outcome(partial(operation.act, scenario), fault)
        where = (os.strerror(code), fault.hit, at, len(counted.calls))
        # Where the folder could not be synced, the name is there, and power loss may undo it.
        expected: list[type[CheckpointError]] = [REASONS[code], NotDurableError]
        if name.startswith("repair") and code == errno.EIO:
            expected.append(CorruptCheckpointError)  # bytes that neither copy's disk gives are damaged in both
        assert error is None or isinstance(error, tuple(expected)), where
        # What follows a save may fail and is logged, and so may the removal of what has expired.
        is_acknowledged = error is None and name not in ("save, back up, retire", "empty the trash")
        assert broken_promises(scenario, campaign.before, operation, is_acknowledged=is_acknowledged) == [], where


def outcome(action: Any, fault: Fault) -> CheckpointError | None:
    """The error of ours that an action ended in, in a process that is over then; any other comes out."""
    with injected(fault), another_process():
        try:
            action()
        except CheckpointError as error:
            return error
    return None


def test_an_fsync_that_failed_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fsync of the same bytes may succeed without having written them."""
    manager = build_scenario(tmp_path).manager()
    real, failed = os.fsync, []

    def fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        assert status.st_ino not in failed
        if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            failed.append(status.st_ino)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreError):
        manager.save_checkpoint(model=MODEL, epoch=2)
    assert len(failed) == 1


# --- what judges the others ---


@pytest.fixture
def scenario(campaign: Campaign) -> Scenario:
    return campaign.scenario()


def _alter(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda scenario: _alter(scenario.folder / f"{scenario.ids[PLAIN]}.pt"), "listed and broken"),
        (lambda scenario: (scenario.folder / f"{scenario.ids[PLAIN]}.json").unlink(), "^gone: checkpoint"),
        (lambda scenario: (scenario.folder / "notes.txt").unlink(), "gone: store/run/notes.txt"),
        (lambda scenario: _alter(scenario.folder / "backups" / f"{scenario.ids[-1]}.pt"), "a broken backup"),
        (lambda scenario: _alter(scenario.root / "exported" / f"{scenario.ids[PLAIN]}.pt"), "a broken copy"),
        (lambda scenario: _alter(scenario.folder / f"{scenario.trashed[0]}.pt"), "changed: store/run/"),
        (
            lambda scenario: (scenario.folder / "checkpoint_epoch_0007_step_000000_20200101_000000.pt").touch(),
            "left over",
        ),
    ],
)
def test_harm_is_seen(campaign: Campaign, scenario: Scenario, harm: Any, told: str) -> None:
    """Each thing that no kill may do is told by the judgement, here of a save that was not acknowledged."""
    save = OPERATIONS["save"]
    assert broken_promises(campaign.scenario(), campaign.before, save, is_acknowledged=False) == []
    harm(scenario)
    found = broken_promises(scenario, campaign.before, save, is_acknowledged=False)
    assert any(re.search(told, promise) for promise in found), found


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_false_acknowledgement_is_seen(campaign: Campaign, scenario: Scenario, name: str) -> None:
    """Of an operation that never began, the judgement says that it is not done."""
    found = broken_promises(scenario, campaign.before, OPERATIONS[name], is_acknowledged=True)
    assert any(re.search("acknowledged and not done|listed and broken|a check ended", promise) for promise in found)


def test_waiting_for_the_dead_is_seen(campaign: Campaign, scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery that takes longer than it may is told."""
    monkeypatch.setattr("tests.torture.scenario.PROMPT_SECONDS", 0.0)
    found = broken_promises(scenario, campaign.before, OPERATIONS["save"], is_acknowledged=False)
    assert any("what came next took" in promise for promise in found)


def test_a_child_that_fails_by_itself_is_a_violation(campaign: Campaign) -> None:
    """An exception in a child is not taken for a kill."""
    scenario = campaign.scenario()
    missing = partial(CheckpointManager.delete_checkpoint, scenario.manager(), "no-such")
    campaign.strike("delete", OPERATIONS["delete"], scenario, partial(kill_methods.killed_after, missing, 1.0))
    (violation,) = campaign.outcome.violations
    assert "CheckpointNotFoundError" in violation
    assert campaign.outcome.injected == 0
