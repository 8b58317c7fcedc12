"""The flow that lists, plans and deletes backups, run to its end on Prefect's test server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import ExperimentNotFoundError
from ckpt_lib.policies.retention import KeepNewest
from prefect_checkpoints.flows import checkpoint_lifecycle, cleanup_store, manage_backups
from tests.orchestration.runs import artifacts, descriptions, saved

pytestmark = pytest.mark.usefixtures("own_results")


def test_manage_backups_lists_plans_and_deletes(config: CheckpointConfig) -> None:
    """By default nothing is deleted; then what was named goes, and what is beyond the limit."""
    config = config.model_copy(update={"max_backups": 0})
    _first, best, latest = ids = saved(config.model_copy(update={"max_backups": 10}))
    assert manage_backups(config, "run", (latest,), return_state=True).is_failed()
    published = artifacts(manage_backups(config, "run", return_state=True))
    assert "would delete" in published["cleanup-of-backups-run"]
    assert all(checkpoint_id in published["backups-run"] for checkpoint_id in ids)
    manager = CheckpointManager(config, "run")
    assert manager.backup_ids() == ids
    left = manage_backups(config, "run", (latest,), dry_run=False)
    assert [item.checkpoint_id for item in left] == [best] == manager.backup_ids()
    assert manager.checkpoint_ids() == ids
    state = manage_backups(config, "run", (latest,), dry_run=False, return_state=True)
    assert state.message == "1 backup; 0 B freed"


def test_manage_backups_of_an_experiment_that_has_nothing_else(config: CheckpointConfig, tmp_path: Path) -> None:
    """It lists and deletes them; a name without checkpoints and backups is refused with the closest one."""
    config = config.model_copy(update={"backup_dir": str(tmp_path / "backups")})
    ids = saved(config)
    shutil.rmtree(Path(config.checkpoint_dir) / "run")
    assert [item.checkpoint_id for item in manage_backups(config, "run")] == ids
    assert manage_backups(config, "run", tuple(ids), dry_run=False) == []
    saved(config, "other")
    with pytest.raises(ExperimentNotFoundError, match="Did you mean 'other'"):
        manage_backups(config, "othr")
    with pytest.raises(ExperimentNotFoundError):
        manage_backups(config, "run")


@pytest.mark.parametrize("flow", [cleanup_store, checkpoint_lifecycle])
def test_backups_that_cannot_be_cleaned_up_fail_the_run_at_its_end(
    config: CheckpointConfig, tmp_path: Path, flow: Any
) -> None:
    """The checkpoints are cleaned up all the same, and the table says what was not done."""
    config = config.model_copy(
        update={"backup_checkpoints": False, "backup_dir": str(tmp_path / "backups"), "max_backups": 9}
    )
    first, *others = saved(config)
    (tmp_path / "backups").write_text("mine")
    arguments = {"experiment_name": "run", "export_dir": str(tmp_path / "exports")} if flow != cleanup_store else {}
    state = flow(config=config, retention=KeepNewest(count=1), **arguments, return_state=True)
    assert state.is_failed()
    assert CheckpointManager(config, "run").checkpoint_ids() == others
    assert first in artifacts(state)["cleanup-run"]
    if flow == cleanup_store:
        assert "the backups of 1 of 1 experiments were not cleaned up" in str(state.message)
        assert "THE BACKUPS WERE NOT CLEANED UP" in descriptions(state)["cleanup-run"]
