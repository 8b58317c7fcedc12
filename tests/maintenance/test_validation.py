"""Validation: the thorough and the quick way, and the names of the tensors that a damage hits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.loading.payload import read_payload
from ckpt_lib.maintenance import scrub
from ckpt_lib.store import open_store
from tests.helpers import MakeManager, experiment_folder, flip_bit, manifest_path, payload_path, truncate
from tests.maintenance.records import manifest_in
from tests.maintenance.test_repair import rechunked

NAMES = [f"model_state_dict.{name}" for name in ("first", "second", "third")]


class Model(torch.nn.Module):
    """Three tensors, each larger than several chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(1000))
        self.second = torch.nn.Parameter(torch.randn(1000))
        self.third = torch.nn.Parameter(torch.randn(1000))


@pytest.fixture
def manager(make_manager: MakeManager) -> CheckpointManager:
    """One that saves no generators, so that a file has the tensors of its model alone."""
    return make_manager(save_rng=False)


@pytest.fixture
def saved(manager: CheckpointManager) -> str:
    """A checkpoint with a backup, both with a table of chunks of 512 bytes."""
    checkpoint_id = manager.save_checkpoint(model=Model(), epoch=1)
    assert checkpoint_id is not None
    entry = rechunked(payload_path(manager, checkpoint_id), 512)
    for folder in (experiment_folder(manager), experiment_folder(manager) / "backups"):
        path = folder / f"{checkpoint_id}.json"
        path.write_bytes(manifest_in(path).changed(files=(entry,)).to_bytes())
    return checkpoint_id


def place_of(path: Path, tensor: torch.Tensor) -> int:
    """Where the bytes of a tensor begin in a payload."""
    return path.read_bytes().index(tensor.detach().numpy().tobytes())


def tensors(manager: CheckpointManager, checkpoint_id: str) -> dict[str, torch.Tensor]:
    loaded = torch.load(payload_path(manager, checkpoint_id), weights_only=True)
    return {f"model_state_dict.{name}": tensor for name, tensor in loaded["model_state_dict"].items()}


@pytest.mark.parametrize("deep", [True, False])
def test_both_ways_find_the_same_damage(manager: CheckpointManager, saved: str, deep: bool) -> None:
    """Intact, altered, cut and lengthened: the quick check says what SHA-256 and the chunk table together say."""
    path = payload_path(manager, saved)
    original = path.read_bytes()
    assert manager.validate_checkpoint(saved, deep=deep)
    assert all(manager.validate_all(deep=deep))
    assert all(manager.validate_all_backups(deep=deep))
    assert manager.validate_backup(saved, deep=deep)
    for altered, kinds in (
        (original[:3000] + bytes([original[3000] ^ 1]) + original[3001:], [("altered", 2560, 3072)]),
        (original[:3000], [("truncated", 3000, len(original))]),
        (original + b"xy", [("extended", len(original), len(original) + 2)]),
    ):
        path.write_bytes(altered)
        report = manager.validate_checkpoint(saved, deep=deep)
        assert [(damage.kind, damage.start, damage.stop) for damage in report.damages] == kinds
    path.unlink()
    assert manager.validate_checkpoint(saved, deep=deep).damages[0].kind == "missing"


def test_only_the_thorough_way_sees_what_the_table_does_not(manager: CheckpointManager, saved: str) -> None:
    """SHA-256 is what is trusted; a chunk table that fits other bytes deceives the quick check alone."""
    path = payload_path(manager, saved)
    sha256 = rechunked(path).sha256
    flip_bit(path, 3000)
    entry = rechunked(path, 512).model_copy(update={"sha256": sha256})
    manifest = manifest_in(manifest_path(manager, saved)).changed(files=(entry,))
    manifest_path(manager, saved).write_bytes(manifest.to_bytes())
    assert manager.validate_checkpoint(saved, deep=False)
    assert not manager.validate_checkpoint(saved)


@pytest.mark.parametrize("name", NAMES)
def test_damage_names_the_tensor_it_hits(manager: CheckpointManager, saved: str, name: str) -> None:
    """The one in whose bytes it lies, as people know it, in the report and in its message."""
    path = payload_path(manager, saved)
    flip_bit(path, place_of(path, tensors(manager, saved)[name]) + 2000)
    shutil.rmtree(experiment_folder(manager) / "backups")
    (damage,) = manager.validate_checkpoint(saved).damages
    assert damage.tensors == (name,)
    assert f"it hits {name}" in damage.message


def test_many_tensors_are_counted_in_the_message(manager: CheckpointManager) -> None:
    """Three are named there, and all in the report."""
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(4)) for _ in range(9))
    checkpoint_id = manager.save_checkpoint(model=model, epoch=1)
    assert checkpoint_id is not None
    flip_bit(payload_path(manager, checkpoint_id), 1000)
    (damage,) = manager.validate_checkpoint(checkpoint_id).damages
    assert damage.tensors == tuple(f"model_state_dict.{number}" for number in range(9))
    assert damage.message.endswith("it hits model_state_dict.0, model_state_dict.1, model_state_dict.2 and 6 more")


def test_the_other_copy_tells_where_tensors_lay(manager: CheckpointManager, saved: str) -> None:
    """A file that was cut off has lost its directory; its backup still has it."""
    path = payload_path(manager, saved)
    truncate(path, place_of(path, tensors(manager, saved)[NAMES[2]]) + 2000)
    (damage,) = manager.validate_checkpoint(saved).damages
    assert damage.tensors == (NAMES[2],)


def test_where_nothing_tells_the_message_says_so(manager: CheckpointManager, saved: str) -> None:
    """The structure of both copies is damaged: no name is guessed."""
    for folder in (experiment_folder(manager), experiment_folder(manager) / "backups"):
        truncate(folder / f"{saved}.pt", 8000)
    (damage,) = manager.validate_checkpoint(saved).damages
    assert damage.tensors == ()
    assert "cannot be told" in damage.message


def test_damage_between_tensors_hits_none(manager: CheckpointManager, saved: str) -> None:
    """The directory at the end of the file, which the backup still has, holds no tensor."""
    path = payload_path(manager, saved)
    flip_bit(path, -5)
    (damage,) = manager.validate_checkpoint(saved).damages
    assert damage.tensors == ()
    assert "hits" not in damage.message
    assert "cannot be told" not in damage.message


def test_a_different_checkpoint_of_that_id_tells_nothing(manager: CheckpointManager, saved: str) -> None:
    """Its tensors lie elsewhere."""
    backup = experiment_folder(manager) / "backups" / f"{saved}.json"
    other = manifest_in(backup).changed(uid="0" * 32)
    backup.write_bytes(other.to_bytes())
    truncate(payload_path(manager, saved), 8000)
    (damage,) = manager.validate_checkpoint(saved).damages
    assert "cannot be told" in damage.message


def test_a_repair_names_the_tensors_it_brought_back(manager: CheckpointManager, saved: str) -> None:
    """Those that were damaged, although nothing is any more."""
    path = payload_path(manager, saved)
    flip_bit(path, place_of(path, tensors(manager, saved)[NAMES[1]]) + 2000)
    report = manager.repair_checkpoint(saved)
    assert [damage.tensors for damage in report.damages] == [(NAMES[1],)]
    assert manager.validate_checkpoint(saved)


def bring_back(manager: CheckpointManager, checkpoint_id: str) -> None:
    """Delete a checkpoint with its files, and restore it from its backup: its files have other names then."""
    other = CheckpointManager(manager.config.model_copy(update={"trash_seconds": 0}), manager.experiment_name)
    before = payload_path(other, checkpoint_id)
    other.delete_checkpoint(checkpoint_id)
    other.empty_trash()
    assert not before.exists()
    other.restore_checkpoint(checkpoint_id)


def test_what_was_brought_back_meanwhile_is_validated_as_it_is_now(manager: CheckpointManager) -> None:
    """What is missing of the files that it had is no damage: they were listed before others took them away."""
    first, second = (str(manager.save_checkpoint(model=Model(), epoch=epoch)) for epoch in range(2))
    todo = [second]

    def progress(size_bytes: int) -> None:
        if todo:
            bring_back(manager, todo.pop())

    reports = [(report.checkpoint_id, report.message) for report in manager.validate_all(progress=progress)]
    assert not todo
    assert reports == [(first, "intact"), (second, "intact")]


def test_a_scrub_leaves_what_was_brought_back_meanwhile_to_the_next(
    manager: CheckpointManager, saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has listed files that are no longer there, which is no damage."""

    def begin_round(home: Experiment) -> None:
        bring_back(manager, saved)

    monkeypatch.setattr(scrub, "_unfinished_round", begin_round)
    assert manager.scrub().checkpoints == ()
    monkeypatch.undo()
    assert [report.is_valid for report in manager.scrub().checkpoints] == [True]


def test_files_that_were_deleted_and_brought_back_are_read_anew(manager: CheckpointManager, saved: str) -> None:
    """Who has read the old manifest is told so, and that nothing is damaged."""
    home = Experiment(open_store(str(experiment_folder(manager).parent)), "run", "run")
    manifest = home.get(saved)
    bring_back(manager, saved)
    with pytest.raises(CheckpointNotFoundError, match="replaced by others meanwhile"):
        read_payload(home, manifest, verify=True)
    assert read_payload(home, home.get(saved), verify=True)["epoch"] == 1
