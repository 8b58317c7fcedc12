"""The main operations on checkpoints, in each format, one of another package: what is done to one is done to all."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import CheckpointError, ConfigError, CorruptCheckpointError
from ckpt_lib.experiment.stored_payload import StoredPayload
from ckpt_lib.formats import format_named
from ckpt_lib.state.sameness import first_difference
from tests.cli.running import run, run_json
from tests.formats.every_format import NPZ
from tests.helpers import Parts, backup_ids, build, flip_bit, ids, is_bookkeeping, save, state_of, train

Make = Callable[..., CheckpointManager]


@pytest.fixture(params=["torch", "safetensors", NPZ])
def make(request: pytest.FixtureRequest, store_path: Path, npz_format: None) -> Make:
    """Managers of one store that save in one of the formats."""

    def made(**options: Any) -> CheckpointManager:
        options = {"checkpoint_dir": str(store_path), "format": request.param, **options}
        return CheckpointManager(CheckpointConfig(**options), "run")

    return made


@pytest.fixture
def trained() -> Parts:
    parts = build()
    train(parts, [1])
    return parts


def save_parts(manager: CheckpointManager, parts: Parts, epoch: int = 1) -> str:
    return str(manager.save_checkpoint(**parts.kwargs(), epoch=epoch, metrics={"val_loss": 1 / epoch}))


def files_of(manager: CheckpointManager, checkpoint_id: str) -> list[tuple[FileEntry, Path]]:
    """The files of a payload, and where they lie."""
    home = manager._locations.home
    return [(file, Path(home.location(file.name))) for file in home.get(checkpoint_id).files]


def file_with_most(manager: CheckpointManager, checkpoint_id: str) -> Path:
    return max(files_of(manager, checkpoint_id), key=lambda found: found[0].size_bytes)[1]


def place_of(manager: CheckpointManager, checkpoint_id: str, tensor: str) -> tuple[str, int]:
    """The file that holds a tensor, and where in it the tensor begins."""
    home = manager._locations.home
    manifest = home.get(checkpoint_id)
    with StoredPayload(home, manifest.files, verify=False) as source:
        for file in manifest.files:
            ranges = format_named(manifest.format).tensor_ranges(source, file.part)
            if tensor in ranges:
                return file.name, ranges[tensor][0][0]
    raise KeyError(tensor)


def payload_files(store_path: Path) -> list[Path]:
    """The files of all payloads that lie in a store."""
    found = [path for path in store_path.rglob("*") if path.is_file() and not is_bookkeeping(str(path))]
    return [path for path in found if path.suffix == ".pt" or path.parent.name.startswith("checkpoint_epoch")]


def assert_holds(manager: CheckpointManager, checkpoint_id: str, parts: Parts) -> None:
    """What is loaded is what was saved, to the bit."""
    fresh = build(seed=1)
    manager.load_checkpoint(checkpoint_id, **fresh.kwargs())
    assert state_of(fresh) == state_of(parts)


def test_a_save_goes_on_and_validates(make: Make, trained: Parts) -> None:
    """At once, in the background, and beside the next step; home and backup are sound."""
    manager = make()
    first = save_parts(manager, trained)
    second = manager.save_checkpoint_async(**trained.kwargs(), epoch=2).result()
    with make(overlap_copy=True) as overlapping:
        third = overlapping.save_checkpoint_async(**trained.kwargs(), epoch=3).result()
    assert ids(manager) == backup_ids(manager) == [first, second, third]
    fresh = build(seed=1)
    resumed = make().resume(**fresh.kwargs())
    assert resumed is not None
    assert resumed["checkpoint_id"] == third
    assert state_of(fresh) == state_of(trained)
    for checkpoint_id in ids(manager):
        assert manager.validate_checkpoint(checkpoint_id)
        assert_holds(manager, checkpoint_id, trained)
    assert manager.scrub()


class _Values:
    """Something with a state of plain values."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def state_dict(self) -> dict[Any, Any]:
        return self.state

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        self.state = state


class _Training:
    """Two models that train together, and all that decides how they go on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.models = {"generator": nn.Linear(4, 2), "critic": nn.Linear(2, 1)}
        self.optimizers = {name: torch.optim.Adam(model.parameters()) for name, model in self.models.items()}
        data = TensorDataset(torch.arange(12.0))
        self.loader = ResumableLoader(DataLoader(data, batch_size=2, shuffle=True))
        self.values = _Values()
        self.noise, self.dice = torch.Generator().manual_seed(3), random.Random(4)
        self.state = TrainingState(
            model=self.models,
            optimizer=self.optimizers,
            data={"batches": self.loader},
            others={"values": self.values},
            generators={"noise": self.noise, "dice": self.dice},
        )

    def step(self) -> None:
        for name, model in self.models.items():
            torch.autograd.backward(model(torch.ones(1, model.in_features)).sum())
            self.optimizers[name].step()

    def rest(self, batches: Any) -> list[Any]:
        """The rest of the epoch, and a number of each generator after it."""
        found = [batch.tolist() for (batch,) in batches]
        numbers = [torch.rand(3).tolist(), torch.rand(2, generator=self.noise).tolist()]
        return [*found, *numbers, random.random(), float(np.random.rand()), self.dice.random()]


def test_a_whole_training_goes_on_to_the_same_numbers(make: Make) -> None:
    """Several models and optimizers, every generator, the position in the data and values of every plain type."""
    training, fresh = _Training(), _Training()
    training.values.state = {"seen": {1, 2}, 3: (None, float("-inf"), 2**70), "raw": b"\0\1", "nan": float("nan")}
    batches = iter(training.loader)
    next(batches)
    training.step()
    make().save_checkpoint(training.state, epoch=1)
    wanted = training.rest(batches)
    torch.manual_seed(9)
    resumed = make().resume(fresh.state)
    assert resumed is not None
    assert not resumed["approximate"]
    assert not resumed["not_restored"]
    assert fresh.rest(fresh.loader) == wanted
    assert first_difference(fresh.values.state, training.values.state) is None
    for name in training.models:
        assert first_difference(fresh.models[name].state_dict(), training.models[name].state_dict()) is None
        assert first_difference(fresh.optimizers[name].state_dict(), training.optimizers[name].state_dict()) is None


def test_a_part_is_loaded_by_its_name(make: Make) -> None:
    """By ``keys``, and as one of several models."""
    training, manager = _Training(), make()
    saved = str(manager.save_checkpoint(training.state, epoch=4))
    found = manager.load_checkpoint(saved, keys=["model_state_dict.critic.weight", "epoch"])
    assert list(found["model_state_dict"]["critic"]) == ["weight"]
    assert found["epoch"] == 4
    critic = nn.Linear(2, 1)
    manager.load_checkpoint(saved, model=critic, only="model_state_dict.critic")
    assert first_difference(critic.state_dict(), training.models["critic"].state_dict()) is None
    with pytest.raises(ConfigError):
        manager.load_checkpoint(saved, keys=["model_state_dict.missing"])


def test_damage_is_located_and_repaired_from_the_backup(make: Make, trained: Parts) -> None:
    """By the names of the tensors that it hits; nothing is loaded from it before."""
    manager = make()
    saved = save_parts(manager, trained)
    name, offset = place_of(manager, saved, "optimizer_state_dict.state.0.exp_avg")
    damaged = Path(manager._locations.home.location(name))
    flip_bit(damaged, offset)
    report = manager.validate_checkpoint(saved)
    assert [item.file for item in report.damages] == [name]
    assert "optimizer_state_dict.state.0.exp_avg" in report.damages[0].tensors
    with pytest.raises(CorruptCheckpointError):
        make(backup_checkpoints=False, backup_dir=str(damaged.parent / "none")).load_checkpoint(saved)
    assert not manager.scrub()
    manager.repair_checkpoint(saved)
    assert manager.validate_checkpoint(saved)
    assert_holds(manager, saved, trained)


def test_every_altered_byte_is_damage(make: Make, trained: Parts) -> None:
    """In any file, anywhere: found by a validation, and refused by a load without a backup."""
    manager = make(backup_checkpoints=False)
    saved = save_parts(manager, trained)
    files = files_of(manager, saved)
    for _, path in files if len(files) < 6 else random.Random(0).sample(files, 5):
        for part in (0, 0.3, 0.7, 0.999):
            at = int(path.stat().st_size * part)
            flip_bit(path, at)
            assert not manager.validate_checkpoint(saved)
            with pytest.raises(CorruptCheckpointError):
                manager.load_checkpoint(saved)
            flip_bit(path, at)
    assert manager.validate_checkpoint(saved)


def test_what_is_lost_comes_back_from_the_backup(make: Make, trained: Parts) -> None:
    """One file, and all of them."""
    manager = make()
    saved = save_parts(manager, trained)
    for lost in (files_of(manager, saved)[:1], files_of(manager, saved)):
        for _, path in lost:
            path.unlink()
        assert not manager.validate_checkpoint(saved)
        manager.restore_checkpoint(saved)
        assert manager.validate_checkpoint(saved)
    assert_holds(manager, saved, trained)


def test_an_export_is_imported_elsewhere(make: Make, trained: Parts, tmp_path: Path) -> None:
    """With its manifest, into a store that saves in another format."""
    saved = save_parts(make(), trained)
    make().export_checkpoint(saved, tmp_path / "out")
    other = make(checkpoint_dir=str(tmp_path / "other"), format="torch")
    imported = other.import_checkpoint(tmp_path / "out")
    assert other.validate_checkpoint(imported)
    assert_holds(other, imported, trained)


def test_thinning_keeps_the_weights_and_can_be_undone(make: Make, trained: Parts) -> None:
    """To the bit, and only what a run needs to go on is dropped."""
    manager = make()
    saved = save_parts(manager, trained)
    save_parts(manager, trained, 2)
    thinned = manager.thin_checkpoint(saved)
    assert thinned.is_thinned
    payload = manager.load_checkpoint(saved)
    assert payload["optimizer_state_dict"] is None
    assert first_difference(payload["model_state_dict"], trained.model.state_dict()) is None
    assert manager.validate_checkpoint(saved)
    manager.unthin_checkpoint(saved)
    assert_holds(manager, saved, trained)


def test_checkpoints_are_compared_by_their_tensors(make: Make, trained: Parts) -> None:
    """Equal ones do not differ, trained ones do."""
    manager = make()
    first, second = save_parts(manager, trained), save_parts(manager, trained, 2)
    train(trained, [2])
    third = save_parts(manager, trained, 3)
    compared = manager.compare_checkpoints([first, second, third], tensors=True)["tensors_comparison"]
    assert all(item["max_abs_difference"] == 0 for item in compared[second].values())
    assert any(item["max_abs_difference"] for item in compared[third].values())


def test_retention_and_the_trash_remove_whole_payloads(make: Make, store_path: Path) -> None:
    """What stays validates; what is deleted comes back until the trash is emptied."""
    manager = make(max_checkpoints=2, backup_checkpoints=False)
    saved = [save(manager, epoch, 1 / (epoch + 1)) for epoch in range(4)]
    assert ids(manager) == saved[2:]
    manager.delete_checkpoint(saved[2])
    manager.undelete_checkpoint(saved[2])
    assert manager.validate_checkpoint(saved[2])
    manager.delete_checkpoint(saved[2])
    manager.empty_trash()
    assert set(payload_files(store_path)) == {path for _, path in files_of(manager, saved[3])}


def test_the_same_content_is_saved_once(make: Make, trained: Parts) -> None:
    """A repeat under one key is known by its content, and by that alone."""
    manager = make()
    options: dict[str, Any] = {"epoch": 1, "idempotency_key": "k", "compare_content": True}
    tied = torch.arange(12.0)
    options["extra_state"] = {"a": tied, "b": tied.view(3, 4).T, "c": tied[2:5], "d": torch.ones(2, 3).T}
    first = manager.save_checkpoint(**trained.kwargs(), **options)
    assert make().save_checkpoint(**trained.kwargs(), **options) == first
    train(trained, [2])
    assert manager.save_checkpoint(**trained.kwargs(), **options) != first


def test_what_cannot_be_stored_is_refused_before_anything_is_written(make: Make, store_path: Path) -> None:
    """By ``check``, and by a save."""
    state: dict[str, Any] = {"model": nn.Linear(2, 2), "extra_state": {"f": lambda: None}}
    manager = make()
    with pytest.raises(CheckpointError, match=r"extra_state\['f'\]"):
        manager.check(**state)
    for save_it in (manager.save_checkpoint, manager.save_checkpoint_async):
        with pytest.raises(CheckpointError, match=r"extra_state\['f'\]"):
            save_it(**state, epoch=1)
    assert payload_files(store_path) == []


def test_the_command_line_does_the_same(make: Make, trained: Parts, store_path: Path, tmp_path: Path) -> None:
    """Shows, validates, exports, imports, restores and deletes it."""
    manager = make()
    saved = save_parts(manager, trained)
    assert run_json("show", saved, "--experiment", "run", store=store_path)["checkpoint_id"] == saved
    run("validate", saved, "--experiment", "run", store=store_path)
    run("export", saved, f"{tmp_path / 'out'}/", store=store_path)
    run("import", str(tmp_path / "out"), "--experiment", "other", store=store_path)
    damaged = file_with_most(manager, saved)
    flip_bit(damaged, damaged.stat().st_size - 100)
    run("validate", saved, "--experiment", "run", store=store_path, code=1)
    run("repair", saved, "--experiment", "run", store=store_path)
    run("validate", saved, "--experiment", "run", store=store_path)
    run("doctor", "--experiment", "run", store=store_path)
    assert_holds(manager, saved, trained)
