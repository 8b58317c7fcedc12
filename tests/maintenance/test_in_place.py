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
    CorruptManifestError,
    InvalidNameError,
    NotACheckpointError,
    ProtectedCheckpointError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.formats import format_named
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
    """The file keeps its bytes and its date; it is validated, loaded, backed up, exported, damaged, repaired."""
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
    manager.repair_checkpoint(checkpoint_id)
    assert original.read_bytes() == before


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


def test_only_who_unpins_and_deletes_it_deletes_the_file(make_manager: MakeManager) -> None:
    """No retention does; a deletion by name says so first, and what is in the trash comes back."""
    manager = make_manager(max_checkpoints=1, backup_checkpoints=False)
    original = _write(manager, NAME)
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    for epoch in range(4, 8):
        save(manager, epoch)
    manager.cleanup_checkpoints()
    assert manager.validate_checkpoint(checkpoint_id)
    with pytest.raises(ProtectedCheckpointError, match=f"deletes {NAME}"):
        manager.delete_checkpoint(checkpoint_id)
    manager.unpin_checkpoint(checkpoint_id)
    manager.delete_checkpoint(checkpoint_id)
    sweep(home_of(manager))
    assert original.exists()
    assert manager.import_checkpoint(original, in_place=True) == checkpoint_id  # back from the trash
    manager.delete_checkpoint(checkpoint_id)
    manager.empty_trash()
    assert not original.exists()


def test_a_restore_brings_a_lost_file_back_under_a_name_of_ours(make_manager: MakeManager, tmp_path: Path) -> None:
    """The backup is read as the original was."""
    manager = make_manager(backup_dir=str(tmp_path / "vault"))
    original = _write(manager, NAME)
    weights = _weights(original)
    checkpoint_id = manager.import_checkpoint(original, in_place=True)
    manager.backup_checkpoint(checkpoint_id)
    original.unlink()
    assert not manager.validate_checkpoint(checkpoint_id)
    manager.restore_checkpoint(checkpoint_id)
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
    """The folder of a Hugging Face trainer, with all of its files: validated, backed up, restored, deleted."""
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
    manager.repair_checkpoint(checkpoint_id)
    assert manager.validate_checkpoint(checkpoint_id)
    assert not manager.doctor().findings
    manager.unpin_checkpoint(checkpoint_id)
    manager.delete_checkpoint(checkpoint_id)
    manager.empty_trash()
    assert [path.name for path in folder.rglob("*") if path.name != "lock"] == [".ckpt-tmp"]
    manager.restore_checkpoint(checkpoint_id)
    assert manager.validate_checkpoint(checkpoint_id)
