"""Imports of whole trees: each checkpoint in a folder and below, in the order in which training made them.

Each is described first, for the order; then one after the other is imported as if it alone had been named. What cannot
be imported keeps no other from it: the report says of each thing found what it is, what became of it, and why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
from ckpt_lib.maintenance.import_report import Counted, ImportedItem, ImportReport, Result
from ckpt_lib.maintenance.importing import ImportTask
from ckpt_lib.maintenance.tree_contents import Thing, described_thing, in_order, things_in
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
    that say neither come first. What a ``key_map`` names is what they say. What another program wrote and is older
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
        found = [thing for thing in things_in(files, root) if not (task.in_place and is_own_name(thing.path))]
        things = [described_thing(thing, task.experiment.name, task.key_map) for thing in found]
    checkpoints = in_order([thing for thing in things if thing.is_checkpoint])
    live = [manifest for manifest in task.experiment.index.view().manifests if manifest.is_visible]
    task = replace(task, newest=max(live, key=lambda manifest: manifest.sequence, default=None))
    items: list[ImportedItem] = []
    ended: str | None = None
    for number, thing in enumerate(checkpoints):
        if counted:
            counted(number, len(checkpoints))
        if ended is None:
            item, ended = _import(task, thing, noted)
        else:
            item = thing.item("not tried", ended)
        items.append(item)
    if counted:
        counted(len(checkpoints), len(checkpoints))
    items += [thing.item("no checkpoint", str(thing.failure)) for thing in things if not thing.is_checkpoint]
    return ImportReport(experiment_name=task.experiment.name, items=tuple(items))


def _import(
    task: ImportTask, thing: Thing, noted: Callable[[Manifest], object] | None
) -> tuple[ImportedItem, str | None]:
    """Import one thing; return what became of it and, if nothing else need be tried, why."""
    if thing.failure is not None:
        return thing.item(_result_of(thing.failure), str(thing.failure)), None
    try:
        if task.in_place and "/" in thing.path:
            raise ConfigError(
                "only what lies in the folder of the experiment itself can be imported in place, and it lies below",
                hint="Import each folder of checkpoints by itself, `ckpt import FOLDER --tree --in-place`, or copies.",
            )
        if thing.is_part and task.in_place:
            raise ConfigError(
                "the files of a folder cannot be imported in place without the folder",
                hint="Import that folder by itself, or import a copy.",
            )
        imported = task.copy(thing.find_files) if thing.is_part else task.run(thing.source)
    except (CheckpointError, OSError) as error:
        ended = f"An import before it failed: {error}" if isinstance(error, _ENDING) else None
        return thing.item(_result_of(error), str(error)), ended
    if noted and imported.is_new:
        noted(imported.manifest)
    return thing.item("imported" if imported.is_new else "already there", imported=imported), None


def _result_of(error: CheckpointError | OSError) -> Result:
    if isinstance(error, CheckpointNotFoundError):  # of ours, deleted where it lies
        return "no checkpoint"
    return "damaged" if isinstance(error, IntegrityError) else "refused"
