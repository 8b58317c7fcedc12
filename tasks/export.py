"""Tasks for exports and imports."""

from __future__ import annotations

from ckpt_lib import CheckpointConfig
from ckpt_lib.reports import ImportReport
from prefect_checkpoints.tasks._options import checkpoint_task, manager_for


@checkpoint_task("export {experiment_name} {checkpoint_id}")
def export_checkpoint(config: CheckpointConfig, experiment_name: str, checkpoint_id: str, destination: str) -> str:
    """Copy a checkpoint and its manifest to another folder; return the path of the payload there.

    See :meth:`ckpt_lib.CheckpointManager.export_checkpoint`.
    """
    return manager_for(config, experiment_name).export_checkpoint(checkpoint_id, destination)


@checkpoint_task("import {experiment_name} from {source}")
def import_checkpoint(
    config: CheckpointConfig,
    experiment_name: str,
    source: str,
    *,
    key_map: dict[str, str] | None = None,
    in_place: bool = False,
) -> str:
    """Import a checkpoint, ours or another program's, as the newest of an experiment; return its id there.

    See :meth:`ckpt_lib.CheckpointManager.import_checkpoint`.
    """
    return manager_for(config, experiment_name).import_checkpoint(source, key_map=key_map, in_place=in_place)


@checkpoint_task("import {experiment_name} from the tree {folder}")
def import_checkpoints(
    config: CheckpointConfig,
    experiment_name: str,
    folder: str,
    *,
    key_map: dict[str, str] | None = None,
    in_place: bool = False,
) -> ImportReport:
    """Import every checkpoint in a folder and below; the report says what became of each.

    See :meth:`ckpt_lib.CheckpointManager.import_checkpoints`.
    """
    return manager_for(config, experiment_name).import_checkpoints(folder, key_map=key_map, in_place=in_place)
