"""Totals and statistics."""

from __future__ import annotations

from typing import Any

from ckpt_lib import CheckpointConfig
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("summarize {experiment_name}")
def summarize_checkpoints(config: CheckpointConfig, experiment_name: str) -> dict[str, Any]:
    """Totals, the best and the latest id, and statistics of every metric.

    See :meth:`ckpt_lib.CheckpointManager.get_checkpoint_summary`.
    """
    return manager_for(config, experiment_name).get_checkpoint_summary()
