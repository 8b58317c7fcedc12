"""``PostSave``: what follows a commit. None of it may fail the save: the checkpoint is safe already."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.twin import Twin
from ckpt_lib.maintenance.cleaners import CheckpointCleaner
from ckpt_lib.maintenance.snapshot_file import SnapshotFile
from ckpt_lib.saving.backups import Backups


@dataclass(frozen=True)
class PostSave:
    """Backup, retention and the snapshot, in this order; each failure is logged and stops no other step."""

    locations: Locations
    backups: Backups
    cleaner: CheckpointCleaner
    snapshot: SnapshotFile

    def run(self, manifest: Manifest, twin: Twin | None = None, *, is_last: bool = False) -> None:
        """Do all that is due once ``manifest`` is committed; its ``twin`` may become its backup.

        After the last save of a training, a backup location that hangs keeps nobody longer than the deadline.
        """
        with failures_logged("writing the identity of the store"):  # after the first save, and where that was cut off
            self.locations.watch.ensure()
        self.backups.make(manifest, twin, is_last=is_last)
        with failures_logged("deleting old checkpoints"):
            self.cleaner.delete_surplus()
        self.snapshot.note_save()
