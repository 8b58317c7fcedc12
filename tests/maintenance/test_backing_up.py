"""Backing up: each copy is whole and verified, and no failure costs what was there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointExistsError, CheckpointNotFoundError, CorruptCheckpointError, IntegrityError
from tests.helpers import (
    MakeManager,
    backup_ids,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    snapshot,
    truncate,
    without_locks,
)
from tests.maintenance.pairs import DAMAGES, backup_folder, backup_pair, pair
from tests.maintenance.records import manifest_in


def test_a_backup_is_a_whole_second_copy(backed_up: CheckpointManager) -> None:
    """The payload is there again, byte for byte, in a file of its own, and so are the facts in the manifest."""
    saved = save(backed_up, 1)
    (original, described), (copy, copied) = pair(backed_up, saved), backup_pair(backed_up, saved)
    assert copy.read_bytes() == original.read_bytes()
    assert not os.path.samefile(copy, original)
    assert manifest_in(copied).describe() == manifest_in(described).describe()
    assert backup_ids(backed_up) == [saved]
    assert backed_up.validate_backup(saved)
    assert ids(backed_up) == [saved]


def test_backing_up_again_changes_nothing(backed_up: CheckpointManager) -> None:
    """A copy that is there is left alone, and the call says so."""
    saved = save(backed_up, 1)
    before = without_locks(snapshot(backup_folder(backed_up)))
    assert backed_up.backup_checkpoint(saved) is False
    assert backed_up.backup_checkpoint(saved, verify_existing=True) is False
    assert without_locks(snapshot(backup_folder(backed_up))) == before


@pytest.mark.parametrize("kind", ["truncated", "payload missing", "manifest flipped", "manifest missing"])
def test_a_broken_backup_is_made_anew(backed_up: CheckpointManager, kind: str) -> None:
    """A backup that is half gone, or whose manifest cannot be read, does not count as one."""
    saved = save(backed_up, 1)
    DAMAGES[kind](*backup_pair(backed_up, saved))
    assert backed_up.backup_checkpoint(saved) is True
    assert backed_up.validate_backup(saved)


def test_a_rotten_backup_is_found_when_it_is_read(backed_up: CheckpointManager) -> None:
    """A flipped bit in the copy is reported, and verify_existing replaces it."""
    saved = save(backed_up, 1)
    flip_bit(backup_pair(backed_up, saved)[0], 99)
    assert not backed_up.validate_backup(saved)
    assert [bool(report) for report in backed_up.validate_all_backups()] == [False]
    assert backed_up.backup_checkpoint(saved, verify_existing=True) is True
    assert backed_up.validate_backup(saved)


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_never_reaches_a_good_backup(backed_up: CheckpointManager, kind: str) -> None:
    """Whatever becomes of a checkpoint, backing it up again does not touch the copy that is good."""
    saved = save(backed_up, 1)
    before = without_locks(snapshot(backup_folder(backed_up)))
    DAMAGES[kind](*pair(backed_up, saved))
    if kind == "flipped":  # which only shows when it is read
        assert backed_up.backup_checkpoint(saved) is False
    else:
        with pytest.raises((IntegrityError, CheckpointNotFoundError)):
            backed_up.backup_checkpoint(saved)
    with pytest.raises((IntegrityError, CheckpointNotFoundError)):
        backed_up.backup_checkpoint(saved, verify_existing=True)
    assert without_locks(snapshot(backup_folder(backed_up))) == before


@pytest.mark.parametrize("kind", ["flipped", "truncated", "payload missing"])
def test_damage_is_not_copied(make_manager: MakeManager, kind: str) -> None:
    """A damaged checkpoint without a backup gets none: the copy is refused and leaves nothing behind."""
    manager = make_manager(backup_checkpoints=False)
    saved = save(manager, 1)
    DAMAGES[kind](*pair(manager, saved))
    with pytest.raises(CorruptCheckpointError) as caught:
        manager.backup_checkpoint(saved)
    assert caught.value.damages
    assert backup_ids(manager) == []
    assert not list(backup_folder(manager).glob("*.pt"))


def test_a_broken_backup_stays_when_the_source_is_damaged_too(backed_up: CheckpointManager) -> None:
    """Half a backup is not replaced by a damaged original: what can still be mended stays as it is."""
    saved = save(backed_up, 1)
    truncate(backup_pair(backed_up, saved)[0], 500)
    flip_bit(payload_path(backed_up, saved), 700)
    before = snapshot(backup_folder(backed_up))
    with pytest.raises(CorruptCheckpointError):
        backed_up.backup_checkpoint(saved)
    assert without_locks(snapshot(backup_folder(backed_up))) == without_locks(before)


def test_a_different_checkpoint_in_the_backup_location_is_left_alone(make_manager: MakeManager, tmp_path: Path) -> None:
    """Two stores that share a backup location never overwrite each other's copies."""
    first = make_manager(backup_dir=str(tmp_path / "vault"), backup_checkpoints=False)
    second = make_manager(
        checkpoint_dir=str(tmp_path / "second"), backup_dir=str(tmp_path / "vault"), backup_checkpoints=False
    )
    saved = save(first, 1)
    theirs = save(second, 1)
    for ours, other in zip(pair(first, saved), pair(second, theirs), strict=True):
        other.unlink()
        shutil.copy(ours, other.with_name(ours.name))
    twin = manifest_path(second, saved)
    fields = manifest_in(twin)
    twin.write_bytes(fields.changed(uid="1" * 32).to_bytes())
    assert first.backup_checkpoint(saved)
    before = snapshot(tmp_path / "vault")
    with pytest.raises(CheckpointExistsError):
        second.backup_checkpoint(saved)
    with pytest.raises(CheckpointExistsError):
        second.restore_checkpoint(saved)
    assert without_locks(snapshot(tmp_path / "vault")) == without_locks(before)
