"""The flow that evaluates a checkpoint: metrics once for each source, a gate, and errors that record nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from pydantic import ValidationError

from ckpt_lib import CheckpointConfig, CheckpointManager, CheckpointMetadata
from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    EvaluationError,
    ExperimentNotFoundError,
    InvalidNameError,
    MetricConflictError,
)
from prefect_checkpoints import tasks
from prefect_checkpoints.flows import Gate, TrainingParameters, evaluate_checkpoint, train
from prefect_checkpoints.flows.evaluate import _record
from tests.helpers import snapshot
from tests.orchestration import evaluators
from tests.orchestration.runs import EXPERIMENT, artifacts, damage, descriptions, flip_a_byte, in_flow, saved

pytestmark = pytest.mark.usefixtures("own_results")
MODULE = evaluators.__name__
SOURCE = "eval/test"
GATE = Gate(where=("accuracy>0.9", "val_loss<2"))


def evaluated(config: CheckpointConfig, value: float | None = 0.95, **options: Any) -> CheckpointMetadata:
    """Evaluate the checkpoint of the first epoch by a function that returns ``value``."""
    parameters = {"checkpoint_id": "first", "gate": GATE, "arguments": {"value": value}, **options}
    found: CheckpointMetadata = evaluate_checkpoint(
        config, EXPERIMENT, function=f"{MODULE}:accuracy", source=SOURCE, **parameters
    )
    return found


@pytest.fixture
def first(config: CheckpointConfig) -> str:
    """The id of the first of two checkpoints; it has the tag ``first``."""
    checkpoint_id, _ = saved(config, losses=(1.0, 0.5))
    CheckpointManager(config, EXPERIMENT).edit_checkpoint(checkpoint_id, add_tags=["first"])
    return checkpoint_id


def test_it_measures_the_weights_and_records_them(config: CheckpointConfig, first: str) -> None:
    """The function gets the payload, the metrics their source; the report says what was measured and what became."""
    manager = CheckpointManager(config, EXPERIMENT)
    weight = float(manager.load_checkpoint(first)["model_state_dict"]["weight"].mean())
    state = evaluate_checkpoint(
        config, EXPERIMENT, first, function=f"{MODULE}:Holder.accuracy", source=SOURCE, gate=GATE, return_state=True
    )
    found = manager.get_checkpoint(first)
    assert state.result() == found
    assert found.metrics == {"val_loss": 1.0, "accuracy": weight}
    assert [(item.name, item.source) for item in found.added_metrics] == [("accuracy", SOURCE)]
    assert found.tags == ("first",)
    assert str(state.message).endswith("; not promoted: accuracy>0.9")
    table = artifacts(state)["evaluation-run"]
    assert all(
        text in table for text in ("accuracy", SOURCE, "val_loss", "the save", found.added_metrics[0].at.isoformat())
    )
    title = descriptions(state)["evaluation-run"]
    assert first in title
    assert config.checkpoint_dir in title
    assert title.endswith("not promoted: accuracy>0.9")


def test_a_second_run_changes_nothing(config: CheckpointConfig, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event that came twice, or the run that was started again: one result, one tag, not one byte written."""
    assert evaluated(config).tags == ("first", "promoted")
    before = snapshot(Path(config.checkpoint_dir))
    monkeypatch.setattr(evaluators, "accuracy", lambda payload, **_: pytest.fail("evaluated again"))
    assert evaluated(config).metrics["accuracy"] == 0.95
    assert snapshot(Path(config.checkpoint_dir)) == before


def test_what_changes_no_value_is_evaluated_once(
    config: CheckpointConfig, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation that finds what the save or another source has recorded is known to have been made."""
    CheckpointManager(config, EXPERIMENT).add_metrics(first, {"accuracy": 0.95}, source="eval/other")
    assert evaluated(config).metrics["accuracy"] == 0.95
    monkeypatch.setattr(evaluators, "accuracy", lambda payload, **_: pytest.fail("evaluated again"))
    assert evaluated(config).tags == ("first", "promoted")


@pytest.mark.parametrize("step", ["add_metrics", "validate_checkpoint", "tag_checkpoint", "report_evaluation"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_that_ends_anywhere_is_run_again(
    config: CheckpointConfig, first: str, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    """Whichever step is the last: the next run ends with the same checkpoint as one that was not interrupted."""
    real: Callable[..., Any] = getattr(tasks, step)

    def killed(*args: Any, **options: Any) -> None:
        if when == "after":
            real(*args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"prefect_checkpoints.flows.evaluate.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluated(config)
    found = evaluated(config)
    assert found.metrics == {"val_loss": 1.0, "accuracy": 0.95}
    assert [(item.name, item.source) for item in found.added_metrics] == [("accuracy", SOURCE)]
    assert found.tags == ("first", "promoted")


def test_of_two_runs_at_once_the_first_counts(config: CheckpointConfig, first: str) -> None:
    """An evaluation that depends on chance, of one event that came twice: one value, and both runs complete."""
    manager = CheckpointManager(config, EXPERIMENT)
    manager.add_metrics(first, {"accuracy": 0.95}, source=SOURCE)
    found = in_flow_result(lambda: _record(manager, first, {"accuracy": 0.94}, SOURCE, False))
    assert found.metrics["accuracy"] == 0.95
    with pytest.raises(MetricConflictError, match=SOURCE):
        in_flow_result(lambda: _record(manager, first, {"accuracy": 0.94}, "eval/other", False))


def in_flow_result(call: Callable[[], CheckpointMetadata]) -> CheckpointMetadata:
    """What ``call`` returns within a flow run."""
    from prefect import flow

    return flow(call)()


def test_replacing_evaluates_again(config: CheckpointConfig, first: str) -> None:
    """Only when asked for; the earlier value stays on record, and so does the tag."""
    evaluated(config, 0.95)
    found = evaluated(config, 0.5, replace=True)
    assert [(item.value, item.source) for item in found.added_metrics] == [(0.95, SOURCE), (0.5, SOURCE)]
    assert "promoted" in found.tags
    with pytest.raises(MetricConflictError):
        evaluate_checkpoint(
            config, EXPERIMENT, first, function=f"{MODULE}:accuracy", source="eval/other", arguments={"value": 0.1}
        )


def test_only_what_is_healthy_and_finite_passes(config: CheckpointConfig) -> None:
    """NaN and infinities meet no condition, and weights with NaN are promoted by no metric."""
    import torch
    from torch import nn

    broken = nn.Linear(3, 2)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    manager = CheckpointManager(config.model_copy(update={"health_check": True}), EXPERIMENT)
    manager.save_checkpoint(model=nn.Linear(3, 2), epoch=1, metrics={"val_loss": 1.0}, tags=["first"])
    unhealthy = manager.save_checkpoint(model=broken, epoch=2, metrics={"val_loss": 1.0})
    for value in (float("nan"), float("inf")):
        assert "promoted" not in evaluated(config, value, replace=True).tags
    found = evaluated(config, 0.95, checkpoint_id=str(unhealthy))
    assert not found.healthy
    assert "promoted" not in found.tags


def test_damage_is_not_promoted(config: CheckpointConfig, first: str) -> None:
    """A checkpoint that is damaged after its evaluation fails the run, and the report says so; before, it is not
    evaluated.
    """
    CheckpointManager(config, EXPERIMENT).add_metrics(first, {"accuracy": 0.95}, source=SOURCE)
    damage(config, first)
    damage(config, first, "backups")  # else it is repaired
    state = evaluate_checkpoint(
        config, EXPERIMENT, first, function=f"{MODULE}:accuracy", source=SOURCE, gate=GATE, return_state=True
    )
    with pytest.raises(CorruptCheckpointError):
        state.result()
    assert "NOT PROMOTED" in descriptions(state)["evaluation-run"]
    with pytest.raises(CorruptCheckpointError):
        evaluate_checkpoint(config, EXPERIMENT, first, function=f"{MODULE}:accuracy", source="eval/other")
    found = CheckpointManager(config, EXPERIMENT).get_checkpoint(first)
    assert (found.tags, len(found.added_metrics)) == (("first",), 1)


def test_stored_code_never_runs(config: CheckpointConfig, first: str) -> None:
    """A payload that differs by one byte from what was saved reaches no function."""
    for folder in ("", "backups"):  # else it is repaired
        flip_a_byte(Path(config.checkpoint_dir, EXPERIMENT, folder, f"{first}.pt"))
    with pytest.raises(CorruptCheckpointError):
        evaluated(config)
    assert not CheckpointManager(config, EXPERIMENT).get_checkpoint(first).added_metrics


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"function": "no.such.module:f"}, ConfigError, "Install it"),
        ({"function": f"{MODULE}:fails", "arguments": {"how": "raises"}}, EvaluationError, "CUDA out of memory"),
        ({"function": f"{MODULE}:fails", "arguments": {"how": "returns a list"}}, EvaluationError, "a mapping"),
        ({"source": " "}, InvalidNameError, "eval/mnist-test"),
        ({"experiment_name": "rum"}, ExperimentNotFoundError, "run"),
        ({"checkpoint_id": "no-such-tag"}, CheckpointNotFoundError, "no-such-tag"),
    ],
)
def test_what_cannot_be_evaluated_records_nothing(
    config: CheckpointConfig, first: str, parameters: dict[str, Any], error: type[Exception], says: str
) -> None:
    """A typed error says what to correct, and the store is as it was."""
    before = snapshot(Path(config.checkpoint_dir))
    given = {
        "function": f"{MODULE}:accuracy",
        "source": SOURCE,
        "experiment_name": EXPERIMENT,
        "checkpoint_id": first,
        "config": config,
        **parameters,
    }
    with pytest.raises(error, match=says):
        evaluate_checkpoint(**given)
    assert snapshot(Path(config.checkpoint_dir)) == before


def test_a_gate_that_asks_for_another_metric(config: CheckpointConfig, first: str) -> None:
    """Is not met, and the run says which metric is not there; what was measured is recorded."""
    gate = Gate(where=("acuracy>0.9", "val_loss<2"))
    state = evaluate_checkpoint(
        config,
        EXPERIMENT,
        first,
        function=f"{MODULE}:accuracy",
        source=SOURCE,
        arguments={"value": 0.95},
        gate=gate,
        return_state=True,
    )
    assert state.is_completed()
    assert str(state.message).endswith("; not promoted: acuracy>0.9 (acuracy is not recorded)")
    found = CheckpointManager(config, EXPERIMENT).get_checkpoint(first)
    assert found.metrics["accuracy"] == 0.95
    assert found.tags == ("first",)


def test_two_evaluations_share_a_gate(config: CheckpointConfig, first: str) -> None:
    """Whichever is first completes without a promotion; the second promotes, since all metrics are there then."""
    gate = Gate(where=("accuracy>0.9", "other>0"))
    assert evaluated(config, gate=gate).tags == ("first",)
    second = evaluate_checkpoint(config, EXPERIMENT, first, function=f"{MODULE}:other", source="eval/other", gate=gate)
    assert second.tags == ("first", "promoted")


@pytest.mark.parametrize("gate", [{"where": []}, {"where": ["accuracy"]}, {"where": ["a>1"], "tag": "best"}, {"x": 1}])
def test_a_gate_that_cannot_work_is_refused(config: CheckpointConfig, first: str, gate: Any) -> None:
    """By the form and by the flow, before anything is read."""
    with pytest.raises(ValidationError):
        Gate(**gate)
    with pytest.raises((ParameterTypeError, ValidationError)):
        evaluated(config, gate=gate)


def test_the_tasks_write_once(config: CheckpointConfig, first: str) -> None:
    """Adding the same metrics, and giving the same tag, again writes nothing."""

    def both() -> Any:
        tasks.add_metrics(config, EXPERIMENT, first, {"accuracy": 0.9}, source=SOURCE)
        return tasks.tag_checkpoint(config, EXPERIMENT, first, ["kept"], return_state=True)

    assert in_flow(both).result().tags == ("first", "kept")
    before = snapshot(Path(config.checkpoint_dir))
    assert in_flow(both).result().tags == ("first", "kept")
    assert snapshot(Path(config.checkpoint_dir)) == before


def test_the_example_evaluates_what_train_saves(config: CheckpointConfig) -> None:
    """The deployment ``evaluate`` works on the checkpoints of the training flow."""
    train(config, "digits", TrainingParameters(epochs=1, channels=4))
    found = evaluate_checkpoint(
        config, function="prefect_checkpoints.flows.digits:worst_digit", source="digits/worst-digit"
    )
    assert 0 <= float(found.metrics["worst_digit_accuracy"] or 0) <= float(found.metrics["val_accuracy"] or 0)
