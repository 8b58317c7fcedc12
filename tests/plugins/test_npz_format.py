"""A format of another package, installed by pip: it keeps the contract, and is used by its name everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from prefect import flow
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ConfigError, UnsupportedFormatError
from ckpt_lib.formats import Format, check_format_name, format_named
from ckpt_lib.testing import FormatContract
from prefect_checkpoints import tasks
from prefect_checkpoints.flows import TrainingParameters, train
from tests.cli.running import run, run_json, run_program
from tests.formats.every_format import NPZ
from tests.helpers import build, ids, save, state_of
from tests.helpers import train as train_parts
from tests.plugins.installing import npz_installed


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    """The package is there, as after ``pip install ckpt-npz-format``."""
    with npz_installed():
        yield


class TestNpz(FormatContract):
    """What every format must do."""

    @pytest.fixture
    def payload_format(self) -> Format:
        return format_named(NPZ)


def test_the_package_was_installed_by_pip() -> None:
    """Its metadata name the format; nothing here imports it."""
    (point,) = entry_points(group="ckpt_lib.formats", name=NPZ)
    assert point.dist is not None
    assert point.dist.name == "ckpt-npz-format"
    assert point.dist.read_text("INSTALLER") == "pip\n"
    check_format_name(NPZ)


def test_numpy_alone_opens_what_was_saved(store_path: Path) -> None:
    """Each file is an array, and the structure is JSON."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path), format=NPZ), "run")
    model = nn.Linear(3, 2)
    saved = str(manager.save_checkpoint(model=model, epoch=1))
    folder = store_path / "run" / saved
    spelled = json.loads((folder / "structure.json").read_text())["payload"]["model_state_dict"]["$ordered"]
    name = spelled["weight"]["$tensor"].removeprefix("tensors/")
    assert np.array_equal(np.load(folder / f"{name}.npy"), model.weight.detach().numpy())


def test_a_file_of_yaml_names_it(tmp_path: Path, store_path: Path) -> None:
    """Beside any other option; a misspelt name is refused with those there are."""
    path = tmp_path / "ckpt.yaml"
    path.write_text(f"checkpoint_dir: {store_path}\nformat: npz\n")
    manager = CheckpointManager(CheckpointConfig.from_yaml(path), "run")
    saved = save(manager, 1)
    assert manager._locations.home.get(saved).format == NPZ
    path.write_text(f"checkpoint_dir: {store_path}\nformat: nzp\n")
    with pytest.raises((ConfigError, UnsupportedFormatError), match="npz"):
        CheckpointManager(CheckpointConfig.from_yaml(path), "run")


def test_the_command_line_uses_it(store_path: Path, tmp_path: Path) -> None:
    """In a process of its own as well, which finds the package by itself."""
    config = CheckpointConfig(checkpoint_dir=str(store_path), format=NPZ)
    parts = build()
    train_parts(parts, [1])
    saved = str(CheckpointManager(config, "run").save_checkpoint(**parts.kwargs(), epoch=1))
    assert run_program("validate", saved, "--experiment", "run", CKPT_CHECKPOINT_DIR=str(store_path)).returncode == 0
    run("export", saved, f"{tmp_path / 'out'}/", store=store_path)
    run("import", str(tmp_path / "out"), "--experiment", "other", store=store_path, env={"CKPT_FORMAT": NPZ})
    assert run_json("show", saved, "--experiment", "other", store=store_path)["checkpoint_id"] == saved
    fresh = build(seed=1)
    CheckpointManager(config, "other").resume(**fresh.kwargs())
    assert state_of(fresh) == state_of(parts)


@pytest.mark.usefixtures("prefect_api")
def test_flows_and_tasks_use_it(store_path: Path) -> None:
    """The training flow, and a task in a flow of a user's."""
    config = CheckpointConfig(checkpoint_dir=str(store_path), format=NPZ)
    train(config, "digits", TrainingParameters(epochs=1, batch_size=256, channels=4))
    assert CheckpointManager(config, "digits").validate_checkpoint("latest")

    @flow
    def training() -> str | None:
        return tasks.save_checkpoint(config, "run", model=nn.Linear(2, 1), epoch=1)

    saved = str(training())
    assert CheckpointManager(config, "run")._locations.home.get(saved).format == NPZ


def test_it_is_compressed_like_any_other(store_path: Path) -> None:
    """Each file by itself, under a name that says both."""
    config = CheckpointConfig(checkpoint_dir=str(store_path), format=NPZ, compression=True)
    manager = CheckpointManager(config, "run")
    parts, fresh = build(width=512), build(seed=1, width=512)
    manager.save_checkpoint(**parts.kwargs(), epoch=1)
    assert manager._locations.home.get(ids(manager)[0]).format == "npz+planes"
    manager.resume(**fresh.kwargs())
    assert state_of(fresh) == state_of(parts)


def test_without_the_package_a_checkpoint_is_known_and_not_read(store_path: Path) -> None:
    """It is listed and copied; a load says what is missing, and a resume passes nothing over."""
    here = str(store_path)
    code = f"""
from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import UnsupportedFormatError
manager = CheckpointManager(CheckpointConfig(checkpoint_dir={here!r}), "run")
assert [item.checkpoint_id for item in manager.list_checkpoints()]
for call in (manager.load_checkpoint, manager.resume):
    try:
        call()
    except UnsupportedFormatError as error:
        assert "npz" in str(error) and "ckpt_lib.formats" in str(error), error
    else:
        raise AssertionError(call)
assert all(manager.validate_backup(item.checkpoint_id) is not None for item in manager.list_backups())
manager.export_checkpoint("latest", {here!r} + "-exported")
print("done")
"""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=here), "run")
    save(manager, 1)
    save(CheckpointManager(CheckpointConfig(checkpoint_dir=here, format=NPZ), "run"), 2)
    assert _without_package(code) == "done\n"


def _without_package(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_state_is_checked_before_training(store_path: Path) -> None:
    """What it does not store is refused by its place, in its own words."""
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(store_path), format=NPZ), "run")
    assert manager.check(model=nn.Linear(2, 1)).format == NPZ
    with pytest.raises(TypeError, match=r"extra_state\S*sparse"):
        manager.check(model=nn.Linear(2, 1), extra_state={"sparse": torch.eye(2).to_sparse()})
