"""Training on real disks that fill up, vanish and become read-only, mounted in a namespace of the test's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers import run_python

KINDS = ["checkpoint.reconciled", "checkpoint.stranded", "save.degraded", "store.full"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")

_BEGIN = """
import os, sys
from contextlib import suppress
from pathlib import Path
from tests.torture.namespaces import enter_namespace, mounted, read_only, resize, tmpfs
enter_namespace()

import torch
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.events import subscribe
from tests.helpers import Parts, build, fingerprint, train

disk, fallback = Path(sys.argv[1]) / "disk", Path(sys.argv[1]) / "fallback"
kinds = []
routine = ("checkpoint.saved", "checkpoint.validated", "checkpoint.deleted")
subscribe(lambda event: event.kind in routine or kinds.append(event.kind))

def manager_of(**options):
    given = dict(checkpoint_dir=str(disk / "store"), fallback_dir=str(fallback), max_checkpoints=1000)
    given |= dict(backup_checkpoints=False, on_save_failure="warn")
    return CheckpointManager(CheckpointConfig(**given | options), "run")

def fill(path):
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))

def check(manager, acknowledged):
    assert manager.list_stranded() == [], manager.list_stranded()
    assert [item.checkpoint_id for item in manager.list_checkpoints()] == list(acknowledged)
    for checkpoint_id, state in acknowledged.items():
        assert fingerprint(manager.load_checkpoint(checkpoint_id)["model_state_dict"]) == state, checkpoint_id
"""


def test_a_run_survives_its_disk_filling_up_and_being_freed(tmp_path: Path) -> None:
    """No exception in the loop; each id that a save returned can be loaded with what was saved; all come home in order.

    Blocking saves and background saves by turns. Another program fills the disk before the eighth epoch, and removes
    its file before the sixteenth; from the twentieth on the run fills it by itself, and before the thirtieth it grows.
    """
    code = """
parts, acknowledged, stranded = build(width=512), {}, 0
with tmpfs(disk, 3 * 2**20):
    with manager_of() as manager:
        for epoch in range(40):
            if epoch == 8:
                fill(disk / "other")
            if epoch == 16:
                (disk / "other").unlink()
            if epoch == 30:
                resize(disk, 64 * 2**20)
            train(parts, [epoch])
            state = fingerprint(parts.model.state_dict())
            if epoch % 2:
                checkpoint_id = manager.save_checkpoint(**parts.kwargs(), epoch=epoch)
            else:
                checkpoint_id = manager.save_checkpoint_async(**parts.kwargs(), epoch=epoch).result()
            assert checkpoint_id is not None, epoch
            acknowledged[checkpoint_id] = state
            manager.flush()
            stranded = max(stranded, len(manager.list_stranded()))
            if epoch in (15, 29):
                assert stranded > 5
                again = build(seed=1, width=512)
                found = manager_of().resume(again.model)
                assert found["epoch"] == epoch
                assert fingerprint(again.model.state_dict()) == state
    check(manager_of(), acknowledged)
    print(len(acknowledged), sorted(set(kinds)))
"""
    assert run_python(_BEGIN + code, tmp_path) == f"40 {KINDS}\n"


def test_without_a_fallback_folder_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    """``None`` tells; what was acknowledged stays; saves go on when there is room."""
    code = """
parts, acknowledged, refused = build(width=512), {}, 0
with tmpfs(disk, 2**20), manager_of(fallback_dir=None) as manager:
    for epoch in range(30):
        train(parts, [epoch])
        if epoch == 25:
            resize(disk, 64 * 2**20)
        checkpoint_id = manager.save_checkpoint(**parts.kwargs(), epoch=epoch)
        if checkpoint_id is None:
            refused += 1
        else:
            acknowledged[checkpoint_id] = fingerprint(parts.model.state_dict())
    check(manager, acknowledged)
    print(refused > 5, manager.get_latest_checkpoint().epoch, set(kinds) == {"store.full", "save.failed"})
"""
    assert run_python(_BEGIN + code, tmp_path) == "True 29 True\n"


def test_the_policy_makes_room_on_a_disk_that_another_program_filled(tmp_path: Path) -> None:
    """To the last byte: what was deleted is removed, and commands that delete work where nothing can be written."""
    code = """
with tmpfs(disk, 2 * 2**20):
    manager = manager_of(fallback_dir=None, on_save_failure="raise", save_metadata=False)
    model = nn.Linear(300, 300)
    saved = [manager.save_checkpoint(model=model, epoch=epoch) for epoch in range(4)]
    fill(disk / "other")
    manager.delete_checkpoint(saved[0])
    assert manager.undelete_checkpoint(saved[0]).checkpoint_id == saved[0]
    manager.delete_checkpoint(saved[0])
    manager.delete_checkpoint(saved[1])
    saved.append(manager.save_checkpoint(model=model, epoch=4))
    assert [item.checkpoint_id for item in manager.list_checkpoints()] == saved[2:]
    assert all(manager.validate_all())
    assert saved[0] not in [item.checkpoint_id for item in manager.list_deleted()]
    print(kinds)
"""
    assert run_python(_BEGIN + code, tmp_path) == "['store.full', 'store.reclaimed']\n"


def test_a_disk_that_is_unmounted_and_comes_back(tmp_path: Path) -> None:
    """Nothing is written to the empty folder below, where it would be hidden; all comes home to the disk."""
    code = """
parts, acknowledged = build(), {}
device = Path(sys.argv[1]) / "device"

def save(manager, epoch):
    train(parts, [epoch])
    checkpoint_id = manager.save_checkpoint(**parts.kwargs(), epoch=epoch)
    acknowledged[checkpoint_id] = fingerprint(parts.model.state_dict())

with tmpfs(device, 8 * 2**20):
    manager = manager_of()
    with mounted(device, disk):
        save(manager, 1)
        save(manager, 2)
    for epoch in (3, 4):
        save(manager, epoch)
    assert list(disk.iterdir()) == []
    print(len(manager.list_stranded()))
    with mounted(device, disk):
        save(manager, 5)
        check(manager_of(), acknowledged)
        print([item.sequence for item in manager.list_checkpoints()])
"""
    assert run_python(_BEGIN + code, tmp_path) == "2\n[1, 2, 3, 4, 5]\n"


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    """As after an error of the file system: what is there can be loaded, what is saved is stranded."""
    code = """
parts, acknowledged = build(), {}
with tmpfs(disk, 8 * 2**20):
    manager = manager_of()
    for epoch in range(6):
        train(parts, [epoch])
        state = fingerprint(parts.model.state_dict())
        if epoch in (2, 3):
            with read_only(disk):
                checkpoint_id = manager.save_checkpoint(**parts.kwargs(), epoch=epoch)
                assert manager.load_checkpoint(list(acknowledged)[0])["epoch"] == 0
                assert manager_of().resume()["epoch"] == epoch
        else:
            checkpoint_id = manager.save_checkpoint(**parts.kwargs(), epoch=epoch)
        acknowledged[checkpoint_id] = state
    check(manager_of(), acknowledged)
    print(kinds.count("checkpoint.stranded"), kinds.count("checkpoint.reconciled"))
"""
    assert run_python(_BEGIN + code, tmp_path) == "2 2\n"
