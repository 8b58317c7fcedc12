"""Imports in place: the files stay as and where they are, and are a checkpoint like any other from then on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import (
    CheckpointExistsError,
    ConfigError,
    CorruptCheckpointError,
    CorruptManifestError,
    InvalidNameError,
    NotACheckpointError,
    ProtectedCheckpointError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.formats import format_named
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.state.sameness import first_difference
from tests.helpers import MakeManager, experiment_folder, flip_bit, ids, save
from tests.killer import Killer
from tests.maintenance.test_thin import home_of

NAME = "epoch=3-step=30.ckpt"


@pytest.fixture
def original(manager: CheckpointManager) -> Path:
    """A file of torch.save in the folder of the experiment."""
    return _write(manager, NAME)


def _write(manager: CheckpointManager, name: str, epoch: int = 3) -> Path:
    path = experiment_folder(manager) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(epoch)
    torch.save({"state_dict": nn.Linear(3, 2).state_dict(), "epoch": epoch, "global_step": 10 * epoch}, path)
    return path


def _weights(path: Path) -> object:
    return torch.load(path, weights_only=True)["state_dict"]


def test_nothing_is_changed_and_everything_works(make_manager: MakeManager, tmp_path: Path) -> None:
    """The file keeps its bytes and its date; it is validated, loaded, backed up, exported, and found damaged."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    original = _write(manager, NAME)
    before, date = original.read_bytes(), original.stat().st_mtime_ns
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    assert (original.read_bytes(), original.stat().st_mtime_ns) == (before, date)
    found = manager.get_checkpoint(checkpoint_id)
    assert (found.epoch, found.step, found.pinned, found.original, found.file_size) == (3, 30, True, NAME, len(before))
    assert manager.validate_checkpoint(checkpoint_id)
    assert first_difference(manager.load_checkpoint(checkpoint_id)["model_state_dict"], _weights(original)) is None
    assert manager.backup_checkpoint(checkpoint_id)
    assert manager.validate_backup(checkpoint_id)
    assert not manager.doctor().findings
    exported = Path(manager.export_checkpoint(checkpoint_id, tmp_path / "exported"))
    assert exported.read_bytes() == before
    elsewhere = make_manager("elsewhere")
    taken = elsewhere.import_checkpoint(exported)
    assert elsewhere.get_checkpoint(taken).original is None
    assert first_difference(elsewhere.load_checkpoint(taken)["model_state_dict"], _weights(original)) is None
    flip_bit(original, before.index(torch.load(original)["state_dict"]["weight"].numpy().tobytes()) + 3)
    report = manager.validate_checkpoint(checkpoint_id)
    assert [damage.file for damage in report.damages] == [NAME]
    assert "weight" in report.message


def test_importing_again_returns_the_first(manager: CheckpointManager, original: Path) -> None:
    """Once in place, once as a copy; a file that was written over since is refused in place."""
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    assert manager.import_checkpoint(original, in_place=True) == checkpoint_id
    with pytest.raises(CheckpointExistsError, match="key_map"):
        manager.import_checkpoint(original, in_place=True, key_map={"state_dict": "model"})
    _write(manager, NAME, epoch=4)
    with pytest.raises(CheckpointExistsError, match="changed since"):
        manager.import_checkpoint(original, in_place=True)
    assert ids(manager) == [checkpoint_id]


def test_a_deletion_removes_the_record_alone(make_manager: MakeManager) -> None:
    """No retention retires it while it is pinned; a deletion says what stays, and what is in the trash is told of."""
    manager = make_manager(max_checkpoints=1, backup_checkpoints=False)
    original = _write(manager, NAME)
    before = original.read_bytes()
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    for epoch in range(4, 8):
        save(manager, epoch)
    manager.cleanup_checkpoints()
    assert manager.validate_checkpoint(checkpoint_id)
    with pytest.raises(ProtectedCheckpointError, match=f"{NAME} stays"):
        manager.delete_checkpoint(checkpoint_id)
    manager.unpin_checkpoint(checkpoint_id)
    manager.delete_checkpoint(checkpoint_id)
    sweep(home_of(manager))
    with pytest.raises(CheckpointExistsError, match=f"in the trash.*ckpt undelete {checkpoint_id}"):
        manager.import_checkpoint(original, in_place=True)
    (item,) = manager.import_checkpoints(original.parent, in_place=True).failed
    assert (item.path, item.result) == (NAME, "refused")
    assert checkpoint_id not in ids(manager)
    assert manager.undelete_checkpoint(checkpoint_id).original == NAME
    assert manager.validate_checkpoint(checkpoint_id)
    manager.delete_checkpoint(checkpoint_id)
    assert manager.empty_trash() == [checkpoint_id]
    assert original.read_bytes() == before
    assert manager.import_checkpoint(original, in_place=True) != checkpoint_id


def test_retention_frees_nothing_of_it_and_says_so(make_manager: MakeManager) -> None:
    """Unpinned, it is retired like others: the plan and the report count none of its bytes, and the file stays."""
    manager = make_manager(max_checkpoints=3, backup_checkpoints=False)
    original = _write(manager, NAME)
    before = original.read_bytes()
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    manager.unpin_checkpoint(checkpoint_id)
    for epoch in range(4, 6):
        save(manager, epoch)
    planned = manager.cleanup_checkpoints(policy=KeepNewest(count=2), dry_run=True).plan
    assert (planned.deleted_ids, planned.freed_bytes) == ((checkpoint_id,), 0)
    report = manager.cleanup_checkpoints(policy=KeepNewest(count=2))
    assert (report.deleted_ids, report.freed_bytes, report.trashed_bytes) == ((checkpoint_id,), 0, 0)
    assert manager.empty_trash() == [checkpoint_id]
    assert original.read_bytes() == before


class Overwritten:
    """An imported file that was backed up, and that its program has written over since."""

    def __init__(self, manager: CheckpointManager) -> None:
        self.manager = manager
        self.original = _write(manager, NAME)
        self.weights = _weights(self.original)
        self.checkpoint_id = manager.import_checkpoint(self.original, in_place=True)
        manager.backup_checkpoint(self.checkpoint_id)
        _write(manager, NAME, epoch=9)
        self.newer = self.original.read_bytes()

    def stays(self) -> bool:
        return self.original.read_bytes() == self.newer


@pytest.fixture
def overwritten(make_manager: MakeManager, tmp_path: Path) -> Overwritten:
    return Overwritten(make_manager(backup_dir=str(tmp_path / "vault")))


@pytest.mark.parametrize("method", ["repair_checkpoint", "restore_checkpoint"])
def test_no_backup_is_written_over_what_its_program_wrote(overwritten: Overwritten, method: str) -> None:
    """The newest weights are in the file alone: a repair and a restore are refused, and say what to do."""
    name = overwritten.checkpoint_id
    with pytest.raises(ProtectedCheckpointError, match=f"belongs to the program.*ckpt delete {name}"):
        getattr(overwritten.manager, method)(name)
    assert overwritten.stays()


def test_a_file_that_is_gone_is_not_written_anew(overwritten: Overwritten) -> None:
    """Whoever removed it meant to; nothing of that name is there afterwards, and a load takes the backup."""
    overwritten.original.unlink()
    for method in ("repair_checkpoint", "restore_checkpoint"):
        with pytest.raises(ProtectedCheckpointError):
            getattr(overwritten.manager, method)(overwritten.checkpoint_id)
    loaded = overwritten.manager.load_checkpoint(overwritten.checkpoint_id)
    assert first_difference(loaded["model_state_dict"], overwritten.weights) is None
    assert not overwritten.original.exists()


def test_a_quarantine_and_the_doctor_leave_the_file(overwritten: Overwritten) -> None:
    """They set the record aside; a run then still goes on from the backup."""
    manager, name = overwritten.manager, overwritten.checkpoint_id
    manager.unpin_checkpoint(name)
    assert manager.remedy(manager.validate_checkpoint(name)) == "quarantine"
    (found,) = (item for item in manager.doctor(deep=True).findings if item.kind == "damaged")
    assert f"{NAME} belongs to the program" in found.message
    manager.doctor(deep=True, fix=True)
    assert overwritten.stays()
    assert [item.checkpoint_id for item in manager.list_quarantined()] == [name]
    assert manager.quarantine_checkpoint(name).is_quarantined
    assert not [item for item in manager.doctor(deep=True).findings if item.action == "repair"]
    resumed = manager.resume()
    assert resumed is not None
    assert first_difference(resumed["model_state_dict"], overwritten.weights) is None
    assert overwritten.stays()
    assert manager.delete_quarantined(name) == 0
    assert overwritten.stays()


def test_a_run_goes_on_from_the_backup_without_restoring_it(overwritten: Overwritten) -> None:
    """Whether it is named or the newest."""
    manager = overwritten.manager
    for loaded in (manager.resume(), manager.load_checkpoint(overwritten.checkpoint_id)):
        assert loaded is not None
        assert first_difference(loaded["model_state_dict"], overwritten.weights) is None
        assert overwritten.stays()


def test_once_its_record_is_deleted_its_backup_becomes_an_ordinary_checkpoint(overwritten: Overwritten) -> None:
    """It has a name of ours beside the file, and both can be had: the file is imported in place again."""
    manager, name = overwritten.manager, overwritten.checkpoint_id
    manager.unpin_checkpoint(name)
    manager.delete_checkpoint(name)
    assert manager.restore_checkpoint(name).checkpoint_id == name
    assert overwritten.stays()
    assert manager.get_checkpoint(name).original is None
    assert manager.validate_checkpoint(name)
    assert first_difference(manager.load_checkpoint(name)["model_state_dict"], overwritten.weights) is None
    again = manager.import_checkpoint(overwritten.original, in_place=True)
    assert manager.get_checkpoint(again).epoch == 9
    assert sorted(ids(manager)) == sorted([name, again])
    manager.unpin_checkpoint(name)
    manager.delete_checkpoint(name)
    manager.empty_trash()
    assert manager.validate_checkpoint(again)


def test_a_damaged_backup_costs_no_record(overwritten: Overwritten, tmp_path: Path) -> None:
    """A restore reads it to its end before the record in the trash goes."""
    manager, name = overwritten.manager, overwritten.checkpoint_id
    manager.unpin_checkpoint(name)
    manager.delete_checkpoint(name)
    (backup,) = (path for path in (tmp_path / "vault").rglob(f"{name}.*") if path.suffix != ".json")
    flip_bit(backup, backup.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError):
        manager.restore_checkpoint(name)
    assert [item.checkpoint_id for item in home_of(manager).index.view().deleted] == [name]
    assert overwritten.stays()


def test_killed_in_a_restore_the_file_stays_and_the_next_works(
    make_manager: MakeManager, killer: Killer, tmp_path: Path
) -> None:
    """SIGKILL before each step, also between the end of the record and the copy."""
    kill_at = 1
    while True:
        one = Overwritten(make_manager(f"run{kill_at}", backup_dir=str(tmp_path / "vault")))
        one.manager.unpin_checkpoint(one.checkpoint_id)
        one.manager.delete_checkpoint(one.checkpoint_id)
        if not killer.kills(one.manager, "restore_checkpoint", kill_at, checkpoint_id=one.checkpoint_id):
            break
        sweep(home_of(one.manager), abandoned_after_seconds=0)
        assert one.manager.restore_checkpoint(one.checkpoint_id).original is None
        assert one.manager.validate_checkpoint(one.checkpoint_id)
        assert one.stays()
        kill_at += 1
    assert kill_at > 3


def test_what_its_program_changed_is_not_undeleted(overwritten: Overwritten) -> None:
    """Nor what it removed; the trash can be emptied, and the new file is imported in place."""
    manager, name = overwritten.manager, overwritten.checkpoint_id
    manager.unpin_checkpoint(name)
    manager.delete_checkpoint(name)
    with pytest.raises(CorruptCheckpointError, match="its program has changed"):
        manager.undelete_checkpoint(name)
    again = manager.import_checkpoint(overwritten.original, in_place=True)
    assert manager.get_checkpoint(again).epoch == 9
    overwritten.original.unlink()
    with pytest.raises(CorruptCheckpointError, match="missing"):
        manager.undelete_checkpoint(name)
    overwritten.original.write_bytes(overwritten.newer)
    assert manager.empty_trash() == [name]
    assert overwritten.stays()
    assert manager.validate_checkpoint(again)


def test_a_folder_that_holds_links_is_refused(manager: CheckpointManager) -> None:
    """What a link leads to would be missing; a copy holds it."""
    folder = experiment_folder(manager) / "checkpoint-5"
    (folder / "inner").mkdir(parents=True)
    save_file(nn.Linear(3, 2).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder.parent / "blobs").mkdir()
    torch.save({}, folder.parent / "blobs" / "opt.pt")
    (folder / "inner" / "optimizer.pt").symlink_to("../../blobs/opt.pt")
    with pytest.raises(NotACheckpointError, match=r"inner/optimizer.pt is a link.*without --in-place"):
        manager.import_checkpoint(folder, in_place=True)
    assert not ids(manager)
    assert manager.import_checkpoint(folder)


def test_a_restore_brings_a_lost_file_back_under_a_name_of_ours(make_manager: MakeManager, tmp_path: Path) -> None:
    """The backup is read as the original was."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    original = _write(manager, NAME)
    weights = _weights(original)
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    manager.backup_checkpoint(checkpoint_id)
    original.unlink()
    assert not manager.validate_checkpoint(checkpoint_id)
    manager.unpin_checkpoint(checkpoint_id)
    manager.delete_checkpoint(checkpoint_id)
    manager.restore_checkpoint(checkpoint_id)
    assert not original.exists()
    assert manager.validate_checkpoint(checkpoint_id)
    assert first_difference(manager.load_checkpoint(checkpoint_id)["model_state_dict"], weights) is None


def test_a_key_map_is_kept(manager: CheckpointManager) -> None:
    """Each later load reads the file as its import was told."""
    path = experiment_folder(manager) / "odd.pt"
    path.parent.mkdir(parents=True)
    torch.save({"zzz": nn.Linear(2, 2).state_dict()}, path)
    checkpoint_id = manager.import_checkpoint(path, in_place=True, key_map={"zzz": "model"})
    again = CheckpointManager(manager.config, "run")
    assert set(again.load_checkpoint(checkpoint_id)["model_state_dict"]) == {"weight", "bias"}
    assert again.validate_checkpoint(checkpoint_id)


def test_what_cannot_be_in_place_is_refused(manager: CheckpointManager, original: Path, tmp_path: Path) -> None:
    """Files elsewhere, below, linked, ours, and no checkpoints: each with what to do, and nothing is written."""
    outside = tmp_path / "other" / "model.ckpt"
    outside.parent.mkdir()
    outside.write_bytes(original.read_bytes())
    (original.parent / "link.ckpt").symlink_to(original)
    (original.parent / "notes.txt").write_text("notes")
    below = _write(manager, "deep/model.ckpt")
    with pytest.raises(ConfigError, match=f"--store {tmp_path} --experiment other"):
        manager.import_checkpoint(outside, in_place=True)
    with pytest.raises(ConfigError, match="--experiment deep"):
        manager.import_checkpoint(below, in_place=True)
    for name in ("link.ckpt", "notes.txt", "missing.ckpt"):
        with pytest.raises(NotACheckpointError):
            manager.import_checkpoint(original.parent / name, in_place=True)
    saved = save(manager, 1)
    with pytest.raises(InvalidNameError, match="this library gives"):
        manager.import_checkpoint(original.parent / f"{saved}.pt", in_place=True)
    assert ids(manager) == [saved]


def test_it_is_not_thinned_and_nothing_is_saved_that_way(manager: CheckpointManager, original: Path) -> None:
    """The format only reads: a configuration cannot name it, and a checkpoint that needs rewriting stays."""
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    manager.unpin_checkpoint(checkpoint_id)
    with pytest.raises(UnsupportedFormatError, match="foreign"):
        CheckpointManager(CheckpointConfig(checkpoint_dir="unused", format="foreign"), "run")
    with pytest.raises(UnsupportedFormatError, match="cannot be written"):
        format_named("foreign").prepare({})
    assert not manager.thin_checkpoint(checkpoint_id).is_thinned  # it has nothing to drop


@pytest.mark.parametrize("name", ["../run2/x.ckpt", "backups/x.ckpt", ".ckpt-clock", "checkpoint_metadata.json"])
def test_a_manifest_cannot_name_files_of_others(manager: CheckpointManager, original: Path, name: str) -> None:
    """A forged name would be deleted with the checkpoint."""
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    manifest = home_of(manager).get(checkpoint_id)
    forged = manifest.changed(files=(manifest.payload.model_copy(update={"name": name}),))
    (original.parent / f"{checkpoint_id}.json").write_bytes(forged.to_bytes())
    with pytest.raises(CorruptManifestError):
        home_of(manager).read(checkpoint_id)


def test_killed_at_any_step_the_file_stays_and_the_import_works(make_manager: MakeManager, killer: Killer) -> None:
    """SIGKILL before each step; then a sweep, and the same import again."""
    kill_at = 1
    while True:
        manager = make_manager(f"run{kill_at}", backup_checkpoints=False)
        original = _write(manager, NAME)
        before = original.read_bytes()
        if not killer.kills(manager, "import_checkpoint", kill_at, source=str(original), in_place=True):
            break
        sweep(home_of(manager), abandoned_after_seconds=0)
        assert original.read_bytes() == before
        checkpoint_id = manager.import_checkpoint(original, in_place=True)
        assert ids(manager) == [checkpoint_id]
        assert manager.validate_checkpoint(checkpoint_id)
        assert original.read_bytes() == before
        kill_at += 1
    assert kill_at > 2


def test_a_folder_is_a_checkpoint_in_place(make_manager: MakeManager, tmp_path: Path) -> None:
    """The folder of a Hugging Face trainer, with all of its files: validated, backed up, deleted, restored."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    folder = experiment_folder(manager) / "checkpoint-5"
    folder.mkdir(parents=True)
    weights = nn.Linear(3, 2).state_dict()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "trainer_state.json").write_text('{"global_step": 5, "epoch": 1.0, "log_history": []}')
    checkpoint_id = manager.import_checkpoint(folder, in_place=True)
    found = manager.get_checkpoint(checkpoint_id)
    assert (found.step, found.original) == (5, "checkpoint-5")
    assert manager.validate_checkpoint(checkpoint_id)
    loaded = manager.load_checkpoint(checkpoint_id)["model_state_dict"]
    assert all(torch.equal(loaded[name], weights[name]) for name in ("weight", "bias"))
    manager.backup_checkpoint(checkpoint_id)
    (folder / "model.safetensors").unlink()
    assert [damage.kind for damage in manager.validate_checkpoint(checkpoint_id).damages] == ["missing"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ProtectedCheckpointError, match="checkpoint-5 was imported in place"):
        manager.repair_checkpoint(checkpoint_id)
    manager.unpin_checkpoint(checkpoint_id)
    manager.delete_checkpoint(checkpoint_id)
    assert manager.empty_trash() == [checkpoint_id]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "notes.txt", "trainer_state.json"]
    manager.restore_checkpoint(checkpoint_id)
    assert manager.validate_checkpoint(checkpoint_id)
