"""Emergency reclaim: what may go when the store is full, and in which order."""

from __future__ import annotations

from functools import partial

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.experiment.deletion import purge
from ckpt_lib.experiment.replacement import remove_obsolete
from ckpt_lib.maintenance.cleaners import Cleaner


class FreeSpace:
    """Makes room for a save of an experiment, by its ``cleaners``, one after the other."""

    def __init__(self, *cleaners: Cleaner) -> None:
        self._cleaners = cleaners

    def make(self, needed_bytes: int | None) -> None:
        """Delete what may go until ``needed_bytes`` are free, or all that may go if ``None``. A failure is logged."""
        for cleaner in self._cleaners:
            with failures_logged(f"making room in {cleaner.experiment.location()}"):
                reclaim(cleaner, needed_bytes)


def reclaim(cleaner: Cleaner, needed_bytes: int | None) -> None:
    """Free ``needed_bytes``, or as much as may go: deleted checkpoints first, then what others were thinned of, and
    then what retention deletes.

    ``None`` stands for a store that was full although it told of free space, as one with a quota does: then all goes
    that may. No guarantee of retention is weaker here. Killed on the way, every checkpoint is whole or gone. Raises
    :class:`~ckpt_lib.errors.StoreError`.
    """
    experiment = cleaner.experiment

    def is_enough() -> bool:
        free_bytes = experiment.store.free_bytes()
        return needed_bytes is not None and free_bytes is not None and free_bytes >= needed_bytes

    view = experiment.index.view()
    if not view.entries:  # a folder that is not there is not created either
        return
    is_sound = partial(cleaner.known.verify, experiment)
    purged = purge(experiment, grace_seconds=0, is_enough=is_enough, is_sound=is_sound) if view.valid else []
    dropped = remove_obsolete(experiment, grace_seconds=0, is_enough=is_enough, is_sound=is_sound)
    deleted = () if is_enough() else cleaner.clean_quickly().deleted_ids
    if purged or dropped or deleted:
        experiment.events.emit(
            "store.reclaimed",
            f"removed {len(purged)} deleted checkpoints for good and retired {len(deleted)} to make room",
            path=experiment.location(),
            purged_ids=[manifest.checkpoint_id for manifest in purged],
            retired_ids=list(deleted),
        )
