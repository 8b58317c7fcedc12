"""Checkpoints of a store for other programs: verified on the way, compressed or not, in any format."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
import safetensors.torch
import torch

from ckpt_lib import CheckpointManager, convert_checkpoint
from ckpt_lib.errors import CheckpointExistsError, ConfigError, CorruptCheckpointError, StorageFullError
from tests.converting.programs import Tied, loaded, trained
from tests.foreign.described import assert_same
from tests.helpers import MakeManager, experiment_folder, flip_bit, payload_path, save, snapshot, without_locks

STORED = [("torch", False), ("torch", "zstd"), ("torch", True), ("safetensors", False), ("safetensors", "zstd")]
KINDS = [("x.pt", "torch"), ("x.ckpt", "lightning"), ("w.safetensors", "safetensors"), ("folder", "hf-folder")]


def saved(make_manager: MakeManager, **options: Any) -> tuple[CheckpointManager, str, dict[str, Any]]:
    """A manager with one checkpoint of a training, its id and that training."""
    manager, training = make_manager(**options), trained()
    checkpoint_id = manager.save_checkpoint(**training, epoch=3, step=12, config={"width": 6})
    assert checkpoint_id is not None
    return manager, checkpoint_id, training


@pytest.mark.parametrize(("stored", "compression"), STORED)
def test_each_stored_format_becomes_each_other_one(
    make_manager: MakeManager, tmp_path: Path, stored: str, compression: Any
) -> None:
    """With the same weights, to the bit; nothing but the results is left."""
    manager, checkpoint_id, training = saved(make_manager, format=stored, compression=compression)
    expected = dict(training["model"].state_dict())
    for name, kind in KINDS:
        only: Literal["model"] | None = None if kind in ("torch", "lightning") else "model"
        path = manager.export_checkpoint(checkpoint_id, tmp_path / "out" / name, format=kind, only=only)
        if kind == "torch":
            assert_same(loaded(path)["optimizer_state_dict"], training["optimizer"].state_dict())
            assert_same(dict(loaded(path)["model_state_dict"]), expected)
        elif kind == "lightning":
            assert_same(dict(loaded(path)["state_dict"]), expected)
        else:
            file = path if kind == "safetensors" else f"{path}/model.safetensors"
            model = Tied()
            model.load_state_dict(safetensors.torch.load_file(file), strict=False)
            assert_same(dict(model.state_dict()), expected)
    left = {name for name in without_locks(snapshot(tmp_path / "out")) if ".ckpt-" not in name}
    assert left == {"x.pt", "x.ckpt", "w.safetensors", "folder", "folder/model.safetensors"}


@pytest.mark.parametrize(("stored", "compression"), STORED)
@pytest.mark.parametrize("only", [None, "model"])
def test_a_flipped_bit_leaves_nothing(
    make_manager: MakeManager, tmp_path: Path, stored: str, compression: Any, only: Literal["model"] | None
) -> None:
    """Of a byte that is read: no file, and no part of one, is at the destination."""
    manager = make_manager(format=stored, compression=compression)
    model = torch.nn.Linear(300, 300)
    checkpoint_id = manager.save_checkpoint(model=model, epoch=1)
    files = [path for path in experiment_folder(manager).rglob(f"{checkpoint_id}*/*") if "model" in path.name]
    largest = max(
        [*files, *experiment_folder(manager).glob(f"{checkpoint_id}.pt*")], key=lambda path: path.stat().st_size
    )
    flip_bit(largest, largest.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError, match=str(checkpoint_id)):
        manager.export_checkpoint("latest", tmp_path / "out" / "x.pt", format="torch", only=only)
    assert not (tmp_path / "out").exists() or without_locks(snapshot(tmp_path / "out")) == {}


def test_an_export_with_its_manifest_is_verified_by_that(make_manager: MakeManager, tmp_path: Path) -> None:
    """Without the store: the file beside the manifest, or the folder of both."""
    manager, checkpoint_id, _ = saved(make_manager)
    exported = Path(manager.export_checkpoint(checkpoint_id, tmp_path / "export"))
    first = convert_checkpoint(exported, tmp_path / "a.pt")
    second = convert_checkpoint(exported.parent, tmp_path / "b.pt")
    direct = manager.export_checkpoint(checkpoint_id, tmp_path / "c.pt", format="torch")
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes() == Path(direct).read_bytes()
    flip_bit(exported, exported.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError, match=checkpoint_id):
        convert_checkpoint(exported, tmp_path / "d.pt")
    assert not (tmp_path / "d.pt").exists()


@pytest.mark.parametrize("compression", [False, "zstd", True])
def test_a_payload_that_lost_its_manifest_is_converted(
    make_manager: MakeManager, tmp_path: Path, compression: Any
) -> None:
    """All of its states, its generators included, come as they do from the store; compressed or not."""
    manager, checkpoint_id, _ = saved(make_manager, compression=compression)
    direct = manager.export_checkpoint(checkpoint_id, tmp_path / "a.pt", format="torch")
    payload = next(experiment_folder(manager).glob(f"{checkpoint_id}.pt*"))
    bare = payload.rename(tmp_path / f"mine{payload.name.removeprefix(checkpoint_id)}")
    assert_same(loaded(convert_checkpoint(bare, tmp_path / "b.pt").path), loaded(direct))


def test_a_link_to_an_export_is_verified_by_its_manifest(make_manager: MakeManager, tmp_path: Path) -> None:
    """The manifest lies beside what the link leads to."""
    manager, checkpoint_id, _ = saved(make_manager)
    exported = Path(manager.export_checkpoint(checkpoint_id, tmp_path / "export"))
    (link := tmp_path / "best.pt").symlink_to(exported)
    convert_checkpoint(link, tmp_path / "a.pt")
    flip_bit(exported, exported.stat().st_size // 2)
    with pytest.raises(CorruptCheckpointError, match=checkpoint_id):
        convert_checkpoint(link, tmp_path / "b.pt")


def test_what_was_imported_in_place_is_exported_by_its_key_map(manager: CheckpointManager, tmp_path: Path) -> None:
    """The same model that a load returns, and not the one whose name another program would give."""
    teacher, student = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3)
    experiment_folder(manager).mkdir(parents=True)
    path = experiment_folder(manager) / "odd.pt"
    torch.save({"epoch": 3, "zz": {"weights": teacher.state_dict()}, "state_dict": student.state_dict()}, path)
    checkpoint_id = manager.import_checkpoint(path, key_map={"zz.weights": "model"}, in_place=True)
    exported = manager.export_checkpoint(checkpoint_id, tmp_path / "w.pt", only="model")
    assert_same(loaded(exported), dict(manager.load_checkpoint(checkpoint_id)["model_state_dict"]))
    assert_same(loaded(exported), dict(teacher.state_dict()))


@pytest.mark.parametrize("options", [{}, {"only": "model"}, {"dtype": "bf16"}])
def test_a_suffix_means_one_thing_whatever_else_is_asked_for(
    make_manager: MakeManager, tmp_path: Path, options: dict[str, Any]
) -> None:
    """An export to a.ckpt is a file of torch.save as one to a.pt is; that of Lightning is asked for by its name."""
    manager, checkpoint_id, _ = saved(make_manager)
    first = manager.export_checkpoint(checkpoint_id, tmp_path / "a.ckpt", **options)
    second = manager.export_checkpoint(checkpoint_id, tmp_path / "a.pt", **options)
    assert_same(loaded(first), loaded(second))


def test_the_usual_export_is_as_it_was(manager: CheckpointManager, tmp_path: Path) -> None:
    """Without the options, the payload and its manifest are copied to the byte."""
    checkpoint_id = save(manager, 1)
    path = manager.export_checkpoint(checkpoint_id, tmp_path / "out")
    assert Path(path).read_bytes() == payload_path(manager, checkpoint_id).read_bytes()
    assert (tmp_path / "out" / f"{checkpoint_id}.json").exists()


def test_a_conversion_goes_into_no_experiment(make_manager: MakeManager) -> None:
    """Its folder holds checkpoints; a file of another program would be taken for one, or be in the way."""
    manager, checkpoint_id, _ = saved(make_manager)
    before = snapshot(experiment_folder(manager))
    with pytest.raises(ConfigError, match="of an experiment"):
        manager.export_checkpoint(checkpoint_id, experiment_folder(manager) / "x.pt", format="torch")
    assert snapshot(experiment_folder(manager)) == before


def test_what_is_left_out_is_logged(
    make_manager: MakeManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The generators have no place in a checkpoint of Lightning."""
    manager, checkpoint_id, _ = saved(make_manager)
    manager.export_checkpoint(checkpoint_id, tmp_path / "x.ckpt", format="lightning")
    assert "no place for rng_state" in caplog.text


def test_a_full_disk_while_decompressing_is_told(
    make_manager: MakeManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The temporary file is gone, and the error is that of a full store."""
    manager, checkpoint_id, _ = saved(make_manager, compression="zstd")

    def full(**_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageFullError):
        manager.export_checkpoint(checkpoint_id, tmp_path / "x.pt", format="torch")
    assert not (tmp_path / "x.pt").exists()


def test_an_error_at_the_destination_names_the_destination(make_manager: MakeManager, tmp_path: Path) -> None:
    """And not the checkpoint, which is sound."""
    manager, checkpoint_id, _ = saved(make_manager)
    (tmp_path / "x.pt").write_text("precious")
    with pytest.raises(CheckpointExistsError, match=r"x\.pt"):
        manager.export_checkpoint(checkpoint_id, tmp_path / "x.pt", format="torch")
