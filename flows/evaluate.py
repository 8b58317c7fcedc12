"""``evaluate_checkpoint``: measure a stored checkpoint by a function of the user's, and promote it if it is good."""

from collections.abc import Mapping
from typing import Any

from prefect import flow, get_run_logger
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ckpt_lib import CheckpointConfig, CheckpointManager, CheckpointMetadata, Condition, open_store
from ckpt_lib.core.metadata import Metric, check_source
from ckpt_lib.core.names import check_tag
from ckpt_lib.core.wording import listed
from ckpt_lib.errors import MetricConflictError
from ckpt_lib.experiment.listing import check_experiment_exists
from ckpt_lib.reports import ValidationReport
from prefect_checkpoints.flows._evaluator import Evaluator
from prefect_checkpoints.flows._form import ConfigForEvaluation
from prefect_checkpoints.flows._outcome import KEPT_RESULT, completed
from prefect_checkpoints.flows._store import require_absolute
from prefect_checkpoints.flows.validate import fail_on_damage
from prefect_checkpoints.tasks import (
    add_metrics,
    load_checkpoint,
    report_evaluation,
    tag_checkpoint,
    validate_checkpoint,
)


class Gate(BaseModel):
    """What an evaluated checkpoint has to meet to be promoted, and the tag that it gets then."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: tuple[str, ...] = Field(min_length=1, description='Conditions that all have to hold, as in "accuracy>0.9".')
    tag: str = Field(default="promoted", description="The tag of promoted checkpoints.")

    @field_validator("where")
    @classmethod
    def _check_where(cls, where: tuple[str, ...]) -> tuple[str, ...]:
        for text in where:
            Condition.parse(text)
        return where

    @field_validator("tag")
    @classmethod
    def _check_tag(cls, tag: str) -> str:
        return check_tag(tag)

    def unmet(self, checkpoint: CheckpointMetadata) -> list[str]:
        """Return the conditions that do not hold, and why an unhealthy checkpoint is never promoted.

        A metric that the checkpoint does not have, perhaps since another evaluation has yet to add it, holds nothing.
        """
        unmet = [_unmet(Condition.parse(text), text, checkpoint) for text in self.where]
        if not checkpoint.healthy:
            unmet.append(f"unhealthy: {checkpoint.unhealthy}")
        return [reason for reason in unmet if reason]


def _unmet(condition: Condition, text: str, checkpoint: CheckpointMetadata) -> str | None:
    if condition.holds(checkpoint):
        return None
    is_missing = condition.metric is not None and condition.metric not in checkpoint.metrics
    return f"{text} ({condition.metric} is not recorded)" if is_missing else text


@flow(name="evaluate_checkpoint", flow_run_name="evaluate {experiment_name} {checkpoint_id}", **KEPT_RESULT)
def evaluate_checkpoint(
    config: ConfigForEvaluation = CheckpointConfig(),  # noqa: B008  frozen
    experiment_name: str = "digits",
    checkpoint_id: str = "latest",
    *,
    function: str,
    source: str,
    arguments: dict[str, Any] | None = None,
    gate: Gate | None = None,
    replace: bool = False,
) -> CheckpointMetadata:
    """Evaluate a checkpoint once, add the metrics to it, and promote it if it passes the gate.

    The checkpoint is loaded and verified, and the function is called with its payload; stored code never runs. What it
    returns is added under ``source``. A checkpoint that has metrics of this source is not evaluated again, so a run
    that was killed, or is started twice, ends like one that was not. If the conditions of the gate hold, every byte is
    validated, and the checkpoint gets the gate's tag; it keeps the tag when a later evaluation does not pass. Returns
    the checkpoint's metadata.

    Args:
        config: The store and its options.
        experiment_name: An existing experiment.
        checkpoint_id: An id, latest, best, or a tag.
        function: What measures, as package.module:function; it gets the payload and returns a mapping of metrics.
        source: What the metrics are recorded under, such as eval/mnist-test.
        arguments: Keyword arguments for the function.
        gate: When to promote the checkpoint; without it, the metrics are only added.
        replace: Evaluate again, and replace other values.
    """
    require_absolute(config)
    evaluator = Evaluator.named(function, arguments or {})
    check_source(source)
    check_experiment_exists(open_store(config.checkpoint_dir), experiment_name)
    manager = CheckpointManager(config, experiment_name)
    found = manager.get_checkpoint(checkpoint_id)
    metrics = {} if replace else _recorded(found, source)
    if metrics:
        get_run_logger().info("%s has evaluated %s before", source, found.checkpoint_id)
    else:
        metrics = evaluator.measure(load_checkpoint(config, experiment_name, found.checkpoint_id))
    evaluated = _record(manager, found.checkpoint_id, metrics, source, replace)
    outcome, report = "evaluated", None
    if gate is not None:
        evaluated, outcome, report = _promote(config, evaluated, gate)
    report_evaluation(config, experiment_name, evaluated, outcome)
    if report is not None:
        fail_on_damage([report])
    values = listed([f"{name} {evaluated.metrics[name]}" for name in metrics])
    return completed(evaluated, f"{values}; {outcome}")


def _recorded(checkpoint: CheckpointMetadata, source: str) -> Mapping[str, Metric]:
    """Return the metrics that a source has added, as it has measured them."""
    return {item.name: item.value for item in checkpoint.added_metrics if item.source == source}


def _record(
    manager: CheckpointManager, checkpoint_id: str, metrics: Mapping[str, Metric], source: str, replace: bool
) -> CheckpointMetadata:
    """Add the metrics, unless another run of the same evaluation was faster: then its values count."""
    place = (manager.config, manager.experiment_name, checkpoint_id)
    try:
        return add_metrics(*place, metrics, source=source, replace=replace)
    except MetricConflictError:
        recorded = _recorded(manager.get_checkpoint(checkpoint_id), source)
        if not metrics.keys() <= recorded.keys():
            raise
        return add_metrics(*place, recorded, source=source)  # emits what the other run may not have


def _promote(
    config: CheckpointConfig, evaluated: CheckpointMetadata, gate: Gate
) -> tuple[CheckpointMetadata, str, ValidationReport | None]:
    """Return the checkpoint as it is then, what became of it, and the report of its validation, if it was made."""
    if unmet := gate.unmet(evaluated):
        return evaluated, f"not promoted: {'; '.join(unmet)}", None
    place = (config, evaluated.experiment_name, evaluated.checkpoint_id)
    report = validate_checkpoint(*place)
    if not report:
        return evaluated, f"NOT PROMOTED: {report.message}", report
    return tag_checkpoint(*place, [gate.tag]), f"promoted: tagged {gate.tag}", report
