"""The task that saves, inside a training flow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib import CheckpointConfig
from ckpt_lib.state.training_state import Named, TrainingState
from prefect_checkpoints.tasks._kinds import ImmediateTask
from prefect_checkpoints.tasks._options import NO_TAGS, checkpoint_task, idempotency_key, manager_for


@checkpoint_task("save {experiment_name} epoch {epoch} step {step}", kind=ImmediateTask, tags=NO_TAGS)
def save_checkpoint(
    config: CheckpointConfig,
    experiment_name: str,
    *,
    epoch: int,
    state: TrainingState | None = None,
    model: Named | None = None,
    optimizer: Named | None = None,
    scheduler: Named | None = None,
    step: int = 0,
    metrics: Mapping[str, Any] | None = None,
    tags: Collection[str] = (),
    description: str = "",
    run_config: Any = None,
    extra_state: Mapping[str, Any] | None = None,
    epoch_finished: bool | None = None,
    force: bool = False,
) -> str | None:
    """Save a checkpoint and return its id, or ``None`` if the save policy says no.

    Within a flow run, saves with the same epoch, step and content are the same save, so a retry saves nothing twice.
    Content is the state, metrics, configuration, tags and description. The state, or model, optimizer and scheduler,
    pass by reference, so the task must run on the caller's thread: ``submit`` and ``map`` raise
    :class:`~ckpt_lib.errors.ConfigError`. See :meth:`ckpt_lib.CheckpointManager.save_checkpoint`, whose ``config`` is
    ``run_config`` here.
    """
    return manager_for(config, experiment_name).save_checkpoint(
        state,
        model=model,
        epoch=epoch,
        optimizer=optimizer,
        scheduler=scheduler,
        step=step,
        metrics=metrics,
        tags=tags,
        description=description,
        config=run_config,
        extra_state=extra_state,
        idempotency_key=idempotency_key(epoch, step),
        compare_content=True,
        epoch_finished=epoch_finished,
        force=force,
    )
