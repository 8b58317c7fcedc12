"""What the doctor fixes: for good, from whatever is left, beside a training, and again after a kill."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import NotACheckpointError, StoreError
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.layout import key_name
from ckpt_lib.maintenance.findings import Treatment
from tests.helpers import (
    MakeManager,
    experiment_folder,
    flip_bit,
    ids,
    leave_unfinished,
    manifest_path,
    payload_path,
    save,
    start_python,
    truncate,
)
from tests.killer import Killer
from tests.maintenance.doctoring import cured, kinds, looked_at


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "missing", "manifest"])
@pytest.mark.parametrize("side", ["checkpoints", "backups"])
def test_damage_is_repaired_from_the_other_copy(manager: CheckpointManager, side: str, damage: str) -> None:
    """On either side; what only all bytes tell is found when they are read."""
    checkpoint_id = save(manager, 1)
    folder = experiment_folder(manager) / ("backups" if side == "backups" else "")
    inflict(damage, folder / f"{checkpoint_id}.pt")
    if damage == "flip":
        assert manager.doctor().is_healthy
    report = looked_at(manager, deep=True)
    assert [(item.kind, item.place) for item in report.findings if item.kind != "stale snapshot"] == [("damaged", side)]
    assert cured(manager, deep=True).is_healthy
    assert manager.validate_checkpoint(checkpoint_id)
    assert manager.validate_backup(checkpoint_id)


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "missing"])
def test_what_cannot_be_repaired_is_set_aside(alone: CheckpointManager, damage: str) -> None:
    """It is a problem until a person decides, and no fix goes round in circles over it."""
    lost, other = save(alone, 1), save(alone, 2)
    inflict(damage, payload_path(alone, lost))
    report = cured(alone, deep=True)
    assert [item.kind for item in report.problems] == ["quarantined"]
    assert report.problems[0].name == lost
    assert not report
    assert [item.checkpoint_id for item in alone.list_quarantined()] == [lost]
    assert ids(alone) == [other]
    alone.delete_quarantined(lost)
    assert cured(alone, deep=True).is_healthy


def inflict(damage: str, payload: Path) -> None:
    match damage:
        case "flip":
            flip_bit(payload, 200)
        case "truncate":
            truncate(payload, 100)
        case "extend":
            payload.write_bytes(payload.read_bytes() + b"x")
        case "missing":
            payload.unlink()
        case "manifest":
            flip_bit(payload.with_suffix(".json"), 40)


def test_a_missing_backup_is_made(make_manager: MakeManager) -> None:
    """Of a checkpoint that is whole."""
    manager = make_manager(backup_checkpoints=True)
    checkpoint_id = save(manager, 1)
    for suffix in (".pt", ".json"):
        (experiment_folder(manager) / "backups" / f"{checkpoint_id}{suffix}").unlink()
    assert kinds(looked_at(manager)) == ["no backup"]
    assert cured(manager).is_healthy
    assert manager.validate_backup(checkpoint_id)


def test_a_checkpoint_that_turns_out_damaged_while_it_is_backed_up(manager: CheckpointManager) -> None:
    """Is set aside: nobody has what it lacks."""
    save(manager, 1)
    checkpoint_id = save(manager, 2)
    for suffix in (".pt", ".json"):
        (experiment_folder(manager) / "backups" / f"{checkpoint_id}{suffix}").unlink()
    flip_bit(payload_path(manager, checkpoint_id), 200)
    assert [item.kind for item in cured(manager).problems] == ["quarantined"]


def test_what_was_set_aside_comes_back_when_a_backup_turns_up(make_manager: MakeManager, tmp_path: Path) -> None:
    """The doctor tries it; not before."""
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    checkpoint_id = save(manager, 1)
    (tmp_path / "backups").rename(tmp_path / "away")
    truncate(payload_path(manager, checkpoint_id), 10)
    assert [item.kind for item in cured(manager).problems] == ["quarantined"]
    (tmp_path / "away").rename(tmp_path / "backups")
    assert cured(manager).is_healthy
    assert manager.validate_checkpoint(checkpoint_id)


def test_a_damaged_pointer_is_mended(alone: CheckpointManager) -> None:
    """So that what it stands for need not be looked for each time; one that stands for nothing goes."""
    kept = str(alone.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=1, idempotency_key="kept"))
    lost = str(alone.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=2, idempotency_key="lost"))
    pointers = {name: experiment_folder(alone) / key_name(name) for name in ("kept", "lost")}
    for path in pointers.values():
        flip_bit(path, 0)
    alone.delete_checkpoint(lost)
    alone.empty_trash()
    assert kinds(looked_at(alone)).count("damaged pointer") == 2
    assert cured(alone).is_healthy
    assert json.loads(pointers["kept"].read_bytes())["checkpoint_id"] == kept
    assert not pointers["lost"].exists()


def test_a_stale_snapshot_is_written_anew(alone: CheckpointManager) -> None:
    """Missing, old or damaged: nothing goes by it, so it is no problem."""
    save(alone, 1)
    path = experiment_folder(alone) / "checkpoint_metadata.json"
    good = path.read_bytes()
    for data in (None, b"", good[:-1] + b" ", good + b"x"):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        report = looked_at(alone)
        assert kinds(report) == ["stale snapshot"]
        assert report.is_healthy
        assert cured(alone).findings == ()
        assert path.read_bytes() == good


SAVES = """
import sys
from torch import nn
from ckpt_lib import CheckpointConfig, CheckpointManager

manager = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1], max_checkpoints=4, trash_seconds=0), "run")
for epoch in range(1, 41):
    print(manager.save_checkpoint(model=nn.Linear(2, 1), epoch=epoch, metrics={"val_loss": 1 / epoch}), flush=True)
"""


def test_it_runs_beside_a_training(make_manager: MakeManager) -> None:
    """Nothing of the training's is taken for a leftover, and no save fails."""
    manager = make_manager(max_checkpoints=4, trash_seconds=0)
    child = start_python(SAVES, manager.config.checkpoint_dir)
    done: list[Treatment] = []
    while child.poll() is None:
        with contextlib.suppress(NotACheckpointError):  # before the first save
            done += manager.doctor(fix=True, deep=True).done
    output, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors
    saved = output.split()
    assert len(saved) == 40
    assert ids(manager)[-1] == saved[-1]
    assert {item.finding.kind for item in done} <= {"no backup", "stale snapshot", "half deletion"}
    assert cured(manager, deep=True).is_healthy


def test_killed_at_every_step_the_next_fix_does_the_rest(make_manager: MakeManager, killer: Killer) -> None:
    """Wherever it stopped, nothing is lost; a copy that did not come back is told of, and a restore brings it back."""
    for step in range(1, 80):
        manager = make_manager(f"run{step}", backup_checkpoints=True, trash_seconds=0)
        damaged, unreadable, lonely = (save(manager, epoch) for epoch in (1, 2, 3))
        leave_unfinished(experiment_folder(manager))
        truncate(payload_path(manager, damaged), 10)
        manifest_path(manager, unreadable).write_text("{")
        manager.delete_backup(lonely)
        was_killed = killer.kills(manager, "doctor", step, fix=True, deep=True)
        report = cured(manager, deep=True)
        assert report.is_healthy
        for finding in report.findings:
            assert (finding.kind, finding.name) == ("backup only", unreadable)
            manager.restore_checkpoint(unreadable)
        assert ids(manager) == [damaged, unreadable, lonely]
        if not was_killed:
            break
    else:
        pytest.fail("it never came to its end")


def test_a_fix_that_fails_stops_no_other(make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is told of."""
    manager = make_manager(backup_checkpoints=True)
    lost, lonely = save(manager, 1), save(manager, 2)
    flip_bit(payload_path(manager, lost), 200)
    flip_bit(experiment_folder(manager) / "backups" / f"{lost}.pt", 200)
    manager.delete_backup(lonely)

    def failing(*_: Any, **options: Any) -> None:
        raise StoreError("the disk")

    monkeypatch.setattr(edits, "quarantine", failing)
    report = manager.doctor(fix=True, deep=True)
    outcomes = {(item.finding.kind, item.finding.name): item.succeeded for item in report.done}
    assert outcomes["damaged", lost] is False
    assert outcomes["no backup", lonely] is True
