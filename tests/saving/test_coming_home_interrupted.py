"""Coming home, interrupted: killed or failing at any point, nothing is lost, and a rerun does the rest."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import StoreError
from ckpt_lib.experiment import claims
from ckpt_lib.experiment.copies import copy
from ckpt_lib.saving import fallback
from ckpt_lib.store.local import LocalStore
from tests.helpers import MakeManager, ids, save, start_python
from tests.saving.failing_stores import EIO, store_of, strand

pytestmark = pytest.mark.usefixtures("_no_waiting")


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
