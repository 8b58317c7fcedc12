"""Quarantine: what is damaged and cannot be repaired is set aside, never served, and never deleted by itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager, list_experiments, open_store
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    CorruptManifestError,
    InvalidNameError,
    NoValidCheckpointError,
    ProtectedCheckpointError,
    UnsupportedFormatError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.deletion import Deletion, delete_all, undelete
from ckpt_lib.maintenance import quarantine
from tests.helpers import (
    MakeManager,
    experiment_folder,
    flip_bit,
    ids,
    manifest_path,
    payload_path,
    save,
    truncate,
)
from tests.killer import Killer
from tests.maintenance.doctoring import files
from tests.maintenance.pairs import DAMAGES, pair
from tests.maintenance.records import manifest_in


@pytest.fixture
def lost(alone: CheckpointManager) -> str:
    """The newer of two checkpoints, in quarantine for a bit that flipped."""
    save(alone, 1)
    checkpoint_id = save(alone, 2)
    flip_bit(payload_path(alone, checkpoint_id), 200)
    assert alone.quarantine_checkpoint(checkpoint_id).is_quarantined
    return checkpoint_id


def test_it_is_set_aside_with_its_report(alone: CheckpointManager) -> None:
    """The payload stays, byte for byte; the report says what is wrong, where, and when that was."""
    first, second = save(alone, 1), save(alone, 2)
    flip_bit(payload_path(alone, second), 200)
    payload = payload_path(alone, second).read_bytes()
    report = alone.quarantine_checkpoint(second)
    assert report.is_quarantined
    assert report.report.damages[0].kind == "altered"
    assert payload_path(alone, second).read_bytes() == payload
    found = alone.list_quarantined()
    assert [item.checkpoint_id for item in found] == [second]
    assert found[0].report == report.report
    assert found[0].size_bytes == len(payload)
    assert found[0].quarantined_at is not None
    assert found[0].checkpoint is not None
    assert found[0].checkpoint.epoch == 2
    assert ids(alone) == [first]


def test_it_is_never_served(alone: CheckpointManager, lost: str) -> None:
    """By no door: not by name, by list, as latest or best, in a summary, for retention or a backup."""
    other = alone.list_checkpoints()[0].checkpoint_id
    assert lost not in alone.checkpoint_ids()
    assert alone.get_latest_checkpoint() == alone.get_checkpoint(other)
    assert alone.load_checkpoint("best")["checkpoint_id"] == other
    resumed = alone.resume()
    assert resumed is not None
    assert resumed["checkpoint_id"] == other
    for call in (alone.load_checkpoint, alone.get_checkpoint, alone.validate_checkpoint, alone.backup_checkpoint):
        with pytest.raises(CheckpointNotFoundError, match="quarantine"):
            call(lost)
    assert [item.checkpoint_id for item in alone.validate_all()] == [other]
    assert alone.get_checkpoint_summary()["total_checkpoints"] == 1


def test_no_cleanup_removes_it(make_manager: MakeManager, lost: str) -> None:
    """Whatever the limit, the trash and the grace period are."""
    manager = make_manager(backup_checkpoints=False, max_checkpoints=0, trash_seconds=0)
    before = payload_path(manager, lost).read_bytes()
    save(manager, 3)
    manager.cleanup_checkpoints()
    manager.empty_trash()
    assert payload_path(manager, lost).read_bytes() == before
    assert [item.checkpoint_id for item in manager.list_quarantined()] == [lost]


def test_its_id_and_its_place_are_not_given_out_again(alone: CheckpointManager, lost: str) -> None:
    """It may come back: what is saved meanwhile is newer, also when its manifest could not tell."""
    sequence = alone.list_quarantined()[0].checkpoint
    assert sequence is not None
    newer = save(alone, 2)
    assert newer != lost
    assert alone.get_checkpoint(newer).sequence > sequence.sequence


def test_an_intact_one_is_refused(alone: CheckpointManager) -> None:
    """And left exactly as it was."""
    checkpoint_id = save(alone, 1)
    before = files(experiment_folder(alone))
    with pytest.raises(ProtectedCheckpointError, match="intact"):
        alone.quarantine_checkpoint("latest")
    assert files(experiment_folder(alone)) == before
    with pytest.raises(CheckpointNotFoundError):
        alone.quarantine_checkpoint(checkpoint_id.replace("0001", "0007"))


def test_one_of_a_newer_version_is_no_damage(alone: CheckpointManager) -> None:
    """What this version cannot read is not taken from one that can."""
    checkpoint_id = save(alone, 1)
    manifest = manifest_in(manifest_path(alone, checkpoint_id))
    manifest_path(alone, checkpoint_id).write_bytes(manifest.changed(schema_version=99).to_bytes())
    with pytest.raises(UnsupportedSchemaError):
        alone.quarantine_checkpoint(checkpoint_id)
    assert manifest_path(alone, checkpoint_id).exists()


def test_one_with_a_backup_is_repaired_instead(manager: CheckpointManager) -> None:
    """Nothing is set aside that can be had back."""
    checkpoint_id = save(manager, 1)
    flip_bit(payload_path(manager, checkpoint_id), 200)
    report = manager.quarantine_checkpoint(checkpoint_id)
    assert not report.is_quarantined
    assert report.repair is not None
    assert report.repair.damages
    assert manager.list_quarantined() == []
    assert manager.validate_checkpoint(checkpoint_id)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "payload missing"])
def test_every_kind_of_damage_comes_back_from_a_later_backup(
    make_manager: MakeManager, tmp_path: Path, damage: str
) -> None:
    """With the tags and the pin that it had."""
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    checkpoint_id = save(manager, 1)
    manager.edit_checkpoint(checkpoint_id, add_tags=["later"])
    away = tmp_path / "away"
    (tmp_path / "backups").rename(away)
    DAMAGES[damage](*pair(manager, checkpoint_id))
    assert manager.quarantine_checkpoint(checkpoint_id).is_quarantined
    with pytest.raises(CorruptCheckpointError, match="there is none"):
        manager.repair_checkpoint(checkpoint_id)
    away.rename(tmp_path / "backups")
    assert manager.repair_checkpoint(checkpoint_id).damages
    assert manager.validate_checkpoint(checkpoint_id)
    assert manager.list_quarantined() == []
    assert manager.get_checkpoint(checkpoint_id).tags == ("later",)


def test_a_restore_brings_it_back_too(make_manager: MakeManager, tmp_path: Path) -> None:
    """It is the same copy."""
    manager = make_manager(backup_dir=str(tmp_path / "backups"))
    checkpoint_id = save(manager, 1)
    (tmp_path / "backups").rename(tmp_path / "away")
    flip_bit(payload_path(manager, checkpoint_id), 200)
    manager.quarantine_checkpoint(checkpoint_id)
    (tmp_path / "away").rename(tmp_path / "backups")
    assert manager.restore_checkpoint(checkpoint_id).epoch == 1
    assert manager.list_quarantined() == []


def test_one_that_verifies_again_is_released(alone: CheckpointManager, lost: str) -> None:
    """The disk came back, or someone brought the file; nothing is copied then."""
    flip_bit(payload_path(alone, lost), 200)
    assert alone.repair_checkpoint(lost).method == "none"
    assert [item.checkpoint_id for item in alone.list_checkpoints()][-1] == lost
    assert alone.validate_checkpoint(lost)


def test_it_stays_when_nothing_helps(alone: CheckpointManager, lost: str) -> None:
    """The error says why, and nothing has changed."""
    before = files(experiment_folder(alone))
    with pytest.raises(CorruptCheckpointError, match="there is none"):
        alone.repair_checkpoint(lost)
    assert files(experiment_folder(alone)) == before


def test_deleting_it_takes_a_person(alone: CheckpointManager, lost: str) -> None:
    """Then its payload goes, and its bytes are told."""
    size_bytes = payload_path(alone, lost).stat().st_size
    assert alone.delete_quarantined(lost) == size_bytes
    assert alone.list_quarantined() == []
    assert not payload_path(alone, lost).exists()
    with pytest.raises(CheckpointNotFoundError, match="not in quarantine"):
        alone.delete_quarantined(lost)


def test_only_what_is_in_quarantine_is_deleted_so(alone: CheckpointManager) -> None:
    """Neither a checkpoint nor nonsense."""
    checkpoint_id = save(alone, 1)
    with pytest.raises(CheckpointNotFoundError):
        alone.delete_quarantined(checkpoint_id)
    with pytest.raises(InvalidNameError):
        alone.delete_quarantined("../run")
    assert alone.validate_checkpoint(checkpoint_id)


@pytest.mark.parametrize("is_repaired", [True, False])
def test_what_was_repaired_or_pinned_meanwhile_is_not_deleted(
    alone: CheckpointManager, lost: str, monkeypatch: pytest.MonkeyPatch, is_repaired: bool
) -> None:
    """After the deletion has looked: it judges the manifest that it replaces."""

    def interfere(*arguments: Any, **options: Any) -> Deletion:
        if is_repaired:
            flip_bit(payload_path(alone, lost), 200)
            alone.repair_checkpoint(lost)
        else:
            edits.edit(alone._locations.home, lost, lambda manifest: manifest.changed(pinned=True))
        return delete_all(*arguments, **options)

    monkeypatch.setattr(quarantine, "delete_all", interfere)
    wanted = (CheckpointNotFoundError, "not in quarantine") if is_repaired else (ProtectedCheckpointError, "pinned")
    with pytest.raises(wanted[0], match=wanted[1]):
        alone.delete_quarantined(lost)
    assert payload_path(alone, lost).exists()
    assert (lost in ids(alone)) == is_repaired


def test_a_pinned_one_is_deleted_when_it_was_unpinned(alone: CheckpointManager) -> None:
    """The pin that it had before it was damaged counts, and can be taken away where it is."""
    save(alone, 1)
    lost = save(alone, 2)
    alone.pin_checkpoint(lost)
    flip_bit(payload_path(alone, lost), 200)
    alone.quarantine_checkpoint(lost)
    with pytest.raises(ProtectedCheckpointError, match="pinned"):
        alone.delete_quarantined(lost)
    assert not alone.unpin_checkpoint(lost).pinned
    assert [item.checkpoint_id for item in alone.list_quarantined()] == [lost]
    alone.delete_quarantined(lost)
    assert not payload_path(alone, lost).exists()


@pytest.mark.parametrize("is_before", [True, False])
def test_what_someone_else_deleted_meanwhile_stays_in_the_trash(
    alone: CheckpointManager, lost: str, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    """Before this deletion, or after its checkpoint was brought back: that one has a grace period."""
    home = alone._locations.home

    def interfere(*arguments: Any, **options: Any) -> Deletion:
        outcome = Deletion() if is_before else delete_all(*arguments, **options)
        if not is_before:
            undelete(home, lost)
        delete_all(home, [lost])
        return delete_all(*arguments, **options) if is_before else outcome

    monkeypatch.setattr(quarantine, "delete_all", interfere)
    with pytest.raises(CheckpointNotFoundError, match="meanwhile") if is_before else nullcontext():
        alone.delete_quarantined(lost)
    assert [item.checkpoint_id for item in home.index.view().deleted] == [lost]
    assert payload_path(alone, lost).exists()


def test_one_with_a_damaged_manifest_is_unreadable_and_not_set_aside(alone: CheckpointManager) -> None:
    """Nothing says what such a file is: it is listed as unreadable, and nothing of it is removed."""
    checkpoint_id = save(alone, 1)
    flip_bit(manifest_path(alone, checkpoint_id), 40)
    with pytest.raises(CorruptManifestError):
        alone.quarantine_checkpoint(checkpoint_id)
    assert [report.checkpoint_id for report in alone.list_unreadable()] == [checkpoint_id]
    alone.cleanup_checkpoints()
    assert payload_path(alone, checkpoint_id).exists()


def test_resume_does_not_begin_anew(alone: CheckpointManager) -> None:
    """An experiment whose checkpoints are all set aside is not one that has none."""
    checkpoint_id = save(alone, 1)
    truncate(payload_path(alone, checkpoint_id), 10)
    alone.quarantine_checkpoint(checkpoint_id)
    with pytest.raises(NoValidCheckpointError, match="set aside"):
        alone.resume()


def test_an_experiment_of_nothing_else_is_still_one(make_manager: MakeManager) -> None:
    """So that `ckpt` can show what was set aside."""
    manager = make_manager(backup_checkpoints=False, save_metadata=False)
    checkpoint_id = save(manager, 1)
    truncate(payload_path(manager, checkpoint_id), 10)
    manager.quarantine_checkpoint(checkpoint_id)
    assert list_experiments(open_store(manager.config.checkpoint_dir)) == ["run"]


def test_a_backup_of_it_is_not_retired(make_manager: MakeManager) -> None:
    """Damaged as well, it may hold what the other lacks."""
    manager = make_manager(max_backups=1)
    checkpoint_id = save(manager, 1)
    for folder in (experiment_folder(manager), experiment_folder(manager) / "backups"):
        flip_bit(folder / f"{checkpoint_id}.pt", 200)
    manager.quarantine_checkpoint(checkpoint_id)
    for epoch in range(2, 5):
        save(manager, epoch)
    assert checkpoint_id in manager.backup_ids()


def test_a_report_of_another_version_hides_nothing(alone: CheckpointManager, lost: str) -> None:
    """The checkpoint is still known to be set aside; why, is not understood."""
    path = manifest_path(alone, lost)
    manifest = manifest_in(path)
    assert manifest.quarantined is not None
    newer = manifest.quarantined.model_copy(update={"report": {"kind": "new"}})
    path.write_bytes(manifest.changed(quarantined=newer).to_bytes())
    found = alone.list_quarantined()
    assert [item.checkpoint_id for item in found] == [lost]
    assert "cannot be read" in found[0].report.message
    assert lost not in ids(alone)


@pytest.mark.parametrize("call", ["quarantine_checkpoint", "repair_checkpoint", "delete_quarantined"])
def test_killed_at_every_step_it_is_one_or_the_other(alone: CheckpointManager, killer: Killer, call: str) -> None:
    """Listed or set aside, never both and never neither, its payload in place; the same call then does the rest."""
    for step in range(1, 20):
        checkpoint_id = save(alone, step)
        flip_bit(payload_path(alone, checkpoint_id), 200)
        if call != "quarantine_checkpoint":
            alone.quarantine_checkpoint(checkpoint_id)
        if call == "repair_checkpoint":
            flip_bit(payload_path(alone, checkpoint_id), 200)
        was_killed = killer.kills(alone, call, step, checkpoint_id=checkpoint_id)
        set_aside = checkpoint_id in [item.checkpoint_id for item in alone.list_quarantined()]
        listed = checkpoint_id in ids(alone)
        is_deleted = call == "delete_quarantined" and not (listed or set_aside)
        assert listed != set_aside or is_deleted
        assert payload_path(alone, checkpoint_id).exists() or is_deleted
        if listed or set_aside:
            getattr(alone, call)(checkpoint_id)
        if is_deleted:
            alone.empty_trash()
            assert not payload_path(alone, checkpoint_id).exists()
        if not was_killed:
            break
    else:
        pytest.fail("it never came to its end")


def test_bad_input_is_refused(alone: CheckpointManager) -> None:
    """At the door."""
    with pytest.raises(ConfigError):
        alone.quarantine_checkpoint(3)  # type: ignore[arg-type]
    assert CheckpointManager(CheckpointConfig(checkpoint_dir="nowhere"), "run").list_quarantined() == []


def put_folder(manager: CheckpointManager, checkpoint_id: str) -> Path:
    """Put a folder of somebody else where a payload was."""
    path = payload_path(manager, checkpoint_id)
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("mine")
    return path


def test_a_folder_in_the_place_of_a_payload_is_damage_like_any_other(make_manager: MakeManager) -> None:
    """It is set aside though there is a backup, stays as it is, and comes back once the folder is moved away."""
    manager = make_manager()
    saved = save(manager, 1)
    save(manager, 2)
    path = put_folder(manager, saved)
    with pytest.raises(CheckpointExistsError, match="a folder is where the payload should be"):
        manager.restore_checkpoint(saved)
    assert manager.quarantine_checkpoint(saved).is_quarantined
    with pytest.raises(CheckpointExistsError, match="move it away"):
        manager.repair_checkpoint(saved)
    assert (path / "mine").read_text() == "mine"
    path.rename(path.with_name("elsewhere"))
    assert manager.repair_checkpoint(saved).method == "file"
    assert manager.validate_checkpoint(saved)


@pytest.mark.parametrize("trash_seconds", [0, 60])
def test_a_checkpoint_with_a_folder_in_the_place_of_its_payload_can_be_deleted(
    make_manager: MakeManager, trash_seconds: float
) -> None:
    """And no later cleanup stumbles over it."""
    manager = make_manager(trash_seconds=trash_seconds, backup_checkpoints=False)
    saved, aside, _ = (save(manager, epoch) for epoch in (1, 2, 3))
    paths = [put_folder(manager, checkpoint_id) for checkpoint_id in (saved, aside)]
    manager.delete_checkpoint(saved)
    manager.quarantine_checkpoint(aside)
    assert manager.delete_quarantined(aside) == 0
    manager.empty_trash()
    assert manager.cleanup_checkpoints().spared == {}
    assert manager.list_deleted() == []
    assert manager.list_quarantined() == []
    assert all((path / "mine").read_text() == "mine" for path in paths)
    assert manager.doctor(fix=True, deep=True).is_healthy


@pytest.mark.parametrize("how", ["quarantine", "doctor"])
def test_what_only_lacks_its_format_is_not_set_aside(make_manager: MakeManager, how: str) -> None:
    """The bytes are sound: where the package of the format is installed, the checkpoint loads."""
    manager = make_manager(backup_checkpoints=False)
    checkpoint_id = save(manager, 1)
    edits.edit(manager._locations.home, checkpoint_id, lambda manifest: manifest.changed(format="unheard-of"))
    if how == "quarantine":
        with pytest.raises(UnsupportedFormatError, match="no format called 'unheard-of' is installed"):
            manager.quarantine_checkpoint(checkpoint_id)
    else:
        report = manager.doctor(fix=True, deep=True)
        assert [finding.kind for finding in report.findings if finding.name == checkpoint_id] == ["unknown format"]
        assert report.is_healthy
    assert manager.list_quarantined() == []
    assert manager.checkpoint_ids() == [checkpoint_id]


def test_what_only_lacks_its_format_is_not_called_damaged(make_manager: MakeManager) -> None:
    """Each answer says what to install: a check, an advice, an event, and a resume, which goes back to no older one."""
    manager = make_manager()
    save(manager, 1)
    newest = save(manager, 2)
    edits.edit(manager._locations.home, newest, lambda manifest: manifest.changed(format="unheard-of"))
    told: list[str] = []
    unsubscribe = manager.on_event(lambda event: told.append(event.kind))
    report = manager.validate_checkpoint(newest)
    unsubscribe()
    assert "is as it was saved, and cannot be loaded here" in report.message
    assert (report.is_valid, report.has_unknown_format, told) == (False, True, [])
    with pytest.raises(UnsupportedFormatError) as advice:
        manager.remedy(report)
    assert "Install the package" in str(advice.value.hint)
    with pytest.raises(UnsupportedFormatError, match="no format called 'unheard-of' is installed"):
        manager.resume()
