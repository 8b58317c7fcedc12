"""The comparison of checkpoints, cached by everything that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_lib import CheckpointConfig, CheckpointError
from ckpt_lib.analysis.results import CheckpointComparison
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for, remembered


def _content(parameters: dict[str, Any]) -> str | None:
    """Return a key of everything the comparison shows: edited tags and restored files are compared anew."""
    manager = manager_for(parameters["config"], parameters["experiment_name"])
    content = [repr(parameters["metrics"]), repr(parameters["tensors"])]
    try:
        for checkpoint_id in parameters["checkpoint_ids"]:
            checkpoint = manager.get_checkpoint(checkpoint_id)
            content += [checkpoint.model_dump_json(), str(manager.payload_version(checkpoint.checkpoint_id))]
    except CheckpointError:
        return None
    return "/".join(content)


@checkpoint_task(
    "compare checkpoints of {experiment_name}",
    **remembered("compare", _content),
)
def compare_checkpoints(
    config: CheckpointConfig,
    experiment_name: str,
    checkpoint_ids: Sequence[str],
    metrics: Sequence[str] | None = None,
    tensors: bool = False,
) -> CheckpointComparison:
    """Set checkpoints side by side; with ``tensors``, their models are loaded and compared as well."""
    return manager_for(config, experiment_name).compare_checkpoints(checkpoint_ids, metrics=metrics, tensors=tensors)
