"""The lifecycle flow, run to its end on Prefect's test server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CorruptCheckpointError, ExperimentNotFoundError
from ckpt_lib.policies.retention import KeepNewest
from prefect_checkpoints.flows import checkpoint_lifecycle
from prefect_checkpoints.flows.validate import LOST
from prefect_checkpoints.tasks import report_checkpoints, report_comparison
from tests.orchestration.runs import artifacts, damage, saved, saved_ids

pytestmark = pytest.mark.usefixtures("own_results")


def test_lifecycle_takes_all_steps(config: CheckpointConfig, tmp_path: Path) -> None:
    """Everything is validated, backed up, compared, exported, retired by the given policy, and published."""
    config = config.model_copy(update={"backup_checkpoints": False})
    first, best, latest = saved(config)
    state = checkpoint_lifecycle(config, "run", str(tmp_path / "out"), KeepNewest(count=1), return_state=True)
    outcome = state.result()
    manager = CheckpointManager(config, "run")
    assert manager.checkpoint_ids() == [best, latest]
    assert [item.checkpoint_id for item in manager.list_backups()] == [first, best, latest]
    assert Path(outcome["exported"]) == tmp_path / "out" / f"{best}.pt"
    assert torch.load(outcome["exported"], weights_only=True)["epoch"] == 2
    assert outcome["comparison"]["checkpoint_ids"] == [best, latest, first]
    assert outcome["total_checkpoints"] == 2
    published = artifacts(state)
    assert published.keys() >= {"validation-run", "comparison-run", "cleanup-run", "checkpoints-run", "metrics-run"}
    assert '"deleted"' in published["cleanup-run"]
    assert "no rule keeps it" in published["cleanup-run"]


def test_lifecycle_serves_the_rest_and_fails_on_damage(config: CheckpointConfig, tmp_path: Path) -> None:
    """A damaged checkpoint stops no other step, is neither backed up nor exported, and fails the run at its end."""
    config = config.model_copy(update={"backup_checkpoints": False})
    first, best, latest = saved(config)
    damage(config, best)
    state = checkpoint_lifecycle(config, "run", str(tmp_path / "out"), return_state=True)
    assert state.is_failed()
    with pytest.raises(CorruptCheckpointError, match=best):
        state.result()
    manager = CheckpointManager(config, "run")
    assert [item.checkpoint_id for item in manager.list_backups()] == [first, latest]
    assert manager.checkpoint_ids() == [first, best, latest]
    assert not (tmp_path / "out").exists()
    published = artifacts(state)["validation-run"]
    assert "DAMAGED" in published
    assert LOST in published


@pytest.mark.parametrize(("only_best", "epochs"), [(False, [1, 2, 5]), (True, [1, 2])])
def test_lifecycle_makes_no_backup_that_would_be_retired(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_best: bool, epochs: list[int]
) -> None:
    """The backups are the best, the pinned and the newest; a second run copies nothing."""
    options = {"max_backups": 2, "backup_checkpoints": False, "backup_only_best": only_best}
    config = config.model_copy(update=options)
    pinned, *_ = saved(config, losses=(4.0, 1.0, 2.0, 3.0, 2.0))
    CheckpointManager(config, "run").pin_checkpoint(pinned)
    copied: list[str] = []
    back_up = CheckpointManager.backup_checkpoint

    def noted(self: CheckpointManager, checkpoint_id: str, **arguments: Any) -> bool:
        if made := back_up(self, checkpoint_id, **arguments):
            copied.append(checkpoint_id)
        return made

    monkeypatch.setattr(CheckpointManager, "backup_checkpoint", noted)
    for _ in range(2):
        checkpoint_lifecycle(config, "run", str(tmp_path / "out"))
        assert [item.epoch for item in CheckpointManager(config, "run").list_backups()] == epochs
    assert len(copied) == len(epochs)


def test_rot_that_a_remembered_validation_missed_stops_no_other_step(
    config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bits that rot behind a remembered validation fail the export and the run, after all reports were published."""
    *_, best = saved(config, losses=(2.0, 1.0))
    versions = {item: CheckpointManager(config, "run").payload_version(item) for item in saved_ids(config)}
    assert checkpoint_lifecycle(config, "run", str(tmp_path / "before"), return_state=True).is_completed()
    damage(config, best)
    # As rot does: the file system notices nothing.
    monkeypatch.setattr(CheckpointManager, "payload_version", lambda _, checkpoint_id: versions[checkpoint_id])
    state = checkpoint_lifecycle(config, "run", str(tmp_path / "after"), return_state=True)
    assert state.is_failed()
    assert artifacts(state).keys() >= {"validation-run", "cleanup-run", "checkpoints-run", "metrics-run"}
    with pytest.raises(CorruptCheckpointError, match="was altered"):
        state.result()


def test_lifecycle_with_one_checkpoint_and_infinite_metrics(config: CheckpointConfig, tmp_path: Path) -> None:
    """With nothing to compare and no finite metric the latest is exported, and the tables hold no bare infinity."""
    (only,) = saved(config, losses=(float("inf"),))
    state = checkpoint_lifecycle(config, "run", str(tmp_path / "out"), return_state=True)
    assert Path(state.result()["exported"]).stem == only
    assert '"inf"' in artifacts(state)["checkpoints-run"]


def test_tables_show_every_value(config: CheckpointConfig) -> None:
    """Tiny values are not rounded to 0, names that columns have hide nothing, and no row lacks a metric."""
    manager = CheckpointManager(config, "run")
    for epoch, metrics in ((1, {"late": 1.0}), (2, {"lr": 3.25e-7, "size": 7.5})):
        manager.save_checkpoint(model=nn.Linear(1, 1), epoch=epoch, metrics=metrics, config={"lr": epoch})

    @flow
    def report() -> None:
        report_checkpoints(config, "run")
        report_comparison(config, "run", manager.compare_checkpoints(manager.checkpoint_ids()))

    published = artifacts(report(return_state=True))
    newest, oldest = json.loads(published["checkpoints-run"])
    assert newest.keys() == oldest.keys()
    assert (newest["lr"], newest["metric size"], newest["late"], oldest["late"]) == (3.25e-7, 7.5, None, 1.0)
    assert newest["size"].endswith("KiB")
    compared = json.loads(published["comparison-run"])
    assert [(row["kind"], row["name"]) for row in compared if row["name"] == "lr"] == [
        ("metrics", "lr"),
        ("config", "lr"),
    ]


def test_lifecycle_names_what_there_is(config: CheckpointConfig) -> None:
    """A mistyped experiment is told apart from an empty one."""
    saved(config)
    with pytest.raises(ExperimentNotFoundError, match="Did you mean 'run'"):
        checkpoint_lifecycle(config, "runn")
