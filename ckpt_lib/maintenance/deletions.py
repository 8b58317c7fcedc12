"""Deletions by name, and what takes them back, as the backups are told of them.

A backup outlives its checkpoint, and a run may resume from it. So a deletion by name marks the checkpoint at home
before it goes, and its backup afterwards: it then comes back only if someone asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import StorageFullError
from ckpt_lib.experiment import deleted_by_name, noted_backups
from ckpt_lib.experiment.locations import Locations


@contextmanager
def deleting(locations: Locations, manifest: Manifest) -> Iterator[None]:
    """Mark a checkpoint that is deleted inside, and its backup when that is done.

    A backup location that does not answer stops no deletion: the mark at home counts, and the next pass over the
    backups repeats it there. Raises :class:`~ckpt_lib.errors.ConfigError` where runs have backups that this
    configuration does not name.
    """
    noted_backups.require_known(locations)
    try:
        deleted_by_name.mark(locations.home, manifest)
    except StorageFullError as error:  # deleting is what frees space
        logger.error("marking %s as deleted failed: %s", manifest.checkpoint_id, error)
    try:
        yield
    except BaseException:
        with failures_logged(f"taking the mark of {manifest.checkpoint_id} away"):
            if deleted_by_name.is_live(locations.home, manifest):  # it was refused
                deleted_by_name.take_away(locations.home, locations.home, manifest)
        raise
    with failures_logged(f"marking {manifest.checkpoint_id} as deleted"):
        deleted_by_name.mark(locations.home, manifest)  # somebody who brought it back before took the first one away
    with failures_logged(f"marking the backup of {manifest.checkpoint_id} as deleted"):
        backup = locations.backups.read(manifest.checkpoint_id).record
        if isinstance(backup, Manifest) and backup.uid == manifest.uid:
            deleted_by_name.mark(locations.backups, backup)


def note_back(locations: Locations, manifest: Manifest) -> None:
    """Take away the marks of a checkpoint that is back; a place that fails is left to the next pass over backups."""
    for experiment in (locations.home, locations.backups):
        with failures_logged(f"taking the mark of {manifest.checkpoint_id} away"):
            deleted_by_name.take_away(locations.home, experiment, manifest)
