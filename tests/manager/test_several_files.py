"""A format that writes a folder of files, through everything that is done to a checkpoint, on disk and in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import ConfigError, CorruptCheckpointError, UnsupportedFormatError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.store import open_store
from tests.formats.folder_format import NAME, NAMES, OPTIMIZER, FolderFormat
from tests.helpers import (
    MakeManager,
    Parts,
    backup_ids,
    build,
    experiment_folder,
    ids,
    is_bookkeeping,
    leave_unfinished,
    save,
    state_of,
    train,
)

Make = Callable[..., CheckpointManager]


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path, folder_format: FolderFormat) -> Iterator[Make]:
    """Managers of one store that save in the folder format."""
    url = str(tmp_path / "store") if request.param == "file" else f"memory://{tmp_path.name}"

    def made(**options: Any) -> CheckpointManager:
        return CheckpointManager(CheckpointConfig(checkpoint_dir=url, **{"format": NAME, **options}), "run")

    yield made
    store = open_store(url)
    for entry in store.list("", recursive=True):
        store.delete(entry.key)


@pytest.fixture
def trained() -> Parts:
    parts = build()
    train(parts, [1])
    return parts


def save_parts(manager: CheckpointManager, parts: Parts, epoch: int = 1) -> str:
    return str(manager.save_checkpoint(**parts.kwargs(), epoch=epoch, metrics={"val_loss": 1 / epoch}))


def home_of(manager: CheckpointManager) -> Experiment:
    return manager._locations.home


def file_of(manager: CheckpointManager, checkpoint_id: str, name: str) -> FileEntry:
    manifest = home_of(manager).get(checkpoint_id)
    return next(file for file in manifest.files if file.part == name)


def damage(manager: CheckpointManager, checkpoint_id: str, name: str) -> None:
    """Alter the bytes in the middle of one file, where tensors lie."""
    home, file = home_of(manager), file_of(manager, checkpoint_id, name)
    with open_file(home, file.name) as stored:
        data = bytearray(stored.readall())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    home.store.put(home.key(file.name), bytes(data))


def stored_names(manager: CheckpointManager) -> set[str]:
    """The names of all payload files that lie in the experiment."""
    home = home_of(manager)
    start = len(home.key(""))
    found = (entry.key[start:].lstrip("/") for entry in home.store.list(home.key(""), recursive=True))
    return {name for name in found if "/" in name and not name.startswith(("backups/", "keys/", "uids/", "."))}


def files_of(manager: CheckpointManager, *checkpoint_ids: str) -> set[str]:
    return {file.name for checkpoint_id in checkpoint_ids for file in home_of(manager).get(checkpoint_id).files}


def test_a_run_is_saved_and_goes_on(make: Make, trained: Parts) -> None:
    """Model, optimizer and scheduler bit for bit; the sizes are those of all files."""
    manager, fresh = make(), build(seed=1)
    saved = save_parts(manager, trained)
    manifest = home_of(manager).get(saved)
    assert [file.part for file in manifest.files] == list(NAMES)
    assert manager.get_checkpoint(saved).file_size == sum(file.size_bytes for file in manifest.files)
    resumed = make().resume(**fresh.kwargs())
    assert resumed is not None
    assert resumed["checkpoint_id"] == saved
    assert state_of(fresh) == state_of(trained)


def test_a_background_save_writes_the_same(make: Make, trained: Parts) -> None:
    """The copy of the state is written in the chosen format."""
    manager, fresh = make(), build(seed=1)
    manager.save_checkpoint_async(**trained.kwargs(), epoch=1).result()
    assert manager.load_checkpoint("latest", **fresh.kwargs())["epoch"] == 1
    assert state_of(fresh) == state_of(trained)


def test_a_part_is_loaded_from_its_own_file(make: Make, trained: Parts) -> None:
    """Damage of another file does not matter to it, and nothing else is loaded from a damaged payload."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    damage(manager, saved, OPTIMIZER)
    found = manager.load_checkpoint(saved, keys=["model_state_dict", "epoch"])
    assert torch.equal(found["model_state_dict"]["0.weight"], trained.model.state_dict()["0.weight"])
    fresh = build(seed=1)
    before = state_of(fresh)
    with pytest.raises(CorruptCheckpointError) as refused:
        manager.load_checkpoint(saved, model=fresh.model)
    assert {item.file for item in refused.value.damages} == {file_of(manager, saved, OPTIMIZER).name}
    assert state_of(fresh) == before


def test_damage_of_several_files_is_told_at_once(make: Make, trained: Parts) -> None:
    """All files of a payload are verified before the format reads one of them."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    for name in NAMES[:2]:
        damage(manager, saved, name)
    with pytest.raises(CorruptCheckpointError) as refused:
        manager.load_checkpoint(saved)
    assert {item.file for item in refused.value.damages} == {file_of(manager, saved, name).name for name in NAMES[:2]}


def test_a_missing_file_is_told_by_its_name(make: Make, trained: Parts) -> None:
    """The error says which one, and where."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    home, file = home_of(manager), file_of(manager, saved, OPTIMIZER)
    home.store.delete(home.key(file.name))
    with pytest.raises(CorruptCheckpointError) as refused:
        manager.load_checkpoint(saved)
    assert [(item.kind, item.file) for item in refused.value.damages] == [("missing", file.name)]
    assert refused.value.checkpoint_id == saved
    assert refused.value.path == home.location(file.name)
    assert [item.kind for item in manager.validate_checkpoint(saved).damages] == ["missing"]


def test_what_lost_a_file_keeps_its_backup_and_takes_no_place(make: Make) -> None:
    """No cleanup retires the only sound copy, and a best one that was lost refuses no save that is the best now."""

    def lose(checkpoint_id: str) -> None:
        home = home_of(manager)
        home.store.delete(home.key(file_of(manager, checkpoint_id, OPTIMIZER).name))

    manager = make(max_backups=2)
    lost = save(manager, 1, 0.9)
    lose(lost)
    best, *others = (save(make(max_backups=2), epoch, epoch / 10) for epoch in range(2, 6))
    assert backup_ids(manager) == [lost, best, others[-1]]
    lose(best)
    assert save(make(save_best_only=True), 6, 0.25)


def test_damage_of_the_second_file_is_found_named_and_repaired(make: Make, trained: Parts) -> None:
    """By validation and scrub, with the tensors that it hits; the backup has what was lost."""
    manager = make()
    saved = save_parts(manager, trained)
    damage(manager, saved, OPTIMIZER)
    report = manager.validate_checkpoint(saved)
    assert {item.file for item in report.damages} == {file_of(manager, saved, OPTIMIZER).name}
    hit = {name for item in report.damages for name in item.tensors}
    assert hit
    assert all(name.startswith("optimizer_state_dict.") for name in hit)
    assert not manager.scrub()
    manager.repair_checkpoint(saved)
    assert manager.validate_checkpoint(saved)
    fresh = build(seed=1)
    manager.load_checkpoint(saved, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


def test_what_only_running_code_could_load_is_invalid(make: Make, trained: Parts) -> None:
    """Validation looks into each file, not at its digests alone."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    home, file = home_of(manager), file_of(manager, saved, OPTIMIZER)
    found = home.read(saved)
    assert isinstance(found.record, Manifest)
    other = home.get(saved).files[0]  # sound bytes, of the wrong file
    with open_file(home, other.name) as stored:
        home.store.put(home.key(file.name), stored.readall())
    files = tuple(other.model_copy(update={"name": item.name}) if item == file else item for item in found.record.files)
    home.put_record(found.record.changed(files=files), found.version)
    assert [item.kind for item in manager.validate_checkpoint(saved).damages] == ["unloadable"]


def test_a_backup_brings_all_files_back(make: Make, trained: Parts) -> None:
    """After each file was lost."""
    manager = make()
    saved = save_parts(manager, trained)
    assert backup_ids(manager) == [saved]
    home = home_of(manager)
    for file in home.get(saved).files:
        home.store.delete(home.key(file.name))
    manager.restore_checkpoint(saved)
    assert manager.validate_checkpoint(saved)


def test_an_export_is_imported_elsewhere(make: Make, trained: Parts, tmp_path: Path) -> None:
    """A folder with all files; one file cannot hold it, and is refused before anything is written."""
    manager = make()
    saved = save_parts(manager, trained)
    with pytest.raises(ConfigError, match="3 files"):
        manager.export_checkpoint(saved, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
    where = Path(manager.export_checkpoint(saved, tmp_path / "out"))
    exported = {str(path.relative_to(where)) for path in where.rglob("*") if path.is_file()}
    assert {name for name in exported if not is_bookkeeping(name)} == set(NAMES)
    other = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "other")), "run")
    imported = other.import_checkpoint(tmp_path / "out")
    assert other.import_checkpoint(tmp_path / "out") == imported
    fresh = build(seed=1)
    other.load_checkpoint(imported, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


def test_a_quarantine_is_of_the_whole_checkpoint(make: Make, trained: Parts) -> None:
    """One damaged file sets all aside; deleting it frees all."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    size_bytes = home_of(manager).get(saved).size_bytes
    damage(manager, saved, OPTIMIZER)
    manager.quarantine_checkpoint(saved)
    assert [(item.checkpoint_id, item.size_bytes) for item in manager.list_quarantined()] == [(saved, size_bytes)]
    assert ids(manager) == []
    manager.delete_quarantined(saved)
    assert stored_names(manager) == set()


def test_retention_and_the_trash_remove_all_files(make: Make) -> None:
    """Those of what stays are all that is left; what is deleted comes back whole until then."""
    manager = make(max_checkpoints=2, backup_checkpoints=False)
    saved = [save(manager, epoch, 1 / (epoch + 1)) for epoch in range(4)]
    assert ids(manager) == saved[2:]
    manager.empty_trash()  # stores that map no files keep retired ones for a while
    assert stored_names(manager) == files_of(manager, *saved[2:])
    manager.delete_checkpoint(saved[2])
    manager.undelete_checkpoint(saved[2])
    assert manager.validate_checkpoint(saved[2])
    manager.delete_checkpoint(saved[2])
    assert manager.empty_trash() == [saved[2]]
    assert stored_names(manager) == files_of(manager, saved[3])


def test_files_that_were_loaded_are_cached(make: Make, trained: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by itself, when all of them fit."""
    manager = make(cache_size_bytes=2**20)
    saved = save_parts(manager, trained)
    manager.load_checkpoint(saved)
    monkeypatch.delattr("ckpt_lib.experiment.stored_payload.open_file")
    fresh = build(seed=1)
    manager.load_checkpoint(saved, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)
    small = make(cache_size_bytes=home_of(manager).get(saved).size_bytes - 1)
    monkeypatch.undo()
    small.load_checkpoint(saved)
    assert small._loader.cache is not None
    assert small._loader.cache.size_bytes == 0


def test_what_a_killed_save_had_written_goes(make_manager: MakeManager, folder_format: FolderFormat) -> None:
    """Half of the first file, of which no key tells yet."""
    manager = make_manager(format=NAME)
    save(manager, 1)
    checkpoint_id = leave_unfinished(experiment_folder(manager), is_folder=True)
    folder = experiment_folder(manager) / checkpoint_id
    assert [path.name for path in folder.rglob("*.tmp")] == ["half.tmp"]
    manager.cleanup_checkpoints()
    assert list(folder.rglob("*.tmp")) == []


def test_the_same_content_is_saved_once(make: Make, trained: Parts) -> None:
    """It is compared in all files, under one idempotency key."""
    manager = make()
    options: dict[str, Any] = {"epoch": 1, "idempotency_key": "k", "compare_content": True}
    first = manager.save_checkpoint(**trained.kwargs(), **options)
    assert manager.save_checkpoint(**trained.kwargs(), **options) == first
    train(trained, [2])
    assert manager.save_checkpoint(**trained.kwargs(), **options) != first


def test_checkpoints_of_two_formats_live_side_by_side(make: Make, trained: Parts) -> None:
    """Loading goes by what the manifest says, whatever the configuration chooses for new ones."""
    one, other = save_parts(make(format="torch"), trained, 1), save_parts(make(), trained, 2)
    manager = make(format="torch")
    assert ids(manager) == [one, other]
    for saved in (one, other):
        fresh = build(seed=1)
        manager.load_checkpoint(saved, **fresh.kwargs())
        assert state_of(fresh) == state_of(trained)


def test_a_format_that_is_not_installed_is_refused_at_once(make_manager: MakeManager) -> None:
    """By name, with those there are, before anything is written."""
    with pytest.raises(UnsupportedFormatError) as refused:
        make_manager(format="sefatensors")
    assert "torch" in str(refused.value.expected)
