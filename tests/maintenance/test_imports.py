"""Imports: by every door, once, verified, and as the newest of their experiment."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import (
    CheckpointExistsError,
    ConfigError,
    CorruptCheckpointError,
    IntegrityError,
    NotACheckpointError,
)
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.helpers import MakeManager, experiment_folder, flip_bit, ids, manifest_path, payload_path, save
from tests.maintenance.pairs import DAMAGES
from tests.maintenance.records import manifest_in


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


def test_a_payload_with_nan_is_no_checkpoint_to_resume_from(make_manager: MakeManager, tmp_path: Path) -> None:
    """Its numbers are looked at as those of a save, though it has no manifest that says how they are."""
    manager = make_manager(health_check=True)
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    manager.save_checkpoint(model=model, epoch=1)
    exported = manager.export_checkpoint("latest", tmp_path / "bare.pt")
    other = make_manager("other", health_check=True)
    assert not other.get_checkpoint(other.import_checkpoint(exported)).healthy


def test_an_archive_that_names_a_record_often_is_refused_unread(
    make_manager: MakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it once for each name would take for ever: a small file can name gigabytes."""
    path = tmp_path / "best.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(1000))
        archive.filelist *= 1000
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("its records are read"))
    with pytest.raises(CorruptCheckpointError, match="repeated"):
        make_manager("target").import_checkpoint(path)


def test_another_payload_under_the_same_uid_is_refused(make_manager: MakeManager, tmp_path: Path) -> None:
    """A manifest that somebody wrote stands for no checkpoint that is here."""
    source, target = make_manager("source"), make_manager("target")
    here = target.import_checkpoint(source.export_checkpoint(save(source, 1), tmp_path / "one"))
    other = Path(source.export_checkpoint(save(source, 2), tmp_path / "two")).with_suffix(".json")
    forged = manifest_in(other).changed(uid=target._locations.home.get(here).uid)
    other.write_bytes(forged.to_bytes())
    with pytest.raises(CheckpointExistsError, match="holds something else"):
        target.import_checkpoint(other)
    assert ids(target) == [here]


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


def test_an_import_says_why_it_cannot(manager: CheckpointManager, tmp_path: Path) -> None:
    """A missing path, a folder and each kind of file that is no checkpoint have their own sentences."""
    exported = Path(manager.export_checkpoint(save(manager, 1), tmp_path / "exported"))
    (tmp_path / "lone").mkdir()
    exported.rename(tmp_path / "lone" / exported.name)
    torch.save({"a": 1}, tmp_path / "foreign.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as script:
        script.writestr("model/data.pkl", b"")
        script.writestr("model/constants.pkl", b"")
    np.savez(tmp_path / "arrays.npz", a=np.ones(2))
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "junk.pt").write_bytes(b"junk" * 10)
    (tmp_path / "nothing.pt").write_bytes(b"")
    reasons = {
        "missing.pt": "there is nothing at this path",
        "lone": "the folder holds no checkpoint",
        "foreign.pt": "a file of torch.save, and cannot be imported",
        "pickle.pt": "a pickle",
        "script.pt": "a TorchScript archive",
        "junk.pt": "an unknown kind",
        "nothing.pt": "an empty file",
    }
    for name, reason in reasons.items():
        with pytest.raises(NotACheckpointError, match=reason):
            manager.import_checkpoint(tmp_path / name)
    for name in ("cut.pt", "arrays.npz"):
        with pytest.raises(CorruptCheckpointError):
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
