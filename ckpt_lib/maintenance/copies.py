"""``Copies``: a checkpoint and its backup; each is made, restored or repaired from the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, IntegrityError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.maintenance import quarantine, transfer
from ckpt_lib.maintenance.cleaners import BackupCleaner, at_most
from ckpt_lib.maintenance.cleanup import kept_if_valid
from ckpt_lib.maintenance.quarantine import QuarantinedCheckpoint, QuarantineReport
from ckpt_lib.maintenance.repair import RepairReport, repair
from ckpt_lib.maintenance.snapshot_file import SnapshotFile
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.store.identity import ensure_identity
from ckpt_lib.stream import Progress

_ABOUT_BACKUPS = {"backup_checkpoints", "backup_only_best", "backup_dir", "max_backups"}


@contextmanager
def backups_named(backups: CheckpointFolder, checkpoint_id: str) -> Iterator[None]:
    """Say that it is the backup that there is not."""
    try:
        yield
    except CheckpointNotFoundError as error:
        raise transfer.no_backup(backups, checkpoint_id) from error


@dataclass(frozen=True)
class Copies:
    """Makes, restores, repairs and sets aside the two copies of an experiment's checkpoints."""

    experiment: Experiment
    known: KnownVersions
    snapshot: SnapshotFile
    cleaner: BackupCleaner

    def back_up(self, manifest: Manifest, progress: Progress | None = None, *, verify_existing: bool = False) -> bool:
        """Make a verified backup and clean up the backups; ``False`` when there is one already."""
        folder, backups = self._folders()
        copied = transfer.backup(folder, manifest, backups, verify_existing=verify_existing, progress=progress)
        if copied:
            self.known.remember(backups, manifest)
            self.cleaner.clean(known=self.known, just_made=manifest.checkpoint_id)
        return copied

    def restore(self, name: str, progress: Progress | None) -> Manifest:
        """Put a backup back in its place; when that fails, the error says what else may help."""
        folder, backups = self._folders()
        checkpoint_id = self.experiment.primary.id_of(name)
        try:
            manifest = transfer.restore(folder, checkpoint_id, backups, progress)
        except (CheckpointNotFoundError, IntegrityError) as error:
            if isinstance(error, IntegrityError):
                error.message = f"its backup cannot be restored: {error.message}"
            error.hint = transfer.other_ways(folder, backups, checkpoint_id)
            raise
        self.known.remember(folder, manifest)
        self.snapshot.write()
        return manifest

    def import_from(self, source: str | os.PathLike[str], progress: Progress | None) -> Manifest:
        """Take in an exported checkpoint as the newest."""
        folder, index = self.experiment.primary.folder, self.experiment.primary.index
        manifest = transfer.import_checkpoint(
            folder, index, source, experiment_name=self.experiment.name, progress=progress
        )
        self.known.remember(folder, manifest, is_loadable=True)
        with failures_logged("writing the identity of the store"):
            ensure_identity(folder.store)
        self.snapshot.write()
        return manifest

    def repair(self, name: str, progress: Progress | None) -> RepairReport:
        """Repair a checkpoint from its backup."""
        return self._repair(*self._folders(), self.experiment.primary.id_of(name), progress)

    def repair_backup(self, name: str, progress: Progress | None) -> RepairReport:
        """Repair a backup from its checkpoint."""
        folder, backups = self._folders()
        checkpoint_id = self.experiment.backups.id_of(name)
        with backups_named(backups, checkpoint_id):
            return self._repair(backups, folder, checkpoint_id, progress)

    def _repair(
        self, folder: CheckpointFolder, other: CheckpointFolder, checkpoint_id: str, progress: Progress | None
    ) -> RepairReport:
        name = self.experiment.name
        was_quarantined = quarantine.is_quarantined(folder, checkpoint_id)
        if was_quarantined:
            is_backup = folder is self.experiment.backups.folder
            report = quarantine.bring_back(folder, checkpoint_id, other, name, progress, is_backup=is_backup)
        else:
            report = repair(folder, checkpoint_id, other, name, progress)
        self.known.remember(folder, folder.read_manifest(report.checkpoint_id))
        if was_quarantined or report.method == "file":  # it may have brought a manifest back
            self.snapshot.write()
        return report

    def quarantine(self, name: str, progress: Progress | None) -> QuarantineReport:
        """Set a damaged checkpoint aside, or repair it from its backup."""
        folder, backups = self._folders()
        checkpoint_id = self.experiment.primary.id_of(name)
        report = quarantine.set_aside(folder, checkpoint_id, backups, self.experiment.name, progress)
        self.snapshot.write()
        return report

    def quarantine_backup(self, name: str, progress: Progress | None) -> QuarantineReport:
        """Set a damaged backup aside, or repair it from its checkpoint."""
        folder, backups = self._folders()
        checkpoint_id = self.experiment.backups.id_of(name)
        with backups_named(backups, checkpoint_id):
            return quarantine.set_aside(backups, checkpoint_id, folder, self.experiment.name, progress)

    def quarantined_backups(self) -> list[QuarantinedCheckpoint]:
        """The backups in quarantine."""
        found = quarantine.list_quarantined(self.experiment.backups.folder, self.experiment.name)
        return [item.model_copy(update={"is_backup": True}) for item in found]

    def delete_quarantined(self, checkpoint_id: str) -> int:
        """Remove what is left of a quarantined checkpoint; return how many bytes that frees."""
        try:
            return quarantine.remove(self.experiment.primary.folder, checkpoint_id)
        except CheckpointNotFoundError as error:
            error.hint = self._where_it_is_quarantined(checkpoint_id)
            raise

    def _where_it_is_quarantined(self, checkpoint_id: str) -> str:
        with suppress(CheckpointError):  # backups that cannot be reached
            if quarantine.is_quarantined(self.experiment.backups.folder, checkpoint_id):
                return f"Its backup is: `delete_backup` removes it, or `ckpt delete --backups {checkpoint_id}`."
        return "`list_quarantined` and `ckpt quarantine` show what is."

    def wanted_backups(self) -> set[str]:
        """What should have a backup: as the configuration says, and as many as the backup location keeps.

        Where it says nothing, there may be a training whose own says otherwise: then only where there are backups at
        all, the best and the newest, which each of these trainings backs up.
        """
        config, catalogue = self.experiment.config, self.experiment.primary.catalogue
        if not config.backup_checkpoints:
            return set()
        checkpoints = {manifest.checkpoint_id: manifest for manifest in self.experiment.primary.index.manifests()}
        backups = {manifest.checkpoint_id: manifest for manifest in self.experiment.backups.index.manifests()}
        best = {best_id} if (best_id := catalogue.best_id()) else set()
        if config.backup_only_best:
            return best
        if not config.model_fields_set & _ABOUT_BACKUPS:
            return best | set(list(checkpoints)[-1:]) if backups else set()
        monitor = catalogue.monitor()
        kept = kept_if_valid((backups | checkpoints).values(), at_most(config.max_backups, monitor), [monitor])
        return kept & checkpoints.keys()

    def _folders(self) -> tuple[CheckpointFolder, CheckpointFolder]:
        return self.experiment.primary.folder, self.experiment.backups.folder
