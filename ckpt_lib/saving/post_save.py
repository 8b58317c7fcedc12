"""``PostSave``: what follows a commit. None of it may fail the save: the checkpoint is safe already."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.maintenance.cleaners import CheckpointCleaner
from ckpt_lib.maintenance.snapshot_file import SnapshotFile


@dataclass(frozen=True)
class PostSave:
    """Backup, retention and the snapshot, in this order; each failure is logged and stops no other step."""

    locations: Locations
    copies: Copies
    cleaner: CheckpointCleaner
    snapshot: SnapshotFile

    def run(self, manifest: Manifest) -> None:
        """Do all that is due once ``manifest`` is committed."""
        with failures_logged("writing the identity of the store"):  # after the first save, and where that was cut off
            self.locations.watch.ensure()
        # What someone else has deleted by now needs no backup.
        with failures_logged(f"backing up {manifest.checkpoint_id}"), suppress(CheckpointNotFoundError):
            if self._wants_backup(manifest) and self.copies.back_up(
                self.locations.catalogue.resolve(manifest.checkpoint_id)
            ):
                self.copies.cleaner.delete_surplus(manifest.checkpoint_id, manifest.monitor)
        with failures_logged("deleting old checkpoints"):
            self.cleaner.delete_surplus()
        self.snapshot.note_save()

    def _wants_backup(self, manifest: Manifest) -> bool:
        config = self.locations.config
        if not config.backup_checkpoints:
            return False
        return not config.backup_only_best or self.locations.best.describe(manifest).is_best
