"""Flows, run to their end on a real server."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect_checkpoints.flows import TrainingParameters, checkpoint_lifecycle, cleanup_store, train, validate_store
from prefect_checkpoints.flows.validate import LOST, REPAIRABLE, REPAIRED
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CorruptCheckpointError, ExperimentNotFoundError, NotAStoreError
from ckpt_lib.policies.retention import KeepNewest

pytestmark = pytest.mark.usefixtures("prefect_api")
SMALL = {"batch_size": 256, "channels": 4}


def artifacts(state: State[Any]) -> dict[str, Any]:
    """Key to content of everything the flow run published."""
    assert state.state_details.flow_run_id is not None
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        return {str(artifact.key): artifact.data for artifact in client.read_artifacts(artifact_filter=chosen)}


def saved(config: CheckpointConfig, experiment: str = "run", losses: tuple[float, ...] = (3.0, 1.0, 2.0)) -> list[str]:
    manager = CheckpointManager(config, experiment)
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": loss})
        for epoch, loss in enumerate(losses, start=1)
    ]
    return [checkpoint_id for checkpoint_id in ids if checkpoint_id]


def damage(config: CheckpointConfig, checkpoint_id: str, folder: str = "") -> None:
    path = Path(config.checkpoint_dir, "run", folder, f"{checkpoint_id}.pt")
    content = bytearray(path.read_bytes())
    content[100] ^= 255
    path.write_bytes(content)


def test_train_resumes_to_the_same_weights(tmp_path: Path) -> None:
    """A run in two parts ends bit-equal to one in a single part, and publishes table, plot and progress."""
    halves = CheckpointConfig(checkpoint_dir=str(tmp_path / "halves"))
    whole = CheckpointConfig(checkpoint_dir=str(tmp_path / "whole"))
    train("digits", halves, TrainingParameters(epochs=2, **SMALL))
    state = train("digits", halves, TrainingParameters(epochs=4, **SMALL), return_state=True)
    train("digits", whole, TrainingParameters(epochs=4, **SMALL))

    first, second = (CheckpointManager(config, "digits").load_checkpoint("latest") for config in (halves, whole))
    assert first["epoch"] == second["epoch"] == 4
    for name, tensor in first["model_state_dict"].items():
        assert torch.equal(tensor, second["model_state_dict"][name]), name
    assert first["metrics"] == second["metrics"]
    assert state.result()["total_checkpoints"] == 4
    published = artifacts(state)
    assert published.keys() == {"training-digits", "checkpoints-digits", "metrics-digits"}
    assert published["training-digits"] == 100.0
    header, _, picture = published["metrics-digits"].partition(",")
    assert header == "data:image/svg+xml;base64"
    assert b"val_accuracy" in base64.b64decode(picture) or b"<svg" in base64.b64decode(picture)


def test_train_learns(tmp_path: Path) -> None:
    """The training is real: after four epochs more than nine in ten unseen digits are right."""
    config = CheckpointConfig(checkpoint_dir=str(tmp_path))
    train("digits", config, TrainingParameters(epochs=4))
    best = CheckpointManager(config, "digits").get_best_checkpoint()
    assert best is not None
    assert float(best.metrics["val_accuracy"] or 0) > 0.9


def test_lifecycle_takes_all_steps(config: CheckpointConfig, tmp_path: Path) -> None:
    """Everything is validated, backed up, compared, exported, retired by the given policy, and published."""
    config = config.model_copy(update={"backup_checkpoints": False})
    first, best, latest = saved(config)
    state = checkpoint_lifecycle("run", config, str(tmp_path / "out"), KeepNewest(count=1), return_state=True)
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
    state = checkpoint_lifecycle("run", config, str(tmp_path / "out"), return_state=True)
    assert state.is_failed()
    with pytest.raises(CorruptCheckpointError, match=best):
        state.result()
    manager = CheckpointManager(config, "run")
    assert [item.checkpoint_id for item in manager.list_backups()] == [first, latest]
    assert manager.checkpoint_ids() == [first, best, latest]
    assert not (tmp_path / "out").exists()
    assert "DAMAGED" in artifacts(state)["validation-run"]


def test_lifecycle_with_one_checkpoint_and_infinite_metrics(config: CheckpointConfig, tmp_path: Path) -> None:
    """With nothing to compare and no finite metric the latest is exported, and the tables hold no bare infinity."""
    (only,) = saved(config, losses=(float("inf"),))
    state = checkpoint_lifecycle("run", config, str(tmp_path / "out"), return_state=True)
    assert Path(state.result()["exported"]).stem == only
    assert '"inf"' in artifacts(state)["checkpoints-run"]


def test_lifecycle_names_what_there_is(config: CheckpointConfig) -> None:
    """A mistyped experiment is told apart from an empty one."""
    saved(config)
    with pytest.raises(ExperimentNotFoundError, match="Did you mean 'run'"):
        checkpoint_lifecycle("runn", config)


def test_validate_store_reads_everything(config: CheckpointConfig) -> None:
    """Every checkpoint and backup of every experiment is read, remembered outcomes or not."""
    saved(config, "one")
    saved(config, "two")
    assert len(validate_store(config)) == 12
    state = validate_store(config, return_state=True)
    assert state.is_completed()
    published = artifacts(state)
    assert published["validation-store"].count('"intact"') >= 6
    assert published["validation-backups"].count('"intact"') >= 6


@pytest.mark.parametrize("copy", ["checkpoint", "backup"])
def test_validate_store_offers_and_makes_repairs(config: CheckpointConfig, copy: str) -> None:
    """Damage fails the run and is said to be repairable; with repair it is mended from the other copy."""
    first, *_ = saved(config)
    damage(config, first, "backups" if copy == "backup" else "")
    offered = validate_store(config, return_state=True)
    table = "validation-backups" if copy == "backup" else "validation-store"
    assert offered.is_failed()
    assert REPAIRABLE in artifacts(offered)[table]
    repaired = validate_store(config, repair=True, return_state=True)
    assert repaired.is_completed()
    assert REPAIRED in artifacts(repaired)[table]
    assert validate_store(config, return_state=True).is_completed()


def test_validate_store_says_what_is_lost(config: CheckpointConfig) -> None:
    """With both copies damaged nothing is repaired, and the report says so."""
    first, *_ = saved(config)
    damage(config, first)
    damage(config, first, "backups")
    state = validate_store(config, repair=True, return_state=True)
    assert state.is_failed()
    assert LOST in artifacts(state)["validation-store"]


def test_scheduled_flows_wait_for_the_first_checkpoint(config: CheckpointConfig) -> None:
    """On a machine where nothing was saved yet, validation and cleanup have nothing to do, and say so."""
    assert validate_store(config) == []
    assert cleanup_store(config) == {}


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """A folder of other files is not taken for an empty store."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotAStoreError):
        cleanup_store(CheckpointConfig(checkpoint_dir=str(tmp_path)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_cleanup_store_plans_and_deletes(config: CheckpointConfig) -> None:
    """A dry run publishes reasons and deletes nothing; the real one deletes in every experiment."""
    ids = {name: saved(config, name) for name in ("one", "two")}
    planned = cleanup_store(config, KeepNewest(count=1), dry_run=True, return_state=True)
    assert "would delete" in artifacts(planned)["cleanup-one"]
    assert CheckpointManager(config, "one").checkpoint_ids() == ids["one"]
    reports = cleanup_store(config, KeepNewest(count=1))
    for name, (first, best, latest) in ids.items():
        assert reports[name].deleted_ids == (first,)
        assert CheckpointManager(config, name).checkpoint_ids() == [best, latest]


@pytest.mark.parametrize("flow", [train, checkpoint_lifecycle, validate_store, cleanup_store])
def test_forms_describe_every_option(flow: Any) -> None:
    """The page's form for a flow has the options of the configuration with their descriptions."""
    schema = flow.parameters.model_dump()
    options = schema["definitions"]["CheckpointConfig"]["properties"]
    assert options.keys() == CheckpointConfig.model_fields.keys()
    assert all(option["description"] for option in options.values())


def test_wrong_parameters_are_refused_before_anything_runs(config: CheckpointConfig) -> None:
    """What the form would refuse, the flow refuses."""
    state = train.with_options()("digits", {"save_interval": 0}, return_state=True)
    assert state.is_failed()
    assert "save_interval" in str(state.message)
    assert not Path(config.checkpoint_dir).exists()
