"""The task that scrubs: it reads every byte of an experiment."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.reports import ScrubReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for
from prefect_checkpoints.tasks._progress import progress_artifact
from prefect_checkpoints.tasks.report import artifact_key


@checkpoint_task("scrub {experiment_name}")
def scrub_checkpoints(
    config: CheckpointConfig,
    experiment_name: str,
    max_bytes_per_second: float | None = None,
    restart: bool = False,
) -> ScrubReport:
    """Read every byte of an experiment's checkpoints and backups on all processors, with a progress bar.

    The next call continues a scrub that was cancelled or killed. See :meth:`ckpt_lib.CheckpointManager.scrub`.
    """
    manager = manager_for(config, experiment_name)
    total_bytes = sum(item.file_size for item in (*manager.list_checkpoints(), *manager.list_backups()))
    with progress_artifact(
        artifact_key("scrubbing", config, experiment_name), f"Scrubbing {experiment_name}", total_bytes
    ) as advance:
        return manager.scrub(max_bytes_per_second=max_bytes_per_second, restart=restart, progress=advance)
