"""The run forms of flows: what they show, and what else a deployment may be given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import cloudpickle  # type: ignore[import-untyped]
import pytest
from prefect import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import PrefectHTTPStatusError
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from prefect_checkpoints.flows import (
    checkpoint_lifecycle,
    cleanup_store,
    evaluate_checkpoint,
    launch,
    manage_backups,
    train,
    validate_store,
)

pytestmark = pytest.mark.usefixtures("own_results")
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "flows.md"
CLEANED = {"checkpoint_dir", "max_checkpoints", "backup_dir", "max_backups", "trash_seconds"}
MAINTENANCE = [checkpoint_lifecycle, validate_store, cleanup_store, manage_backups]
SHOWN = [
    (train, set(CheckpointConfig.model_fields)),
    (launch, set(CheckpointConfig.model_fields)),
    (checkpoint_lifecycle, CLEANED | {"backup_only_best"}),
    (validate_store, CLEANED - {"max_checkpoints"} | {"backup_checkpoints", "backup_only_best"}),
    (cleanup_store, CLEANED),
    (manage_backups, CLEANED - {"max_checkpoints", "trash_seconds"}),
    (evaluate_checkpoint, {"checkpoint_dir", "backup_dir"}),
]


@pytest.fixture
def deployment_id() -> Iterator[UUID]:
    """A deployment of ``cleanup_store`` that no worker runs."""
    found = RunnerDeployment.from_flow(cleanup_store, name="form").apply()
    assert isinstance(found, UUID)
    yield found
    with get_client(sync_client=True) as client:
        client.delete_deployment(found)


def scheduled(deployment_id: UUID, **parameters: Any) -> FlowRun:
    """A run as the form, or a caller in Python, creates it."""
    run = run_deployment(deployment_id, parameters=parameters, timeout=0, as_subflow=False)
    assert isinstance(run, FlowRun)
    return run


@pytest.mark.parametrize(("flow", "shown"), SHOWN)
def test_forms_show_the_options_that_their_flow_uses(flow: Any, shown: set[str]) -> None:
    """A maintenance flow asks for its store, backups and retention, with the defaults of the configuration."""
    schema = flow.parameters.model_dump()
    options = schema["definitions"]["CheckpointConfig"]["properties"]
    defaults = CheckpointConfig().model_dump(include=shown)
    assert options.keys() == shown
    assert {name: option["default"] for name, option in options.items()} == defaults
    assert schema["properties"]["config"].get("default") == (None if flow is launch else defaults)  # launch needs one


CHECKS = """
import sys, cloudpickle
needed = {
    "evaluate_checkpoint": {"function": "a:b", "source": "s"},
    "launch": {"config": {}, "experiment_name": "e", "command": "true"},
}
for flow in cloudpickle.load(sys.stdin.buffer):
    flow.validate_parameters(needed.get(flow.name, {}))
"""


def test_served_flows_know_the_types_of_their_parameters() -> None:
    """`serve` sends a flow to a process of its own, which does not import its module."""
    flows = cloudpickle.dumps([flow for flow, _ in SHOWN])
    done = subprocess.run([sys.executable, "-c", CHECKS], input=flows, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("flow", [*MAINTENANCE, evaluate_checkpoint])
def test_the_page_lists_what_a_form_shows(flow: Any) -> None:
    """The table of forms names the options of each maintenance flow, in the order of its form."""
    options = flow.parameters.definitions["CheckpointConfig"]["properties"]
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{flow.name}/")]
    assert ", ".join(f"`{name}`" for name in options) in [row.split("|")[2].strip() for row in rows]


def test_a_filled_in_form_cleans_up_as_it_says(config: CheckpointConfig, deployment_id: UUID) -> None:
    """What the form sends passes the server's check, and the flow does with the store what the options say."""
    manager = CheckpointManager(config, "run")
    ids = [
        manager.save_checkpoint(model=nn.Linear(3, 2), epoch=epoch, metrics={"val_loss": 9 - epoch})
        for epoch in (1, 2, 3)
    ]
    default = cleanup_store.parameters.properties["config"]["default"]
    filled_in = default | {"checkpoint_dir": config.checkpoint_dir, "max_checkpoints": 1, "max_backups": 2}
    run = scheduled(deployment_id, config=filled_in)
    cleanup_store(**run.parameters)
    assert manager.checkpoint_ids() == ids[2:]
    assert manager.backup_ids() == ids[1:]


def test_a_deployment_takes_a_whole_configuration(config: CheckpointConfig, deployment_id: UUID) -> None:
    """Options that the form does not show are no errors, and reach the flow as they are."""
    config = config.model_copy(update={"save_metadata": False, "monitor_metric": "accuracy", "monitor_mode": "max"})
    run = scheduled(deployment_id, config=config)
    assert cleanup_store.validate_parameters(run.parameters)["config"] == config


def test_a_deployment_refuses_a_misspelt_option(deployment_id: UUID) -> None:
    """The server refuses an option that does not exist before a run is created."""
    with pytest.raises(PrefectHTTPStatusError, match="max_checkpoint'"):
        scheduled(deployment_id, config={"max_checkpoint": 1})


@pytest.mark.parametrize("flow", MAINTENANCE)
def test_flows_take_the_configuration_of_the_training(flow: Any, config: CheckpointConfig) -> None:
    """A caller in Python passes the configuration it saves with, or any of its options."""
    config = config.model_copy(update={"save_interval": 7})
    assert flow.validate_parameters({"config": config})["config"] is config
    assert flow.validate_parameters({"config": {"save_interval": 7}})["config"].save_interval == 7
