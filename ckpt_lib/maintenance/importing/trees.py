"""Imports of whole trees: each checkpoint in a folder and below, in the order in which training made them.

Each is described first, for the order; then one after the other is imported as if it alone had been named. What cannot
be imported keeps no other from it: the report says of each item what it is, what became of it, and why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ckpt_lib.core.manifest import Manifest, is_own_name
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    IntegrityError,
    NotACheckpointError,
    NotDurableError,
    StorageFullError,
    StoreUnavailableError,
)
from ckpt_lib.foreign import found_files
from ckpt_lib.maintenance.importing.report import Counted, ImportedItem, ImportReport, Result
from ckpt_lib.maintenance.importing.task import ImportTask
from ckpt_lib.maintenance.importing.tree_items import TreeItem, described_item, in_order, items_in
from ckpt_lib.store.registry import url_text

_ENDING = (StorageFullError, StoreUnavailableError, NotDurableError)
"""After these, no other import would do better."""


def import_tree(
    task: ImportTask,
    folder: str | os.PathLike[str],
    *,
    counted: Counted | None = None,
    noted: Callable[[Manifest], object] | None = None,
) -> ImportReport:
    """Import each checkpoint in a folder and below, oldest first; one that was imported before is skipped.

    The order is that of their steps if all say one, else of their epochs if all say one, else of their times; those
    that say neither come first. What a ``key_map`` names is what they say. What is older
    than the latest checkpoint of the experiment is refused, for a run would go on from it.

    ``counted`` is told of the progress, and ``noted`` of each checkpoint that is new. What cannot be imported is
    reported; after a store that is full or away, nothing else is tried. Raises
    :class:`~ckpt_lib.errors.NotACheckpointError` where there is no folder, or one of too many files. Killed on the way,
    call it again.
    """
    root = url_text(folder)
    with found_files(root) as files:
        if files.is_one_file:
            raise NotACheckpointError("a file is no tree", path=root, hint="Import it without --tree.")
        found = [item for item in items_in(files, root) if not (task.in_place and is_own_name(item.path))]
        items = [described_item(item, task.key_map) for item in found]
    checkpoints = in_order([item for item in items if item.is_checkpoint])
    live = [manifest for manifest in task.experiment.index.view().manifests if manifest.is_visible]
    task = replace(task, newest=max(live, key=lambda manifest: manifest.sequence, default=None))
    outcomes = list(_import_each(task, checkpoints, counted, noted))
    outcomes += [item.reported("no checkpoint", str(item.failure)) for item in items if not item.is_checkpoint]
    return ImportReport(experiment_name=task.experiment.name, items=tuple(outcomes))


def _import_each(
    task: ImportTask,
    checkpoints: Sequence[TreeItem],
    counted: Counted | None,
    noted: Callable[[Manifest], object] | None,
) -> Iterator[ImportedItem]:
    """Import one after the other, and yield what became of each; after an error that ends all, try no other one."""
    ended: str | None = None
    for number, item in enumerate(checkpoints):
        if counted:
            counted(number, len(checkpoints))
        if ended is None:
            outcome, ended = _import(task, item, noted)
        else:
            outcome = item.reported("not tried", ended)
        yield outcome
    if counted:
        counted(len(checkpoints), len(checkpoints))


def _import(
    task: ImportTask, item: TreeItem, noted: Callable[[Manifest], object] | None
) -> tuple[ImportedItem, str | None]:
    """Import one item; return what became of it and, if nothing else need be tried, why."""
    if item.failure is not None:
        return item.reported(_result_of(item.failure), str(item.failure)), None
    try:
        if task.in_place and "/" in item.path:
            raise ConfigError(
                "only what lies in the folder of the experiment itself can be imported in place, and it lies below",
                hint="Import each folder of checkpoints by itself, `ckpt import FOLDER --tree --in-place`, or copies.",
            )
        if item.is_part and task.in_place:
            raise ConfigError(
                "the files of a folder cannot be imported in place without the folder",
                hint="Import that folder by itself, or import a copy.",
            )
        imported = task.copy(item.find_files) if item.is_part else task.run(item.source)
    except (CheckpointError, OSError) as error:
        ended = f"An import before it failed: {error}" if isinstance(error, _ENDING) else None
        return item.reported(_result_of(error), str(error)), ended
    if noted and imported.is_new:
        noted(imported.manifest)
    return item.reported("imported" if imported.is_new else "already there", imported=imported), None


def _result_of(error: CheckpointError | OSError) -> Result:
    if isinstance(error, CheckpointNotFoundError):  # of ours, deleted where it lies
        return "no checkpoint"
    return "damaged" if isinstance(error, IntegrityError) else "refused"
