"""Tasks that load and resume, inside a training flow."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib import CheckpointConfig
from ckpt_lib.core.payload_keys import PAYLOAD_KEYS
from ckpt_lib.formats import Payload
from ckpt_lib.state.renames import KeyMap
from ckpt_lib.state.training_state import Named, TrainingState, training_state
from prefect_checkpoints.tasks._kinds import RestoringTask
from prefect_checkpoints.tasks._options import NO_TAGS, checkpoint_task, manager_for


@checkpoint_task("load {experiment_name} {checkpoint_id}", kind=RestoringTask, tags=NO_TAGS)
def load_checkpoint(
    config: CheckpointConfig,
    experiment_name: str,
    checkpoint_id: str = "latest",
    *,
    state: TrainingState | None = None,
    model: Named | None = None,
    optimizer: Named | None = None,
    scheduler: Named | None = None,
    keys: Collection[str] | None = None,
    map_location: Any = "cpu",
    keep: Mapping[str, Collection[str]] | None = None,
    require_exact: bool = False,
    key_map: KeyMap | None = None,
    strict: bool = True,
    only: str | None = None,
) -> Payload:
    """Verify a checkpoint and restore it into what was passed; return the rest of its payload, or only ``keys``.

    Restored state is left out of the returned dict, because Prefect keeps a task's result in memory while the flow
    runs. If there is something to restore into, ``submit`` and ``map`` raise :class:`~ckpt_lib.errors.ConfigError`,
    because another process could not reach it. See
    :meth:`ckpt_lib.CheckpointManager.load_checkpoint`.
    """
    objects = training_state(state, rng=False, model=model, optimizer=optimizer, scheduler=scheduler)
    payload = manager_for(config, experiment_name).load_checkpoint(
        checkpoint_id,
        objects,
        keys=keys,
        map_location=map_location,
        keep=keep,
        require_exact=require_exact,
        key_map=key_map,
        strict=strict,
        only=only,
    )
    return _without_restored(payload, objects)


@checkpoint_task("resume {experiment_name}", kind=RestoringTask, tags=NO_TAGS)
def resume_training(
    config: CheckpointConfig,
    experiment_name: str,
    *,
    state: TrainingState | None = None,
    model: Named | None = None,
    optimizer: Named | None = None,
    scheduler: Named | None = None,
    map_location: Any = "cpu",
    keep: Mapping[str, Collection[str]] | None = None,
    require_exact: bool = False,
) -> Payload | None:
    """Restore from the newest checkpoint that verifies; return ``None`` if there are no checkpoints.

    As in :func:`load_checkpoint`, restored state is not returned, and ``submit`` is refused. See
    :meth:`ckpt_lib.CheckpointManager.resume`.
    """
    objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler)
    payload = manager_for(config, experiment_name).resume(
        objects, map_location=map_location, keep=keep, require_exact=require_exact
    )
    if payload is None:
        return None
    return _without_restored(payload, objects)


def _without_restored(payload: Payload, state: TrainingState) -> Payload:
    restored = {PAYLOAD_KEYS[part.kind] for part in state.parts() if part.kind != "rng"}
    return {key: value for key, value in payload.items() if key not in restored}
