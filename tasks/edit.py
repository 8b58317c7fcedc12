"""Tasks that change the facts of a stored checkpoint: metrics that are added, and tags."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib import CheckpointConfig, CheckpointMetadata
from ckpt_lib.core.names import check_tags
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("add metrics to {experiment_name} {checkpoint_id}")
def add_metrics(
    config: CheckpointConfig,
    experiment_name: str,
    checkpoint_id: str,
    metrics: Mapping[str, Any],
    *,
    source: str,
    replace: bool = False,
) -> CheckpointMetadata:
    """Add metrics that ``source`` measured after the save; values that it has recorded already change nothing.

    See :meth:`ckpt_lib.CheckpointManager.add_metrics`.
    """
    return manager_for(config, experiment_name).add_metrics(checkpoint_id, metrics, source=source, replace=replace)


@checkpoint_task("tag {experiment_name} {checkpoint_id}")
def tag_checkpoint(
    config: CheckpointConfig, experiment_name: str, checkpoint_id: str, tags: Collection[str]
) -> CheckpointMetadata:
    """Give a checkpoint tags; nothing is written if it has them all.

    See :meth:`ckpt_lib.CheckpointManager.edit_checkpoint`.
    """
    manager = manager_for(config, experiment_name)
    found = manager.get_checkpoint(checkpoint_id)
    if set(check_tags(tags)) <= set(found.tags):
        return found
    return manager.edit_checkpoint(found.checkpoint_id, add_tags=tags)
