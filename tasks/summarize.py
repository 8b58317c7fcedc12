"""The summary of an experiment."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.analysis.results import ExperimentSummary
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("summarize {experiment_name}")
def summarize_checkpoints(config: CheckpointConfig, experiment_name: str) -> ExperimentSummary:
    """Return totals, the best and the latest id, and statistics of every metric."""
    return manager_for(config, experiment_name).get_checkpoint_summary()
