"""What every flow does: stores that are empty, missing or foreign, the forms, and wrong parameters."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib import CheckpointConfig, init_store
from ckpt_lib.errors import NotAStoreError
from prefect_checkpoints import flows, tasks
from prefect_checkpoints.flows import checkpoint_lifecycle, cleanup_store, manage_backups, train, validate_store
from prefect_checkpoints.flows.automations import install_evaluation

pytestmark = pytest.mark.usefixtures("own_results")


def test_scheduled_flows_wait_for_the_first_checkpoint(config: CheckpointConfig) -> None:
    """In a store that was initialised and holds nothing yet, validation and cleanup have nothing to do, and say so."""
    init_store(config.checkpoint_dir)
    assert validate_store(config) == []
    assert cleanup_store(config) == {}


@pytest.mark.parametrize("flow", [validate_store, cleanup_store])
@pytest.mark.parametrize("is_mount_point", [True, False])
def test_a_missing_store_fails_a_schedule(config: CheckpointConfig, flow: Any, is_mount_point: bool) -> None:
    """A mistyped store and the empty mount point of a missing disk fail the run, unless that was allowed."""
    if is_mount_point:
        Path(config.checkpoint_dir).mkdir()
    state = flow(config, return_state=True)
    assert state.is_failed()
    assert "ckpt init" in state.message
    assert flow(config, allow_missing=True, return_state=True).is_completed()
    assert Path(config.checkpoint_dir).exists() == is_mount_point


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    """A folder of other files is not taken for an empty store."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(NotAStoreError):
        cleanup_store(CheckpointConfig(checkpoint_dir=str(tmp_path)))
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("flow", [train, checkpoint_lifecycle, validate_store, cleanup_store, manage_backups])
def test_forms_describe_every_option(flow: Any) -> None:
    """The form of a flow describes every parameter, and every option of the configuration and the training."""
    schema = flow.parameters.model_dump()
    assert all(parameter.get("description") for parameter in schema["properties"].values())
    training = schema["definitions"].get("TrainingParameters", {"properties": {}})["properties"]
    assert all(field.get("description") for field in training.values())
    options = schema["definitions"]["CheckpointConfig"]["properties"]
    assert all(option["description"] for option in options.values())
    rules = [item["properties"] for name, item in schema["definitions"].items() if name.startswith("Keep")]
    fields = [field for rule in rules for name, field in rule.items() if name != "kind"]
    assert all(field.get("description") for field in fields)


def test_flows_and_tasks_take_the_same_first_parameters() -> None:
    """What is written for one is right for the next: a swapped store and experiment would be found only when run."""
    order = ["config", "experiment_name", "checkpoint_id"]
    found = {item.fn for module in (flows, tasks) for item in vars(module).values() if hasattr(item, "fn")}
    found |= {install_evaluation, tasks.checkpointing}
    assert len(found) > 30
    for function in found:
        names = list(inspect.signature(function).parameters)
        wanted = [name for name in order if name in names]
        assert names[: len(wanted)] == wanted, function.__qualname__
        assert "config" in names
        assert "checkpoints" not in names


def test_wrong_parameters_are_refused_before_anything_runs(config: CheckpointConfig) -> None:
    """What the form would refuse, the flow refuses."""
    state = train.with_options()({"save_interval": 0}, "digits", return_state=True)
    assert state.is_failed()
    assert "save_interval" in str(state.message)
    assert not Path(config.checkpoint_dir).exists()
