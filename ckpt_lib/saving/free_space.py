"""Emergency reclaim: what may go when the store is full, and in which order."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_lib.events import emit
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.maintenance.cleanup import CleanupReport


def reclaim(
    folder: CheckpointFolder, needed_bytes: int | None, retire: Callable[[], CleanupReport], *, experiment_name: str
) -> None:
    """Free ``needed_bytes``, or as much as may go: deleted checkpoints first, then what retention gives up.

    ``None`` stands for a store that was full although it told of free space, as one with a quota does: then all goes
    that may. No guarantee of retention is weaker here, and nothing goes that someone holds. Killed on the way, every
    checkpoint is whole or gone. Raises :class:`~ckpt_lib.errors.StoreError`.
    """

    def is_enough() -> bool:
        free_bytes = folder.store.free_bytes(folder.path)
        return needed_bytes is not None and free_bytes is not None and free_bytes >= needed_bytes

    if not folder.store.entries(folder.path):  # a folder that is not there is not created either
        return
    purged = commit.purge(folder, is_enough=is_enough)
    retired = () if is_enough() else retire().deleted_ids
    if purged or retired:
        emit(
            "store.reclaimed",
            f"removed {len(purged)} deleted checkpoints for good and retired {len(retired)} to make room",
            experiment_name=experiment_name,
            path=folder.location(),
            purged_ids=purged,
            retired_ids=list(retired),
        )
