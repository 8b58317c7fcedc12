"""A thinned checkpoint and its copies: each is judged by its own digests, and none is replaced by less unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointExistsError, CorruptCheckpointError, ProtectedCheckpointError
from ckpt_lib.experiment.copies import copy
from tests.helpers import build, experiment_folder, flip_bit, ids, payload_path
from tests.maintenance.test_thin import home_of, manifest_of, named, payloads, save_parts

OPTIMIZER = "optimizer_state_dict"


@pytest.fixture
def saved(backed_up: CheckpointManager) -> tuple[CheckpointManager, str]:
    """A manager with two checkpoints that have backups; the older one is named."""
    first, _ = (save_parts(backed_up, build(), epoch) for epoch in (1, 2))
    return backed_up, first


def backup_path(manager: CheckpointManager, checkpoint_id: str) -> Path:
    backups = manager._locations.backups
    return Path(backups.location(backups.get(checkpoint_id).payload_name).removeprefix("file://"))


def test_the_backup_stays_full(saved: tuple[CheckpointManager, str]) -> None:
    """It is a backup still: no other one is made, each validates, and the doctor is content."""
    manager, first = saved
    before = manager.get_backup(first)
    manager.thin_checkpoint(first)
    assert manager.backup_checkpoint(first) is False
    assert manager.backup_checkpoint(first, verify_existing=True) is False
    assert manager.get_backup(first) == before
    assert manager.validate_checkpoint(first)
    assert manager.validate_backup(first)
    assert manager.scrub()
    assert manager.doctor(deep=True).is_healthy


def test_a_restore_brings_everything_back(saved: tuple[CheckpointManager, str]) -> None:
    """Long after the trash was emptied; tags that were given meanwhile stay."""
    manager, first = saved
    before = manager.get_checkpoint(first)
    manager.thin_checkpoint(first)
    manager.empty_trash()
    manager.edit_checkpoint(first, add_tags=["later"])
    restored = manager.restore_checkpoint(first)
    assert (restored.is_thinned, restored.checksum, restored.tags) == (False, before.checksum, ("later",))
    assert manager.load_checkpoint(first)[OPTIMIZER] is not None
    manager.empty_trash()
    assert payloads(manager) - {name for name in payloads(manager) if name.startswith("backups")} == named(manager)


def test_a_deleted_one_is_restored_as_its_backup_is(saved: tuple[CheckpointManager, str]) -> None:
    """From the trash, and when it is gone."""
    manager, first = saved
    manager.thin_checkpoint(first)
    manager.delete_checkpoint(first)
    assert not manager.restore_checkpoint(first).is_thinned
    manager.thin_checkpoint(first)
    manager.delete_checkpoint(first)
    manager.empty_trash()
    assert not manager.restore_checkpoint(first).is_thinned
    assert manager.load_checkpoint(first)[OPTIMIZER] is not None


def test_a_thinned_one_is_not_repaired_from_other_bytes(saved: tuple[CheckpointManager, str]) -> None:
    """The repair says why, the doctor does not promise one, and a restore helps."""
    manager, first = saved
    manager.thin_checkpoint(first)
    manager.empty_trash()
    flip_bit(experiment_folder(manager) / manifest_of(manager, first).payload_name, 2_000)
    with pytest.raises(CorruptCheckpointError, match="one of the two was thinned"):
        manager.repair_checkpoint(first)
    assert [item.action for item in manager.doctor(deep=True).problems] == ["quarantine"]
    manager.quarantine_checkpoint(first)
    assert not manager.restore_checkpoint(first).is_thinned
    assert manager.validate_checkpoint(first)
    assert first in ids(manager)


def test_a_full_backup_is_not_repaired_from_weights(saved: tuple[CheckpointManager, str]) -> None:
    """Nor replaced: what is left of it is for a person to give up."""
    manager, first = saved
    manager.thin_checkpoint(first)
    manager.empty_trash()
    flip_bit(backup_path(manager, first), 2_000)
    damaged = backup_path(manager, first).read_bytes()
    with pytest.raises(CorruptCheckpointError, match="one of the two was thinned"):
        manager.repair_backup(first)
    with pytest.raises(CorruptCheckpointError, match="one of the two was thinned"):
        manager.backup_checkpoint(first, verify_existing=True)
    assert backup_path(manager, first).read_bytes() == damaged
    manager.delete_backup(first)
    assert manager.backup_checkpoint(first)
    assert manager.get_backup(first).is_thinned


def test_the_trash_of_one_repairs_the_other(saved: tuple[CheckpointManager, str]) -> None:
    """What a checkpoint was thinned of still has the bytes that its damaged backup lacks."""
    manager, first = saved
    manager.thin_checkpoint(first)
    flip_bit(backup_path(manager, first), 2_000)
    assert manager.repair_backup(first).damages
    assert manager.validate_backup(first)


def test_both_thinned_are_copies_again(saved: tuple[CheckpointManager, str]) -> None:
    """They hold the same bytes, and one repairs the other."""
    manager, first = saved
    manager.thin_checkpoint(first)
    manager.thin_backup(first)
    manager.empty_trash()
    assert manager.get_backup(first).checksum == manager.get_checkpoint(first).checksum
    flip_bit(experiment_folder(manager) / manifest_of(manager, first).payload_name, 2_000)
    assert manager.repair_checkpoint(first).damages
    assert manager.validate_checkpoint(first)


def test_a_thinned_backup_replaces_nothing_that_is_whole(saved: tuple[CheckpointManager, str]) -> None:
    """A restore of it is refused, the doctor tells of it, and only a damaged checkpoint takes its weights."""
    manager, first = saved
    manager.thin_backup(first)
    with pytest.raises(ProtectedCheckpointError, match="holds less"):
        manager.restore_checkpoint(first)
    assert manager.backup_checkpoint(first) is False
    assert [item.kind for item in manager.doctor().findings] == ["thinned"]
    flip_bit(payload_path(manager, first), -2_000)
    assert manager.restore_checkpoint(first).is_thinned
    assert manager.validate_checkpoint(first)
    with pytest.raises(CorruptCheckpointError):
        manager.unthin_checkpoint(first)


def test_what_has_no_backup_gets_one_of_its_weights(saved: tuple[CheckpointManager, str]) -> None:
    """It names neither the trash of its checkpoint nor what is being written there, and comes back thinned."""
    manager, first = saved
    manager.delete_backup(first)
    manager.thin_checkpoint(first)
    assert manager.backup_checkpoint(first)
    backup = manager._locations.backups.get(first)
    assert (backup.obsolete, backup.next) == ((), None)
    manager.delete_checkpoint(first)
    manager.empty_trash()
    assert manager.restore_checkpoint(first).is_thinned
    assert manager.resume() is not None


def test_exports_and_imports_keep_the_two_apart(saved: tuple[CheckpointManager, str], tmp_path: Path) -> None:
    """An export of the one is not overwritten by the other; what was imported says what it holds."""
    manager, first = saved
    full, weights = tmp_path / "full", tmp_path / "weights"
    manager.export_checkpoint(first, full)
    manager.thin_checkpoint(first)
    with pytest.raises(CheckpointExistsError, match="thinned"):
        manager.export_checkpoint(first, full)
    manager.export_checkpoint(first, weights)
    other = CheckpointManager(manager.config, "other")
    imported = other.import_checkpoint(weights)
    assert other.get_checkpoint(imported).is_thinned
    assert other.import_checkpoint(weights) == imported
    with pytest.raises(CheckpointExistsError, match="thinned"):
        other.import_checkpoint(full)
    assert other.validate_checkpoint(imported)


def test_what_comes_home_finds_its_thinned_copy(backed_up: CheckpointManager, tmp_path: Path) -> None:
    """A checkpoint that is home, and thinned there, is not brought once more."""
    config = backed_up.config.model_copy(update={"fallback_dir": str(tmp_path / "fallback")})
    manager = CheckpointManager(config, "run")
    first, _ = (save_parts(manager, build(), epoch) for epoch in (1, 2))
    stranded = manager._locations.fallback
    assert stranded is not None
    home = home_of(manager)
    copy(home, home.get(first), stranded)
    manager.thin_checkpoint(first)
    report = manager.reconcile()
    assert report.already_home == {first: first}
    assert manager.list_stranded() == []
    assert manager.get_checkpoint(first).is_thinned
