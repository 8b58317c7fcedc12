"""Compressed payloads through everything that is done to a checkpoint: of one file and of several."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import zstandard
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import (
    CheckpointExistsError,
    ConfigError,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.formats import format_named
from tests.formats.folder_format import NAME as FOLDER
from tests.formats.folder_format import FolderFormat
from tests.helpers import Parts, backup_ids, build, flip_bit, ids, save, state_of, train

Compression = bool | Literal["zstd"]
Make = Callable[..., CheckpointManager]

SUFFIXES: dict[Compression, str] = {False: ".pt", True: ".pt.planes", "zstd": ".pt.zst"}
WIDTH = 4096
COMPRESSED: tuple[Compression, ...] = (True, "zstd")


@pytest.fixture(params=["torch", "safetensors", FOLDER])
def payload_format(request: pytest.FixtureRequest, folder_format: FolderFormat) -> str:
    return str(request.param)


@pytest.fixture
def make(tmp_path: Path, payload_format: str, compression: Compression) -> Make:
    def made(**options: Any) -> CheckpointManager:
        chosen = {"checkpoint_dir": str(tmp_path / "store"), "format": payload_format, "compression": compression}
        return CheckpointManager(CheckpointConfig(**{**chosen, **options}), "run")

    return made


EACH = pytest.mark.parametrize("compression", SUFFIXES, ids=str)
EACH_COMPRESSED = pytest.mark.parametrize("compression", COMPRESSED, ids=str)
ONE_FILE = pytest.mark.parametrize("payload_format", ["torch"], indirect=True)


@pytest.fixture
def trained() -> Parts:
    parts = build(width=WIDTH)
    train(parts, [1])
    return parts


def save_parts(manager: CheckpointManager, parts: Parts, epoch: int = 1) -> str:
    return str(manager.save_checkpoint(**parts.kwargs(), epoch=epoch, metrics={"val_loss": 1 / epoch}))


def home_of(manager: CheckpointManager) -> Experiment:
    return manager._locations.home


def manifest_of(manager: CheckpointManager, checkpoint_id: str) -> Manifest:
    return home_of(manager).get(checkpoint_id)


def path_of(manager: CheckpointManager, file: FileEntry) -> Path:
    return Path(home_of(manager).location(file.name).removeprefix("file://"))


def damage(manager: CheckpointManager, checkpoint_id: str) -> FileEntry:
    """Alter a byte in the middle of the largest file."""
    file = max(manifest_of(manager, checkpoint_id).files, key=lambda file: file.size_bytes)
    flip_bit(path_of(manager, file), file.size_bytes // 2)
    return file


@EACH
def test_a_run_is_saved_and_goes_on(make: Make, trained: Parts, compression: Compression) -> None:
    """Bit for bit, whatever the next process would compress; the manifest says how large all of it is."""
    saved = save_parts(make(), trained)
    fresh = build(seed=1, width=WIDTH)
    resumed = make(compression=False).resume(**fresh.kwargs())
    assert resumed is not None
    assert state_of(fresh) == state_of(trained)
    manifest, metadata = manifest_of(make(), saved), make().get_checkpoint(saved)
    assert metadata.file_size == manifest.size_bytes
    assert (metadata.uncompressed_size > metadata.file_size) == bool(compression)
    for file in manifest.files:
        assert path_of(make(), file).stat().st_size == file.size_bytes
        assert bool(file.compression) == bool(compression)
    assert make().validate_checkpoint(saved)
    assert make().scrub()


@EACH
@ONE_FILE
def test_the_name_says_how_a_payload_is_stored(make: Make, trained: Parts, compression: Compression) -> None:
    """Its suffix does, and the format in the manifest, so that an older version says what it cannot read."""
    saved = save_parts(make(), trained)
    manifest = manifest_of(make(), saved)
    assert manifest.payload_name == saved + SUFFIXES[compression]
    assert manifest.format == {False: "torch", True: "torch+planes", "zstd": "torch+zstd"}[compression]


@EACH_COMPRESSED
def test_a_background_save_and_its_backup_write_the_same(make: Make, trained: Parts) -> None:
    """The copy of the state is compressed, and so is the backup, byte for byte."""
    manager = make()
    saved = str(manager.save_checkpoint_async(**trained.kwargs(), epoch=1).result())
    manager.flush()
    assert backup_ids(manager) == [saved]
    home = manifest_of(manager, saved)
    backup = manager._locations.backups.get(saved)
    assert [(file.part, file.sha256, file.compression) for file in backup.files] == [
        (file.part, file.sha256, file.compression) for file in home.files
    ]


@EACH_COMPRESSED
def test_damage_is_found_named_and_repaired(make: Make, trained: Parts) -> None:
    """By validation, with the tensors whose frames it hits; the backup has what was lost."""
    manager = make()
    saved = save_parts(manager, trained)
    file = damage(manager, saved)
    report = manager.validate_checkpoint(saved)
    assert {item.file for item in report.damages} == {file.name}
    assert {name.partition(".")[0] for item in report.damages for name in item.tensors} & {
        "optimizer_state_dict",
        "model_state_dict",
    }
    manager.repair_checkpoint(saved)
    assert manager.validate_checkpoint(saved)


@ONE_FILE
@EACH_COMPRESSED
def test_a_load_tells_all_damage(make: Make, tmp_path: Path) -> None:
    """Also where the table of the frames, which is read first, is damaged, and frames of other chunks are."""
    manager = make(backup_checkpoints=False, save_rng=False)
    noise = torch.randint(256, (25 * 2**20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    checkpoint_id = manager.save_state({"model_state_dict": {"noise": noise}}, epoch=1)
    (payload,) = (tmp_path / "store" / "run").glob(f"{checkpoint_id}.pt.*")
    chunk, size = 8 * 2**20, payload.stat().st_size
    for position in (chunk // 2, 2 * chunk + 5, size - 1):
        flip_bit(payload, position)
    with pytest.raises(CorruptCheckpointError) as refused:
        manager.load_checkpoint(str(checkpoint_id))
    ranges = [(damage.start, damage.stop) for damage in refused.value.damages]
    assert ranges == [(0, chunk), (2 * chunk, size)]


@EACH_COMPRESSED
def test_a_backup_brings_it_back(make: Make, trained: Parts) -> None:
    """After each file was lost, and from another store as well."""
    manager = make()
    saved = save_parts(manager, trained)
    for file in manifest_of(manager, saved).files:
        path_of(manager, file).unlink()
    manager.restore_checkpoint(saved)
    fresh = build(seed=1, width=WIDTH)
    manager.load_checkpoint(saved, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


@EACH_COMPRESSED
def test_it_is_thinned_and_made_whole_again(make: Make, trained: Parts) -> None:
    """What is left is compressed, too."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    before = manifest_of(manager, saved)
    save_parts(manager, trained, 2)
    assert manager.thin_checkpoint(saved).is_thinned
    thinned = manifest_of(manager, saved)
    assert all(file.compression for file in thinned.files)
    assert thinned.size_bytes < before.size_bytes / 2
    assert manager.validate_checkpoint(saved)
    model = build(seed=1, width=WIDTH).model
    manager.load_checkpoint(saved, model=model)
    assert torch.equal(model.state_dict()["0.weight"], trained.model.state_dict()["0.weight"])
    manager.unthin_checkpoint(saved)
    assert manifest_of(manager, saved).files == before.files
    fresh = build(seed=1, width=WIDTH)
    manager.load_checkpoint(saved, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


@EACH_COMPRESSED
@ONE_FILE
def test_a_plain_copy_and_its_compressed_backup_do_not_mix(make: Make, trained: Parts, tmp_path: Path) -> None:
    """An export came back in the place of what was purged: it has its backup, and neither is written over the other."""
    manager = make(trash_seconds=0)
    saved = save_parts(manager, trained)
    keeper = save_parts(manager, trained, 2)
    manager.export_checkpoint(saved, tmp_path / "out")
    manager.delete_checkpoint(saved)
    manager.empty_trash()
    assert ids(manager) == [keeper]
    assert manager.import_checkpoint(tmp_path / "out") == saved
    plain = manifest_of(manager, saved)
    assert (plain.format, plain.payload.compression) == ("torch", None)
    assert manager.validate_checkpoint(saved)
    manager.backup_checkpoint(saved)
    backup = manager._locations.backups.get(saved)
    assert backup.saved_sha256 == plain.saved_sha256
    assert backup.payload.compression
    damage(manager, saved)
    with pytest.raises(CheckpointExistsError, match="not compressed as the other"):
        manager.restore_checkpoint(saved)
    assert manifest_of(manager, saved).format == "torch"
    manager.delete_checkpoint(saved)
    manager.empty_trash()
    manager.restore_checkpoint(saved)
    assert manifest_of(manager, saved).files[0].compression
    fresh = build(seed=1, width=WIDTH)
    manager.load_checkpoint(saved, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


@EACH_COMPRESSED
def test_an_export_is_the_plain_payload(
    make: Make, trained: Parts, tmp_path: Path, payload_format: str, compression: Compression
) -> None:
    """What anyone can read; with a manifest that makes it a copy of the checkpoint, twice the same."""
    manager = make()
    saved = save_parts(manager, trained)
    plain = make(compression=False, checkpoint_dir=str(tmp_path / "plain"))
    wanted = manifest_of(plain, save_parts(plain, trained))
    where = manager.export_checkpoint(saved, tmp_path / "out")
    assert manager.export_checkpoint(saved, tmp_path / "out") == where
    exported = Experiment_at(tmp_path / "out").get(saved)
    assert exported.format == payload_format
    assert [(file.part, file.size_bytes) for file in exported.files] == [
        (file.part, file.size_bytes) for file in wanted.files
    ]
    assert exported.saved_sha256 == manifest_of(manager, saved).saved_sha256
    assert manager.import_checkpoint(tmp_path / "out") == saved  # it is there already
    other = make(checkpoint_dir=str(tmp_path / "other"))
    imported = other.import_checkpoint(tmp_path / "out")
    fresh = build(seed=1, width=WIDTH)
    other.load_checkpoint(imported, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


def Experiment_at(folder: Path) -> Experiment:  # noqa: N802
    from ckpt_lib.store import open_store

    return Experiment(open_store(folder), "", "run")


@EACH_COMPRESSED
@ONE_FILE
def test_a_file_is_exported_for_torch_load(make: Make, trained: Parts, tmp_path: Path) -> None:
    """Plain PyTorch reads it."""
    manager = make()
    saved = save_parts(manager, trained)
    target = tmp_path / "weights.pt"
    assert manager.export_checkpoint(saved, target) == str(target)
    found = torch.load(target, weights_only=True)
    assert torch.equal(found["model_state_dict"]["0.weight"], trained.model.state_dict()["0.weight"])
    assert manager.export_checkpoint(saved, target) == str(target)
    target.write_bytes(b"another file")
    with pytest.raises(CheckpointExistsError):
        manager.export_checkpoint(saved, target)


@EACH_COMPRESSED
@ONE_FILE
def test_a_bare_file_of_ours_is_imported(make: Make, trained: Parts, tmp_path: Path, compression: Compression) -> None:
    """As it is, by what it holds; one that is damaged is refused."""
    manager = make()
    saved = save_parts(manager, trained)
    source = tmp_path / f"found{SUFFIXES[compression]}"
    shutil.copy(path_of(manager, manifest_of(manager, saved).payload), source)
    other = make(checkpoint_dir=str(tmp_path / "other"))
    imported = other.import_checkpoint(source)
    entry = manifest_of(other, imported).payload
    assert entry.sha256 == manifest_of(manager, saved).sha256
    assert entry.compression is not None
    assert entry.compression.plain_size_bytes == manifest_of(manager, saved).plain_size_bytes
    fresh = build(seed=1, width=WIDTH)
    other.load_checkpoint(imported, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)
    flip_bit(source, source.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError):
        other.import_checkpoint(source)


@pytest.mark.parametrize("compression", ["zstd"])
@ONE_FILE
def test_zstd_gives_the_ordinary_payload(make: Make, trained: Parts, tmp_path: Path) -> None:
    """Byte for byte what is written without compression, by any program that reads zstd."""
    saved = save_parts(make(), trained)
    file = path_of(make(), manifest_of(make(), saved).payload)
    with zstandard.ZstdDecompressor().stream_reader(file.read_bytes(), read_across_frames=True) as reader:
        plain = reader.read()
    target = Path(make().export_checkpoint(saved, tmp_path / "plain.pt"))
    assert target.read_bytes() == plain
    assert torch.load(target, weights_only=True)["epoch"] == 1


@EACH_COMPRESSED
@ONE_FILE
def test_a_part_takes_only_its_frames(make: Make, tmp_path: Path, compression: Compression) -> None:
    """Damage of another tensor's frames does not matter to it."""
    manager = make(backup_checkpoints=False)
    model = nn.ModuleDict({"first": nn.Linear(2_000, 2_000), "second": nn.Linear(2_000, 2_000)})
    saved = manager.save_checkpoint(model=model, epoch=1)
    assert saved is not None
    file = manifest_of(manager, saved).payload
    flip_bit(path_of(manager, file), 3 * file.size_bytes // 4)
    found = manager.load_checkpoint(saved, keys=["model_state_dict.first.weight"])
    assert torch.equal(found["model_state_dict"]["first.weight"], model["first"].state_dict()["weight"])
    report = manager.validate_checkpoint(saved)
    assert {name for item in report.damages for name in item.tensors} == {"model_state_dict.second.weight"}


@EACH_COMPRESSED
def test_a_save_that_fails_leaves_nothing_and_goes_to_the_fallback(make: Make, trained: Parts, tmp_path: Path) -> None:
    """What was compressed by then is gone, and what is stranded comes home as it is."""
    from tests.saving.failing_stores import failing

    manager = make(fallback_dir=str(tmp_path / "fallback"), backup_checkpoints=False)
    with failing(manager, OSError(5, "EIO"), "open_write"):
        stranded = save_parts(manager, trained)
    assert [item.checkpoint_id for item in manager.list_stranded()] == [stranded]
    manager.reconcile()
    assert ids(manager) == [stranded]
    assert all(file.compression for file in manifest_of(manager, stranded).files)
    assert manager.validate_checkpoint(stranded)


@EACH_COMPRESSED
def test_retention_and_the_trash_remove_all(make: Make) -> None:
    """No file of what is retired stays."""
    manager = make(max_checkpoints=2, backup_checkpoints=False)
    saved = [save(manager, epoch, 1 / (epoch + 1)) for epoch in range(4)]
    manager.empty_trash()
    folder = Path(manager.config.checkpoint_dir) / "run"
    left = {path.name.partition(".")[0] for path in folder.iterdir() if path.name.startswith("checkpoint_epoch")}
    gone = {path.stem for path in folder.glob("*.json") if '"state": "gone"' in path.read_text()}
    assert left - gone == set(saved[2:])
    manager.delete_checkpoint(saved[2])
    manager.undelete_checkpoint(saved[2])
    assert manager.validate_checkpoint(saved[2])


@EACH_COMPRESSED
def test_the_same_content_is_saved_once(make: Make, trained: Parts) -> None:
    """Whether it was compressed then or is now."""
    options: dict[str, Any] = {"epoch": 1, "idempotency_key": "k", "compare_content": True}
    first = make().save_checkpoint(**trained.kwargs(), **options)
    assert make(compression=False).save_checkpoint(**trained.kwargs(), **options) == first


@EACH_COMPRESSED
def test_the_cache_gives_it_without_reading(make: Make, trained: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is the stored file, which takes less memory."""
    manager = make(cache_size_bytes=2**22)
    saved = save_parts(manager, trained)
    manager.load_checkpoint(saved)
    monkeypatch.delattr("ckpt_lib.experiment.stored_payload.open_file")
    fresh = build(seed=1, width=WIDTH)
    manager.load_checkpoint(saved, **fresh.kwargs())
    assert state_of(fresh) == state_of(trained)


@pytest.mark.parametrize("compression", [True])
@ONE_FILE
def test_without_the_library_it_is_refused_at_the_door(
    make: Make, trained: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the name of the extra; and what is stored counts as not readable here, not as damaged."""
    manager = make()
    saved = save_parts(manager, trained)
    original = importlib.util.find_spec
    monkeypatch.setattr(
        "ckpt_lib.formats.registry.find_spec", lambda name: None if name == "zstandard" else original(name)
    )
    format_named.cache_clear()
    with pytest.raises(UnsupportedFormatError, match="zstandard") as refused:
        make()
    assert "prefect-checkpoints[compression]" in str(refused.value.hint)
    plain = make(compression=False)
    assert plain.validate_checkpoint(saved).has_unknown_format
    assert ids(plain) == [saved]


@pytest.mark.parametrize("value", ["gzip", "", 3, None])
def test_other_values_are_refused(value: object) -> None:
    """An option has the values that are documented."""
    with pytest.raises(ConfigError, match="compression"):
        CheckpointConfig(compression=value)  # type: ignore[arg-type]
