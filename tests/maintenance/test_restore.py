"""Restores: every damage is mended from a backup, and no failure costs what was there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Claim
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    IntegrityError,
    StorageFullError,
)
from ckpt_lib.experiment.files import replace_file
from ckpt_lib.maintenance import transfer
from ckpt_lib.store import Entry
from ckpt_lib.store.local import LocalStore
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import (
    MakeManager,
    backup_ids,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    snapshot,
    without_locks,
)
from tests.maintenance.pairs import DAMAGES, backup_folder, backup_pair, pair
from tests.maintenance.records import manifest_in


@pytest.mark.parametrize("kind", DAMAGES)
def test_restore_mends_every_damage(backed_up: CheckpointManager, kind: str) -> None:
    """Damaged, half gone or gone: afterwards the checkpoint is as it was saved, and so is its place in the order."""
    first, saved, last = (save(backed_up, epoch) for epoch in (1, 2, 3))
    original = payload_path(backed_up, saved).read_bytes()
    DAMAGES[kind](*pair(backed_up, saved))
    restored = backed_up.restore_checkpoint(saved)
    assert restored.checkpoint_id == saved
    payload = manifest_in(manifest_path(backed_up, saved)).payload.name
    assert (experiment_folder(backed_up) / payload).read_bytes() == original
    assert ids(backed_up) == [first, saved, last]
    assert all(backed_up.validate_all())


def test_a_retry_finds_what_was_purged_and_restored(backed_up: CheckpointManager) -> None:
    """A purge takes the idempotency key away; the key of a later save stays with that one."""

    def again(epoch: int, key: str) -> str:
        return str(backed_up.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=epoch, idempotency_key=key))

    lost, other = again(1, "k"), again(2, "taken")
    for checkpoint_id in (lost, other):
        backed_up.delete_checkpoint(checkpoint_id)
    backed_up.empty_trash()
    later = again(3, "taken")
    for checkpoint_id in (lost, other):
        backed_up.restore_checkpoint(checkpoint_id)
    assert again(1, "k") == lost
    assert again(2, "taken") == later
    assert sorted(ids(backed_up)) == sorted([lost, other, later])


def test_restore_after_a_deletion(backed_up: CheckpointManager) -> None:
    """A deleted checkpoint comes back, and no sweep of the deletion takes it again."""
    saved, kept = save(backed_up, 1), save(backed_up, 2)
    backed_up.delete_checkpoint(saved)
    assert ids(backed_up) == [kept]
    backed_up.restore_checkpoint(saved)
    backed_up.cleanup_checkpoints()
    assert ids(backed_up) == [saved, kept]
    assert backed_up.validate_checkpoint(saved)


@pytest.mark.parametrize("mark", ["deleted", "quarantined"])
def test_a_restore_that_fails_takes_nothing_from_the_trash_or_the_quarantine(
    backed_up: CheckpointManager, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    """The disk fills up between payload and manifest: the payload that was there has its name still, and is whole."""
    saved = save(backed_up, 1)
    wanted = payload_path(backed_up, saved).read_bytes()
    save(backed_up, 2)
    if mark == "deleted":
        backed_up.delete_checkpoint(saved)
    else:
        flip_bit(payload_path(backed_up, saved), 300)
        backup_pair(backed_up, saved)[0].rename(backup_folder(backed_up) / "away")
        assert backed_up.quarantine_checkpoint(saved).is_quarantined
        (backup_folder(backed_up) / "away").rename(backup_pair(backed_up, saved)[0])

    def full(*_: Any, **__: Any) -> Entry:
        raise StorageFullError("full")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put", full)
        with pytest.raises(StorageFullError):
            backed_up.restore_checkpoint(saved)
    backed_up.cleanup_checkpoints()
    assert payload_path(backed_up, saved).read_bytes() == wanted
    shutil.rmtree(backup_folder(backed_up))
    back = backed_up.undelete_checkpoint if mark == "deleted" else backed_up.repair_checkpoint
    back(saved)
    assert backed_up.validate_checkpoint(saved)


def test_a_restore_that_was_killed_does_not_take_the_backup(backed_up: CheckpointManager) -> None:
    """Its claim ends without a checkpoint, which is no deletion: the backup stays, and can be restored."""
    saved, _ = save(backed_up, 1), save(backed_up, 2)
    described = manifest_path(backed_up, saved)
    uid = manifest_in(described).uid
    payload_path(backed_up, saved).unlink()
    owner = Owner.current().model_copy(update={"started": "0"})  # its number was given to another process
    claim = Claim(
        checkpoint_id=saved, uid=uid, claim="0" * 16, state="saving", owner=owner, files=(f"{saved}.{'0' * 16}.pt",)
    )
    described.write_bytes(claim.to_bytes())
    assert saved in backed_up.cleanup_checkpoints().swept
    backed_up.cleanup_backups()
    assert saved in backup_ids(backed_up)
    backed_up.restore_checkpoint(saved)
    assert backed_up.validate_checkpoint(saved)


def test_restore_keeps_later_edits(backed_up: CheckpointManager) -> None:
    """Tags, description and pin of a readable manifest are not set back to those of the backup."""
    saved = save(backed_up, 1, tags=["old"], description="old")
    backed_up.edit_checkpoint(saved, add_tags=["new"], description="new")
    backed_up.pin_checkpoint(saved)
    flip_bit(payload_path(backed_up, saved), 64)
    restored = backed_up.restore_checkpoint("latest")
    assert (restored.tags, restored.description, restored.pinned) == (("old", "new"), "new", True)
    assert backed_up.validate_checkpoint(saved)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_bad_backup_changes_nothing(backed_up: CheckpointManager, kind: str) -> None:
    """A damaged or missing backup is refused, and the damaged checkpoint stays exactly as damaged as it was."""
    saved = save(backed_up, 1)
    flip_bit(payload_path(backed_up, saved), 64)
    DAMAGES[kind](*backup_pair(backed_up, saved))
    folders = experiment_folder(backed_up), backup_folder(backed_up)
    before = [without_locks(snapshot(folder)) for folder in folders]
    expected = CheckpointNotFoundError if kind in {"manifest missing", "both missing"} else IntegrityError
    with pytest.raises(expected):
        backed_up.restore_checkpoint(saved)
    assert [without_locks(snapshot(folder)) for folder in folders] == before


def test_a_bad_backup_does_not_cost_a_damaged_manifest(backed_up: CheckpointManager) -> None:
    """Where both are damaged, what is left of the manifest stays for a person to look at."""
    saved = save(backed_up, 1)
    payload, manifest = pair(backed_up, saved)
    manifest.write_bytes(manifest.read_bytes()[:-9])
    flip_bit(backup_pair(backed_up, saved)[0], 300)
    left = manifest.read_bytes()
    with pytest.raises(IntegrityError):
        backed_up.restore_checkpoint(saved)
    assert manifest.read_bytes() == left
    assert payload.is_file()


def test_a_record_that_was_repaired_meanwhile_is_kept(backed_up: CheckpointManager) -> None:
    """Somebody brings a damaged record back and pins it while the backup is read: the restore does not undo that."""
    saved = save(backed_up, 1)
    manifest = pair(backed_up, saved)[1]
    sound = manifest.read_bytes()
    manifest.write_bytes(sound[:-9])
    pinned: list[str] = []

    def pin(operation: str, key: str) -> None:
        if operation == "open_read" and key.endswith(".pt") and not pinned:
            pinned.append(key)
            manifest.write_bytes(sound)
            CheckpointManager(backed_up.config, backed_up.experiment_name).pin_checkpoint(saved)

    with faults_injected(FaultPlan(between=pin)):
        CheckpointManager(backed_up.config, backed_up.experiment_name).restore_checkpoint(saved)
    assert pinned
    assert backed_up.get_checkpoint(saved).pinned
    assert backed_up.validate_checkpoint(saved)


def test_restoring_an_intact_checkpoint_is_harmless(backed_up: CheckpointManager) -> None:
    """Nothing about it changes."""
    saved = save(backed_up, 1)
    before = [path.read_bytes() for path in pair(backed_up, saved)]
    backed_up.restore_checkpoint(saved)
    assert [path.read_bytes() for path in pair(backed_up, saved)] == before


def test_backups_elsewhere_survive_the_loss_of_the_experiment(make_manager: MakeManager, tmp_path: Path) -> None:
    """With the whole experiment folder gone, every backup comes back by its id, and the newest by itself."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    saved = [save(manager, epoch) for epoch in (1, 2)]
    shutil.rmtree(experiment_folder(manager))
    again = make_manager(backup_dir=str(tmp_path / "vault"))
    resumed = again.resume()
    assert resumed is not None  # and no run begins again as if nothing had been
    assert resumed["checkpoint_id"] == saved[1]
    for checkpoint_id in backup_ids(again):
        again.restore_checkpoint(checkpoint_id)
    assert ids(again) == saved
    assert again.resume() is not None


def test_a_restore_never_overwrites_another_checkpoint_of_that_id(manager: CheckpointManager) -> None:
    """As when the backup location is that of another run."""
    saved = save(manager, 1)
    described = manifest_path(manager, saved)
    described.write_bytes(manifest_in(described).changed(uid="0" * 32).to_bytes())
    before = without_locks(snapshot(experiment_folder(manager)))
    with pytest.raises(CheckpointExistsError, match="different checkpoint"):
        manager.restore_checkpoint(saved)
    assert without_locks(snapshot(experiment_folder(manager))) == before


def test_a_restore_keeps_what_was_edited_while_it_copied(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag that someone adds while the backup is being copied back is there afterwards."""
    checkpoint_id = save(manager, 1, 1.0)
    flip_bit(payload_path(manager, checkpoint_id), 100)

    def slow(*arguments: Any) -> bool:
        manager.edit_checkpoint(checkpoint_id, add_tags=["meanwhile"])
        return replace_file(*arguments)

    monkeypatch.setattr("ckpt_lib.maintenance.transfer.replace_file", slow)
    manager.restore_checkpoint(checkpoint_id)
    assert manager.get_checkpoint(checkpoint_id).tags == ("meanwhile",)
    assert manager.validate_checkpoint(checkpoint_id)


def test_a_backup_that_goes_during_a_restore_is_no_damage(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deleted it: it is missed, and nobody is told of damage."""
    manager = make_manager()
    saved = save(manager, 1)

    def goes(*_: object) -> bool:
        manager.delete_backup(saved)
        raise FileNotFoundError("gone")

    monkeypatch.setattr(transfer, "replace_file", goes)
    with pytest.raises(CheckpointNotFoundError):
        manager.restore_checkpoint(saved)
