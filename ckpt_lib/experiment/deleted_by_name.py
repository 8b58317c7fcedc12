"""Which checkpoints a person has deleted by name: their backups do not come back by themselves.

The pointer of a checkpoint's ``uid`` says so, at home and beside the backups: its record may be gone, and so may the
disk that it was on. A checkpoint that is live at home is not deleted, whatever a pointer says.
"""

from __future__ import annotations

from contextlib import suppress

from ckpt_lib.core.manifest import Manifest, new_token
from ckpt_lib.errors import CheckpointError, VersionConflictError
from ckpt_lib.experiment import pointers
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, UIDS_FOLDER, uid_name


def mark(experiment: Experiment, manifest: Manifest) -> None:
    """Note that a person deletes a checkpoint. Killed before the deletion itself, nothing goes by the mark."""
    for _ in range(ATTEMPTS):
        pointer, version = pointers.read(experiment, uid_name(manifest.uid))
        if pointer and pointer.deleted:
            return
        pointer = pointer or pointers.Pointer(checkpoint_id=manifest.checkpoint_id, uid=manifest.uid)
        marked = pointer.model_copy(update={"deleted": True, "revision": new_token()})
        with suppress(VersionConflictError):
            pointers.put(experiment, uid_name(manifest.uid), marked, version)
            return
    raise too_busy(experiment, "the mark of a deletion", manifest.checkpoint_id)


def unmark(experiment: Experiment, uid: str) -> None:
    """Take the mark away, where there is one: the checkpoint is back."""
    for _ in range(ATTEMPTS):
        pointer, version = pointers.read(experiment, uid_name(uid))
        if pointer is None or not pointer.deleted:
            return
        with suppress(VersionConflictError):
            unmarked = pointer.model_copy(update={"deleted": False, "revision": new_token()})
            pointers.put(experiment, uid_name(uid), unmarked, version)
            return
    raise too_busy(experiment, "the mark of a deletion")


def take_away(home: Experiment, place: Experiment, manifest: Manifest) -> None:
    """Take the mark away at home or beside the backups, where the checkpoint is back.

    If it has been deleted again meanwhile, that may have been marked before, and is marked again. A deletion does as
    much when it is done, so that of the two, in whatever order, the last one leaves the mark that is right.
    """
    unmark(place, manifest.uid)
    if not is_live(home, manifest):
        mark(place, manifest)


def is_live(home: Experiment, checkpoint: Manifest) -> bool:
    """Tell whether readers at home see the checkpoint, or a copy of it."""
    record = home.read(checkpoint.checkpoint_id).record
    return isinstance(record, Manifest) and record.uid == checkpoint.uid and record.is_visible


def is_marked(experiment: Experiment, uid: str) -> bool:
    """Tell whether a person has deleted the checkpoint of this ``uid`` by name."""
    pointer = pointers.read(experiment, uid_name(uid)).pointer
    return pointer is not None and pointer.deleted


def is_deleted(home: Experiment, backups: Experiment, backup: Manifest) -> bool:
    """Tell whether the checkpoint of a backup was deleted by name and is not back; a home that fails says nothing."""
    marked = is_marked(backups, backup.uid)
    with suppress(CheckpointError, OSError):
        if not (marked or is_marked(home, backup.uid)):
            return False
        return not is_live(home, backup)
    return marked


def follow(home: Experiment, backups: Experiment) -> None:
    """Let the marks beside the backups say what those at home do: one of the two places may not have answered then.

    What is deleted, or comes back, after this has listed what is there gets the mark that is right all the same.
    """
    live = {item.uid: item for item in home.index.view().manifests}
    held = {item.uid: item for item in backups.index.view().manifests}
    for uid in (_pointed_to(home) & held.keys()) - live.keys():
        if is_marked(home, uid):
            mark(backups, held[uid])
            if is_live(home, held[uid]):
                take_away(home, backups, held[uid])
    for uid in _pointed_to(backups) & live.keys():
        if is_marked(backups, uid):
            take_away(home, backups, live[uid])


def _pointed_to(experiment: Experiment) -> set[str]:
    entries = experiment.store.list(experiment.key(UIDS_FOLDER))
    return {entry.key.rpartition("/")[2].removesuffix(MANIFEST_SUFFIX) for entry in entries if not entry.is_folder}
