"""Exports: verified, to a folder or to a file, and over nothing of anybody else's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import CheckpointExistsError, ConfigError, CorruptCheckpointError
from ckpt_lib.experiment import claims
from tests.helpers import MakeManager, experiment_folder, flip_bit, payload_path, save, snapshot, without_locks
from tests.maintenance.pairs import DAMAGES, pair
from tests.maintenance.records import manifest_in


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


@pytest.mark.parametrize("save_metadata", [True, False])
def test_an_export_never_becomes_the_latest_of_an_experiment(make_manager: MakeManager, save_metadata: bool) -> None:
    """The folder of one takes imports and no exports, its own neither, nor that of its backups."""
    manager, other = (make_manager(name, save_metadata=save_metadata, backup_checkpoints=True) for name in "ab")
    saved, _ = save(manager, 1), save(other, 2)
    for folder in map(experiment_folder, (manager, other)):
        for target in (folder, folder / "backups"):
            before = snapshot(folder)
            with pytest.raises(ConfigError, match="of an experiment"):
                manager.export_checkpoint(saved, target)
            assert snapshot(folder) == before


@pytest.mark.parametrize("left", ["backups", "saving", "purged"])
def test_an_export_goes_to_no_experiment_without_a_checkpoint(make_manager: MakeManager, left: str) -> None:
    """Whose checkpoints are all gone, but for their backups, or one of which is being saved."""
    manager, other = make_manager("a"), make_manager("b", save_metadata=False, backup_checkpoints=left == "backups")
    saved, home = save(manager, 1), experiment_folder(other)
    if left == "saving":
        claims.claim_new(other._locations.home, CheckpointId.parse(saved), "a" * 32, ".pt")
    else:
        gone = save(other, 2)
        if left == "purged":
            other.delete_checkpoint(gone)
            other.empty_trash()
        for path in pair(other, gone):
            path.unlink(missing_ok=True)
    before = snapshot(home)
    with pytest.raises(ConfigError, match="of an experiment"):
        manager.export_checkpoint(saved, home)
    assert snapshot(home) == before


def test_a_folder_of_other_files_takes_exports(manager: CheckpointManager, tmp_path: Path) -> None:
    """Also one that has folders of the names that an experiment gives its own, and exports of other experiments."""
    for name in ("backups/old.txt", "keys/id_rsa", "uids/1"):
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        (tmp_path / "out" / name).write_text("a person's own")
    for epoch in range(2):
        manager.export_checkpoint(save(manager, epoch), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.pt"))) == 2


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


@pytest.mark.parametrize("name", ["w.safetensors", "W.SafeTensors"])
@pytest.mark.parametrize("stored", ["torch", "safetensors"])
def test_an_export_is_no_folder_with_the_name_of_a_file(
    make_manager: MakeManager, tmp_path: Path, name: str, stored: str
) -> None:
    """The conversion that makes such a file is named; a folder that exists or ends with a slash is meant as one."""
    manager = make_manager(format=stored)
    saved = save(manager, 3)
    with pytest.raises(ConfigError, match="--format safetensors"):
        manager.export_checkpoint(saved, tmp_path / "out" / name)
    assert not (tmp_path / "out").exists()
    exported = manager.export_checkpoint(saved, f"{tmp_path / 'out' / name}/")
    assert manager.export_checkpoint(saved, tmp_path / "out" / name) == exported
    assert Path(exported).parent == tmp_path / "out" / name


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


@pytest.mark.parametrize("name", ["best.pt", "folder"])
def test_an_export_sets_no_room_aside(make_manager: MakeManager, tmp_path: Path, name: str) -> None:
    """Nobody deletes there on a full disk: what stays beside the export is a lock of a few bytes."""
    manager = make_manager()
    exported = Path(manager.export_checkpoint(save(manager, 1), tmp_path / "out" / name))
    own = exported.parent / ".ckpt-tmp"
    assert sum(path.stat().st_size for path in own.iterdir()) < 1000
