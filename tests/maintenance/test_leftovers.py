"""What dead processes and deletions leave: it is swept, and nothing of the living goes with it."""

from __future__ import annotations

import json
import os
import signal
from datetime import UTC, datetime

import pytest

from ckpt_lib import CheckpointManager
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    ids,
    leave_unfinished,
    manifest_path,
    payload_path,
    save,
    start_python,
)
from tests.maintenance.records import manifest_in

_HANGING_SAVE = """
import sys, time
import torch
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.store.local.upload import LocalUpload

def hang(self, data):
    print("writing", flush=True)
    time.sleep(600)

LocalUpload.write = hang
CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run").save_checkpoint(
    model=torch.nn.Linear(100, 100), epoch=7, metrics={"val_loss": 0.1}
)
"""


@pytest.mark.skipif(os.name != "posix", reason="killing a process at once is a matter of POSIX signals")
def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_are_not(unlimited: CheckpointManager) -> None:
    """A save under way is left alone; once its process is killed in the middle of it, its claim ends."""
    saved = save(unlimited, 1)
    child = start_python(_HANGING_SAVE, unlimited.config.checkpoint_dir)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n", child.communicate()[1]
        (claim,) = experiment_folder(unlimited).glob("checkpoint_epoch_0007_*.json")
        assert unlimited.cleanup_checkpoints().swept == ()
        save(unlimited, 2)
        assert json.loads(claim.read_text())["state"] == "saving"
        assert [item.epoch for item in unlimited.list_checkpoints()] == [1, 2]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert unlimited.cleanup_checkpoints().swept == (claim.stem,)
    assert json.loads(claim.read_text())["state"] == "gone"
    assert [item.epoch for item in unlimited.list_checkpoints()] == [1, 2]
    assert unlimited.validate_checkpoint(saved)


def test_saves_sweep_leftovers_by_themselves(unlimited: CheckpointManager) -> None:
    """No one has to call cleanup: the first save of a process removes what a dead one left."""
    save(unlimited, 1)
    leftover = experiment_folder(unlimited) / f"{leave_unfinished(experiment_folder(unlimited))}.pt"
    save(CheckpointManager(unlimited.config, unlimited.experiment_name), 2)
    assert not leftover.exists()


def test_a_deletion_whose_time_is_over_is_finished(unlimited: CheckpointManager) -> None:
    """The payload is removed then; nobody saw half a checkpoint."""
    saved = [save(unlimited, epoch) for epoch in (1, 2)]
    folder, path = experiment_folder(unlimited), manifest_path(unlimited, saved[0])
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    path.write_bytes(manifest_in(path).changed(state="deleted", deleted_at=long_ago).to_bytes())
    assert ids(unlimited) == saved[1:]
    report = unlimited.cleanup_checkpoints()
    assert (report.expired_ids, report.swept) == ((saved[0],), ())
    assert report.expired_bytes > 0
    assert [path.name for path in folder.glob("*.pt")] == [f"{saved[1]}.pt"]


def test_a_deletion_that_did_not_take_effect_changes_nothing(unlimited: CheckpointManager) -> None:
    """Killed before it was decided, the checkpoint is there for everyone."""
    saved = save(unlimited, 1)
    path = manifest_path(unlimited, saved)
    path.write_bytes(manifest_in(path).changed(state="leaving").to_bytes())
    unlimited.cleanup_checkpoints()
    assert ids(unlimited) == [saved]
    assert unlimited.validate_checkpoint(saved)


def test_the_last_one_that_a_person_deletes_does_not_come_back(make_manager: MakeManager) -> None:
    """It is what was asked for: no cleanup undoes it, and no cleanup removes its bytes while nothing else is left."""
    manager = make_manager(backup_checkpoints=False, trash_seconds=0)
    saved = save(manager, 1)
    manager.delete_checkpoint(saved)
    manager.cleanup_checkpoints()
    assert ids(manager) == []
    assert manager.undelete_checkpoint(saved).checkpoint_id == saved
    manager.delete_checkpoint(saved)
    assert manager.empty_trash() == [saved]
    assert not payload_path(manager, saved).exists()


def test_deletion_is_complete(unlimited: CheckpointManager) -> None:
    """A deleted checkpoint leaves no payload, and is gone for every reader; its backup can still be restored."""
    saved = save(unlimited, 1)
    unlimited.backup_checkpoint(saved)
    assert unlimited.delete_checkpoint("latest") == saved
    leftover = experiment_folder(unlimited) / f"{leave_unfinished(experiment_folder(unlimited))}.pt"
    assert unlimited.empty_trash() == [saved]
    assert not leftover.exists()
    assert not list(experiment_folder(unlimited).glob("*.pt"))
    assert backup_ids(unlimited) == [saved]
    assert unlimited.get_latest_checkpoint() is None
    assert unlimited.restore_checkpoint(saved).checkpoint_id == saved
