"""A thinning that is killed, or whose store fails: the checkpoint is whole, and nothing needs a repair by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, StorageFullError, StoreError, StoreUnavailableError
from ckpt_lib.experiment.deletion import delete_all, purge
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.maintenance.thin import thin, unthin
from ckpt_lib.state.sameness import first_difference
from ckpt_lib.testing.faulty_store import FaultPlan, FaultyStore
from tests.formats.folder_format import NAME, FolderFormat
from tests.helpers import build, experiment_folder
from tests.killer import Killer
from tests.maintenance.test_thin import home_of, manifest_of, named, payloads, save_parts


@pytest.fixture
def saved(unlimited: CheckpointManager) -> tuple[CheckpointManager, str]:
    """A manager with two checkpoints; the older one is named."""
    first, _ = (save_parts(unlimited, build(), epoch) for epoch in (1, 2))
    return unlimited, first


def assert_whole(manager: CheckpointManager, checkpoint_id: str, weights: Any) -> None:
    """It validates, has its weights, and no file is left that nobody names, once the dead are swept after."""
    assert manager.validate_checkpoint(checkpoint_id)
    assert first_difference(manager.load_checkpoint(checkpoint_id)["model_state_dict"], weights) is None
    home = home_of(manager)
    sweep(home)
    found = home.get(checkpoint_id)
    assert found.next is None
    manifests, there = home.index.manifests(), payloads(manager)
    going = {file.name for item in manifests for old in item.obsolete if old.removing for file in old.files}
    assert there | going == {name for item in manifests for name in item.all_names}


@pytest.mark.parametrize("method", ["thin_checkpoint", "unthin_checkpoint", "empty_trash"])
def test_killed_at_any_step_it_is_whole(saved: tuple[CheckpointManager, str], killer: Killer, method: str) -> None:
    """SIGKILL before each step of a process that thins, brings back or removes; then the same is done again."""
    manager, first = saved
    weights = manager.load_checkpoint(first)["model_state_dict"]
    if method != "thin_checkpoint":
        manager.thin_checkpoint(first)
    arguments = {} if method == "empty_trash" else {"checkpoint_id": first}
    folder, kept = experiment_folder(manager), Path(manager.config.checkpoint_dir).parent / "kept"
    shutil.copytree(folder, kept)
    kill_at = 1
    while killer.kills(manager, method, kill_at, **arguments):
        after = CheckpointManager(manager.config, "run")
        assert_whole(after, first, weights)
        getattr(after, method)(**arguments)
        assert after.get_checkpoint(first).is_thinned is (method != "unthin_checkpoint")
        after.empty_trash()
        assert payloads(after) == named(after)
        assert after.validate_checkpoint(first)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        kill_at += 1
    assert kill_at > 3


@pytest.mark.parametrize("format_name", ["torch", NAME])
@pytest.mark.parametrize("error", [StorageFullError, StoreUnavailableError, StoreError])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_fails_at_any_step_costs_nothing(
    unlimited: CheckpointManager, folder_format: FolderFormat, format_name: str, error: Any, when: Any
) -> None:
    """Full, away or broken, before it has done what it was asked or after: as it was, or thinned, and tried again."""
    manager = CheckpointManager(unlimited.config.model_copy(update={"format": format_name}), "run")
    first = save_parts(manager, build(), 1)
    weights = manager.load_checkpoint(first)["model_state_dict"]
    store, step, was_refused = home_of(manager).store, 0, True
    while was_refused or step < 3:
        step += 1
        plan = FaultPlan(fail_at=step, when=when, error=error, only=frozenset({"put", "delete", "commit", "write"}))
        was_refused = not _thins(Experiment(FaultyStore(store, plan), "run", "run"), first) or len(plan.calls) >= step
        assert_whole(CheckpointManager(manager.config, "run"), first, weights)
        if manifest_of(manager, first).thinned:
            unthin(home_of(manager), first)
        manager.empty_trash()
        assert payloads(manager) == named(manager)


def _thins(experiment: Experiment, checkpoint_id: str) -> bool:
    try:
        return thin(experiment, checkpoint_id).thinned is not None
    except CheckpointError:
        return False


def test_a_deletion_at_any_step_is_obeyed_or_told(saved: tuple[CheckpointManager, str]) -> None:
    """Another process deletes and purges the checkpoint before each step: nothing of it is left behind."""
    manager, first = saved
    folder, kept = experiment_folder(manager), Path(manager.config.checkpoint_dir).parent / "kept"
    shutil.copytree(folder, kept)
    store, step = home_of(manager).store, 0
    while True:
        step += 1
        other = Experiment(store, "run", "run")
        plan = FaultPlan(only=frozenset({"put", "commit", "stat", "open_read"}))

        def delete(_: str, __: str, step: int = step, plan: FaultPlan = plan, other: Experiment = other) -> None:
            if len(plan.calls) + 1 == step:
                delete_all(other, [first], check=lambda _: None)
                purge(other, grace_seconds=0, asked=True)

        plan.between = delete
        is_done = _thins(Experiment(FaultyStore(store, plan), "run", "run"), first)
        if len(plan.calls) < step:
            break
        sweep(other)
        record = other.read(first).record
        left = [name for name in payloads(manager) if name.startswith(first)]
        if isinstance(record, Manifest):  # the deletion was refused: it was changed meanwhile
            assert is_done
            assert set(left) == set(record.all_names)
        else:
            assert left == []
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    assert step > 5
