"""Copies: backups and restores, exports and imports. Each is verified, and no failure costs what was there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Claim
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    IntegrityError,
    NotACheckpointError,
    NoValidCheckpointError,
    StorageFullError,
)
from ckpt_lib.experiment.files import replace_file
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
    truncate,
    without_locks,
)
from tests.maintenance.records import manifest_in

Damage = Callable[[Path, Path], object]


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink()


DAMAGES: dict[str, Damage] = {
    "flipped": lambda payload, _: flip_bit(payload, 300),
    "truncated": lambda payload, _: truncate(payload, 300),
    "payload missing": lambda payload, _: payload.unlink(),
    "manifest flipped": lambda _, manifest: flip_bit(manifest, 60),
    "manifest missing": lambda _, manifest: manifest.unlink(),
    "both missing": _unlink,
}


@pytest.fixture(params=["inside", "elsewhere"])
def backed_up(request: pytest.FixtureRequest, make_manager: MakeManager, tmp_path: Path) -> CheckpointManager:
    """A manager with backups on, in the default place and in another store."""
    return make_manager(backup_dir=None if request.param == "inside" else str(tmp_path / "vault"))


def backup_folder(manager: CheckpointManager) -> Path:
    """Where a manager's backups lie."""
    if manager.config.backup_dir is None:
        return experiment_folder(manager) / "backups"
    return Path(manager.config.backup_dir) / manager.experiment_name


def backup_pair(manager: CheckpointManager, checkpoint_id: str) -> tuple[Path, Path]:
    folder = backup_folder(manager)
    return folder / f"{checkpoint_id}.pt", folder / f"{checkpoint_id}.json"


def pair(manager: CheckpointManager, checkpoint_id: str) -> tuple[Path, Path]:
    return payload_path(manager, checkpoint_id), manifest_path(manager, checkpoint_id)


# --- backups ---


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


# --- restore ---


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
    """With the whole experiment folder gone, every backup comes back by its id."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    saved = [save(manager, epoch) for epoch in (1, 2)]
    shutil.rmtree(experiment_folder(manager))
    again = make_manager(backup_dir=str(tmp_path / "vault"))
    with pytest.raises(NoValidCheckpointError, match=saved[1]):  # and no run begins again as if nothing had been
        again.resume()
    for checkpoint_id in backup_ids(again):
        again.restore_checkpoint(checkpoint_id)
    assert ids(again) == saved
    assert again.resume() is not None


# --- export ---


def test_exporting_twice_changes_nothing(manager: CheckpointManager, tmp_path: Path) -> None:
    """The second export finds the first, and rewrites not a byte."""
    saved = save(manager, 1)
    first = manager.export_checkpoint(saved, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert manager.export_checkpoint("latest", tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    assert set(without_locks(snapshot(tmp_path / "out"))) == {f"{saved}.pt", f"{saved}.json"}


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_an_export_never_overwrites_a_foreign_file(manager: CheckpointManager, tmp_path: Path, suffix: str) -> None:
    """A file of someone else's with the name of ours is left as it is, and nothing is put beside it."""
    saved = save(manager, 1)
    target = tmp_path / "out"
    target.mkdir()
    (target / f"{saved}{suffix}").write_text("precious")
    before = snapshot(target)
    with pytest.raises(CheckpointExistsError):
        manager.export_checkpoint(saved, target)
    assert without_locks(snapshot(target)) == before


def test_an_export_never_becomes_the_latest_of_an_experiment(make_manager: MakeManager) -> None:
    """The folder of one takes imports and no exports, its own neither."""
    manager, other = make_manager("run"), make_manager("other")
    saved, _ = save(manager, 1), save(other, 2)
    for target in (manager, other):
        before = snapshot(experiment_folder(target))
        with pytest.raises(ConfigError, match="of an experiment"):
            manager.export_checkpoint(saved, experiment_folder(target))
        assert snapshot(experiment_folder(target)) == before


def test_an_export_never_overwrites_another_checkpoint_of_that_id(manager: CheckpointManager, tmp_path: Path) -> None:
    """Saved in the same second elsewhere: told by its uid, and left as it is."""
    saved = save(manager, 1)
    payload = Path(manager.export_checkpoint(saved, tmp_path / "out"))
    described = payload.with_suffix(".json")
    other = manifest_in(described).changed(uid="0" * 32)
    described.write_bytes(other.to_bytes())
    flip_bit(payload, 100)
    before = snapshot(tmp_path / "out")
    with pytest.raises(CheckpointExistsError, match="different checkpoint"):
        manager.export_checkpoint(saved, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before


def test_a_restore_never_overwrites_another_checkpoint_of_that_id(manager: CheckpointManager) -> None:
    """As when the backup location is that of another run."""
    saved = save(manager, 1)
    described = manifest_path(manager, saved)
    described.write_bytes(manifest_in(described).changed(uid="0" * 32).to_bytes())
    before = without_locks(snapshot(experiment_folder(manager)))
    with pytest.raises(CheckpointExistsError, match="different checkpoint"):
        manager.restore_checkpoint(saved)
    assert without_locks(snapshot(experiment_folder(manager))) == before


@pytest.mark.parametrize("kind", ["flipped", "truncated", "payload missing", "manifest missing", "manifest flipped"])
def test_an_export_that_broke_is_mended(manager: CheckpointManager, tmp_path: Path, kind: str) -> None:
    """Exporting again replaces an earlier export of the same checkpoint that is damaged or unfinished."""
    saved = save(manager, 1)
    payload = Path(manager.export_checkpoint(saved, tmp_path))
    DAMAGES[kind](payload, payload.with_suffix(".json"))
    assert manager.export_checkpoint(saved, tmp_path) == str(payload)
    assert payload.read_bytes() == payload_path(manager, saved).read_bytes()
    assert torch.load(payload, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("kind", ["flipped", "truncated", "payload missing"])
def test_damage_is_not_exported(manager: CheckpointManager, tmp_path: Path, kind: str) -> None:
    """A damaged checkpoint is refused, and the destination stays empty."""
    saved = save(manager, 1)
    DAMAGES[kind](*pair(manager, saved))
    with pytest.raises(CorruptCheckpointError):
        manager.export_checkpoint(saved, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*checkpoint*"))


# --- import ---


@pytest.mark.parametrize("door", ["payload", "manifest", "folder", "url", "path"])
def test_every_door_of_an_import(make_manager: MakeManager, tmp_path: Path, door: str) -> None:
    """The payload, its manifest, the folder, a file:// URL or a Path: each names the exported checkpoint."""
    source = make_manager("source")
    saved = save(source, 4, 0.25, tags=["t"], step=9)
    payload = source.export_checkpoint(saved, tmp_path / "out")
    names: dict[str, str | Path] = {
        "payload": payload,
        "manifest": payload.removesuffix(".pt") + ".json",
        "folder": str(tmp_path / "out"),
        "url": f"file://{payload}",
        "path": Path(payload),
    }
    target = make_manager("target")
    imported = target.import_checkpoint(names[door])
    found = target.get_checkpoint(imported)
    assert (found.epoch, found.step, found.metrics, found.tags) == (4, 9, {"val_loss": 0.25}, ("t",))
    assert target.load_checkpoint(imported)["epoch"] == 4


def test_importing_again_returns_the_first(make_manager: MakeManager, tmp_path: Path) -> None:
    """One checkpoint is imported once, also into the experiment that it came from."""
    source, target = make_manager("source"), make_manager("target")
    saved = save(source, 1)
    payload = source.export_checkpoint(saved, tmp_path)
    assert source.import_checkpoint(payload) == saved
    assert target.import_checkpoint(payload) == target.import_checkpoint(payload) == saved
    assert ids(source) == ids(target) == [saved]


def test_importing_again_does_not_call_damage_intact(make_manager: MakeManager, tmp_path: Path) -> None:
    """The second import says that its checkpoint is damaged here, and no later save counts on it as the best."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=3)
    good, best = save(manager, 1, 0.2), save(manager, 2, 0.1)
    exported = manager.export_checkpoint(best, tmp_path / "out")
    flip_bit(payload_path(manager, best), 300)
    with pytest.raises(CorruptCheckpointError) as caught:
        manager.import_checkpoint(exported)
    assert caught.value.damages
    assert caught.value.checkpoint_id == best
    for epoch in (3, 4, 5, 6):
        save(manager, epoch, 0.9)
    assert good in ids(manager)


def test_an_id_that_is_taken_gets_a_suffix(make_manager: MakeManager, tmp_path: Path) -> None:
    """Another checkpoint under the same id stays; the imported one is whole under a new name, and the newest."""
    source, target = make_manager("source"), make_manager("target")
    saved = save(source, 1, 0.25)
    payload = source.export_checkpoint(saved, tmp_path)
    own = target.import_checkpoint(payload)
    twin_path = tmp_path / "twin"
    twin_path.mkdir()
    shutil.copy(payload, twin_path)
    manifest = manifest_in(tmp_path / f"{saved}.json")
    (twin_path / f"{saved}.json").write_bytes(manifest.changed(uid="2" * 32).to_bytes())
    imported = target.import_checkpoint(twin_path)
    assert imported == f"{saved}_2"
    assert ids(target) == [own, imported]
    assert all(target.validate_all())
    assert target.get_checkpoint("latest").checkpoint_id == imported


def test_an_imported_checkpoint_is_the_newest(make_manager: MakeManager, tmp_path: Path) -> None:
    """Its old number counts for nothing here: it comes after all that the experiment has, and has no parent in it."""
    source, target = make_manager("source"), make_manager("target")
    payload = source.export_checkpoint(save(source, 1), tmp_path)
    saved = [save(target, epoch) for epoch in (5, 6)]
    imported = target.import_checkpoint(payload)
    assert ids(target) == [*saved, imported]
    assert target.get_checkpoint(imported).parent_id is None


@pytest.mark.parametrize("kind", ["flipped", "truncated", "payload missing", "manifest flipped"])
def test_a_tampered_export_is_refused(make_manager: MakeManager, tmp_path: Path, kind: str) -> None:
    """An export that was altered on its way is not taken in, and leaves no file in the experiment."""
    source, target = make_manager("source"), make_manager("target")
    payload = Path(source.export_checkpoint(save(source, 1), tmp_path / "out"))
    own = save(target, 9)
    DAMAGES[kind](payload, payload.with_suffix(".json"))
    with pytest.raises(IntegrityError):
        target.import_checkpoint(payload)
    assert [path.name for path in experiment_folder(target).glob("*.pt")] == [f"{own}.pt"]
    assert ids(target) == [own]


def test_a_payload_without_a_manifest_is_imported(make_manager: MakeManager, tmp_path: Path) -> None:
    """Its manifest is made from what it holds, and says that nothing proves it; importing it again changes nothing."""
    source, target = make_manager("source"), make_manager("target")
    saved = save(source, 4, 0.25, step=9)
    payload = source.export_checkpoint(saved, tmp_path / "best.pt")
    imported = target.import_checkpoint(payload)
    found = target.get_checkpoint(imported)
    assert (found.epoch, found.step, found.metrics, found.tags) == (4, 9, {"val_loss": 0.25}, ("adopted",))
    assert "cannot be proven" in found.description
    assert target.load_checkpoint(imported)["epoch"] == 4
    assert target.import_checkpoint(payload) == imported
    weight = torch.load(payload, weights_only=True)["model_state_dict"]["weight"].numpy().tobytes()
    flip_bit(Path(payload), Path(payload).read_bytes().index(weight))
    with pytest.raises(NotACheckpointError):
        target.import_checkpoint(payload)
    assert ids(target) == [imported]


def test_a_payload_that_changes_while_it_is_imported_is_refused(make_manager: MakeManager, tmp_path: Path) -> None:
    """What was examined is what is taken in, or nothing."""
    source, target = make_manager("source"), make_manager("target")
    payload = Path(source.export_checkpoint(save(source, 1), tmp_path / "best.pt"))
    changed: list[str] = []

    def change(operation: str, key: str) -> None:
        if operation == "open_write" and not changed:
            changed.append(key)
            flip_bit(payload, 300)

    with faults_injected(FaultPlan(between=change)):
        importing = make_manager("target")
        with pytest.raises(IntegrityError, match="changed while"):
            importing.import_checkpoint(payload)
    assert changed
    assert ids(target) == []


def test_an_orphaned_payload_keeps_the_time_of_its_id(make_manager: MakeManager) -> None:
    """A payload that lost its manifest is taken in again from where it lies."""
    manager = make_manager(backup_checkpoints=False)
    saved = save(manager, 1)
    manifest_path(manager, saved).unlink()
    imported = manager.import_checkpoint(payload_path(manager, saved))
    assert imported.startswith(saved)
    assert manager.validate_checkpoint(imported)


def test_a_folder_of_several_checkpoints_is_ambiguous(make_manager: MakeManager, tmp_path: Path) -> None:
    """Nothing is chosen for the caller; naming one of the files works."""
    source, target = make_manager("source"), make_manager("target")
    payloads = [source.export_checkpoint(save(source, epoch), tmp_path) for epoch in (1, 2)]
    with pytest.raises(NotACheckpointError, match="2 checkpoints"):
        target.import_checkpoint(tmp_path)
    target.import_checkpoint(payloads[1])
    assert [item.epoch for item in target.list_checkpoints()] == [2]


def test_an_imported_idempotency_key_does_not_swallow_a_save(make_manager: MakeManager, tmp_path: Path) -> None:
    """The key belongs to the experiment that it was used in: the same key here is a new save."""
    source, target = make_manager("source"), make_manager("target")
    imported = target.import_checkpoint(source.export_checkpoint(save(source, 1, idempotency_key="k"), tmp_path))
    assert save(target, 2, idempotency_key="k") != imported
    assert len(ids(target)) == 2


def test_metadata_files_follow_imports_and_restores(make_manager: MakeManager, tmp_path: Path) -> None:
    """checkpoint_metadata.json lists what came in by either way."""
    source, target = make_manager("source"), make_manager("target")
    payload = source.export_checkpoint(save(source, 1), tmp_path)
    imported = target.import_checkpoint(payload)
    content = json.loads((experiment_folder(target) / "checkpoint_metadata.json").read_text())
    assert [item["checkpoint_id"] for item in content["checkpoints"]] == [imported]


def test_progress_counts_every_byte(manager: CheckpointManager, tmp_path: Path) -> None:
    """A progress callback hears of each byte that is read, once."""
    saved = save(manager, 1)
    size = manager.get_checkpoint(saved).file_size
    for call in (
        lambda progress: manager.export_checkpoint(saved, tmp_path, progress=progress),
        lambda progress: manager.validate_checkpoint(saved, progress=progress),
        lambda progress: manager.restore_checkpoint(saved, progress=progress),
    ):
        done: list[int] = []
        call(done.append)
        assert sum(done) == size


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


# --- files ---


@pytest.mark.parametrize("name", ["out.pt", "model.pth", "deep/best.ckpt"])
def test_an_export_to_a_file_name_is_that_file(manager: CheckpointManager, tmp_path: Path, name: str) -> None:
    """It is the payload alone, as plain torch reads it; a second export changes nothing."""
    saved = save(manager, 3)
    target = tmp_path / "exports" / name
    for _ in range(2):
        assert manager.export_checkpoint(saved, target) == str(target)
        assert list(without_locks(snapshot(target.parent))) == [target.name]
    assert torch.load(target, weights_only=True)["epoch"] == 3
    assert target.read_bytes() == payload_path(manager, saved).read_bytes()


def test_an_export_replaces_no_other_file(manager: CheckpointManager, tmp_path: Path) -> None:
    """Neither what is there, nor anything in the folder of an experiment; damage is not exported."""
    saved = save(manager, 3)
    (tmp_path / "out.pt").write_bytes(b"mine")
    with pytest.raises(CheckpointExistsError):
        manager.export_checkpoint(saved, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="experiment"):
        manager.export_checkpoint(saved, experiment_folder(manager) / "out.pt")
    flip_bit(payload_path(manager, saved), 200)
    with pytest.raises(CorruptCheckpointError):
        manager.export_checkpoint(saved, tmp_path / "other.pt")
    assert [path.name for path in tmp_path.glob("*.pt")] == ["out.pt"]


def test_an_export_takes_no_name_that_was_given_meanwhile(manager: CheckpointManager, tmp_path: Path) -> None:
    """It is looked for again when the copy is complete."""
    saved = save(manager, 3)
    with pytest.raises(CheckpointExistsError):
        manager.export_checkpoint(
            saved, tmp_path / "out.pt", progress=lambda _: (tmp_path / "out.pt").write_bytes(b"mine")
        )
    assert (tmp_path / "out.pt").read_bytes() == b"mine"


def test_an_import_says_why_it_cannot(manager: CheckpointManager, tmp_path: Path) -> None:
    """A missing path, a folder and each kind of foreign file have their own sentences."""
    exported = Path(manager.export_checkpoint(save(manager, 1), tmp_path / "exported"))
    (tmp_path / "lone").mkdir()
    exported.rename(tmp_path / "lone" / exported.name)
    weights = {"a": torch.ones(2)}
    torch.save(weights, tmp_path / "foreign.pt")
    torch.save(weights, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as script:
        script.writestr("model/data.pkl", b"")
        script.writestr("model/constants.pkl", b"")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    (tmp_path / "weights.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "junk.pt").write_bytes(b"junk" * 10)
    (tmp_path / "nothing.pt").write_bytes(b"")
    reasons = {
        "missing.pt": "there is nothing at this path",
        "lone": "the folder holds no checkpoint",
        "foreign.pt": "a file of torch.save,",
        "legacy.pt": "legacy format",
        "pickle.pt": "a pickle",
        "script.pt": "a TorchScript archive",
        "arrays.npz": "a NumPy archive",
        "weights.safetensors": "a safetensors file",
        "cut.pt": "a damaged zip archive",
        "junk.pt": "an unknown kind",
        "nothing.pt": "an empty file",
    }
    for name, reason in reasons.items():
        with pytest.raises(NotACheckpointError, match=reason):
            manager.import_checkpoint(tmp_path / name)


def test_a_url_and_a_folder_with_such_a_name(manager: CheckpointManager, tmp_path: Path) -> None:
    """A URL is resolved as everywhere, and a folder that is there is a folder, however it is written."""
    saved = save(manager, 1)
    assert manager.export_checkpoint(saved, f"file://{tmp_path}/out.pt") == str(tmp_path / "out.pt")
    assert manager.export_checkpoint(saved, f"{tmp_path}/new.pt/") == str(tmp_path / f"new.pt/{saved}.pt")
    assert manager.export_checkpoint(saved, tmp_path / "out.bin") == str(tmp_path / f"out.bin/{saved}.pt")
    (tmp_path / "folder.pt").mkdir()
    assert manager.export_checkpoint(saved, f"file://{tmp_path}/folder.pt") == str(tmp_path / f"folder.pt/{saved}.pt")
    with pytest.raises(ConfigError, match="s3"):
        manager.export_checkpoint(saved, "s3://model.pt")
