"""Disks that give other bytes back than were written: with ``verify_after_write`` nothing of that is acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.testing import BitFlip, FaultPlan, faults_injected
from tests.helpers import MakeManager, ids, save


def _flip(offset_bytes: int = 900) -> FaultPlan:
    """One wrong bit in each payload that is written from now on."""
    return FaultPlan(write_flips=[BitFlip(offset_bytes, bit=5, key="*.pt")])


@pytest.mark.parametrize(("width", "offset_bytes"), [(10, 900), (3_000_000, 7_000_000)])
def test_a_save_that_went_wrong_on_the_way_is_refused(make_manager: MakeManager, width: int, offset_bytes: int) -> None:
    """Small and in several chunks: the error says what is wrong, nothing is left, and the next save works."""
    manager = make_manager(verify_after_write=True, backup_checkpoints=False)
    save(manager, 1)
    model = torch.nn.Linear(width, 1)
    with faults_injected(_flip(offset_bytes)):
        failing = make_manager(verify_after_write=True, backup_checkpoints=False)
        with pytest.raises(CorruptCheckpointError, match="does not give back"):
            failing.save_checkpoint(model=model, epoch=2)
    assert len(ids(manager)) == 1
    saved = manager.save_checkpoint(model=model, epoch=2)
    payloads = sorted(path.name for path in Path(manager.config.checkpoint_dir).rglob("*.pt"))
    assert payloads == sorted(f"{item}.pt" for item in ids(manager))
    assert manager.validate_checkpoint(str(saved))


def test_training_may_go_on_without(make_manager: MakeManager) -> None:
    """As with any store that fails, when the caller chose that."""
    with faults_injected(_flip()):
        failing = make_manager(verify_after_write=True, on_save_failure="warn")
        assert failing.save_checkpoint(model=torch.nn.Linear(10, 1), epoch=1) is None
    assert ids(make_manager()) == []


def test_the_fallback_folder_takes_over(make_manager: MakeManager) -> None:
    """It is another disk, which is read back as well."""
    with faults_injected(_flip()):
        manager = make_manager(verify_after_write=True, fallback_dir="memory://takes-over")
        saved = manager.save_checkpoint(model=torch.nn.Linear(10, 1), epoch=1)
    assert [item.checkpoint_id for item in manager.list_stranded()] == [saved]
    assert manager.validate_checkpoint(str(saved))
    assert ids(manager) == []


def test_when_the_fallback_folder_fails_too_nothing_is_acknowledged(make_manager: MakeManager, tmp_path: Path) -> None:
    """It is read back like the store, and the caller is told."""
    with faults_injected(_flip()):
        manager = make_manager(verify_after_write=True, fallback_dir=str(tmp_path / "fallback"))
        with pytest.raises(CorruptCheckpointError, match="does not give back"):
            manager.save_checkpoint(model=torch.nn.Linear(10, 1), epoch=1)
    assert (ids(manager), manager.list_stranded()) == ([], [])


def test_without_reading_back_it_is_found_by_validation(make_manager: MakeManager) -> None:
    """The digests are of what was handed over, not of what was written."""
    with faults_injected(_flip()):
        save(make_manager(backup_checkpoints=False), 1)
    assert not make_manager().validate_checkpoint("latest")
