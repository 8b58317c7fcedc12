"""``Copies``: a checkpoint and its backup; each is made, restored or repaired from the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, IntegrityError
from ckpt_lib.events import EventKind
from ckpt_lib.experiment import deleted_by_name, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.formats import compressed_format, format_named
from ckpt_lib.maintenance import deletions, quarantine, transfer
from ckpt_lib.maintenance.added_metrics import carry_to_backup
from ckpt_lib.maintenance.cleaners import BackupCleaner, at_most
from ckpt_lib.maintenance.cleanup import kept_if_valid
from ckpt_lib.maintenance.importing.report import Counted, Imported, ImportReport
from ckpt_lib.maintenance.importing.task import ImportTask
from ckpt_lib.maintenance.quarantine import QuarantineReport
from ckpt_lib.maintenance.repair import RepairReport, repair
from ckpt_lib.maintenance.snapshot_file import SnapshotFile
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.stream import Progress

_ABOUT_BACKUPS = {"backup_checkpoints", "backup_only_best", "backup_dir", "backup_mode", "max_backups"}


@contextmanager
def backups_named(backups: Experiment, checkpoint_id: str) -> Iterator[None]:
    """Turn the error of a missing checkpoint into that of a missing backup."""
    try:
        yield
    except CheckpointNotFoundError as error:
        raise transfer.no_backup(backups, checkpoint_id) from error


@dataclass
class Copies:
    """Makes, restores, repairs and sets aside the two copies of an experiment's checkpoints."""

    locations: Locations
    known: KnownVersions
    snapshot: SnapshotFile
    cleaner: BackupCleaner

    def __post_init__(self) -> None:
        self._marks_are_followed = False

    def back_up(
        self,
        manifest: Manifest,
        progress: Progress | None = None,
        *,
        verify_existing: bool = False,
        is_made: bool = False,
    ) -> bool:
        """Make a verified backup, unless its save has made it; ``False`` when there was one before."""
        home, backups = self._pair()
        copied = is_made or transfer.backup(home, manifest, backups, verify_existing=verify_existing, progress=progress)
        with suppress(CheckpointNotFoundError):  # deleted at home meanwhile
            carry_to_backup(home.get(manifest.checkpoint_id), backups)
        if copied:
            if deleted_by_name.is_marked(home, manifest.uid):  # since it was read here
                self._marks_are_followed = False
            if not self._marks_are_followed:
                self.follow_marks()
            self._tell("checkpoint.backed_up", manifest, f"backed up {manifest.checkpoint_id}")
            with suppress(CheckpointNotFoundError):  # deleted at home meanwhile
                self.known.remember(backups, backups.get(manifest.checkpoint_id))
        return copied

    def follow_marks(self) -> None:
        """Repeat beside the backups what was deleted by name while they did not answer, or before they were there."""
        with failures_logged("marking the backups of what was deleted by name"):
            deleted_by_name.follow(*self._pair())
            self._marks_are_followed = True

    def restore(self, name: str, progress: Progress | None) -> Manifest:
        """Put a backup back in its place; when that fails, the error says what else may help."""
        home, backups = self._pair()
        checkpoint_id = self._id_to_restore(name)
        try:
            manifest = transfer.restore(home, checkpoint_id, backups, progress)
        except (CheckpointNotFoundError, IntegrityError) as error:
            if isinstance(error, IntegrityError):
                error.message = f"its backup cannot be restored: {error.message}"
            error.hint = transfer.other_ways(home, backups, checkpoint_id)
            raise
        keys.point_to(home, manifest)
        deletions.note_back(self.locations, manifest)
        self.known.remember(home, manifest)
        self.snapshot.write()
        return manifest

    def _id_to_restore(self, name: str) -> str:
        """Return the id that a name stands for: at home or, where home has no checkpoint, among the backups."""
        catalogue, backups = self.locations.catalogue, self.locations.backup_catalogue
        try:
            return catalogue.id_of(name)
        except CheckpointNotFoundError:
            found = None if catalogue.view().usable else backups.named(name, backups.manifests())
            if found is None:
                raise
            return found.checkpoint_id

    def import_from(self, source: str | os.PathLike[str], **options: Any) -> Imported:
        """Import a checkpoint as the newest; ``options`` are those of an :class:`ImportTask`."""
        imported = self._import_task(**options).run(source)
        self._note_imported(imported.manifest)
        self._finish_import()
        return imported

    def import_tree(self, folder: str | os.PathLike[str], *, counted: Counted | None, **options: Any) -> ImportReport:
        """Import each checkpoint in a folder and below, oldest first."""
        from ckpt_lib.maintenance.importing.trees import import_tree  # torch, only where it is used

        report = None
        try:
            report = import_tree(self._import_task(**options), folder, counted=counted, noted=self._note_imported)
        finally:
            if report is None or report.checkpoint_ids:  # where nothing was taken in, nothing is written
                self._finish_import()
        return report

    def _import_task(self, **options: Any) -> ImportTask:
        config, catalogue = self.locations.config, self.locations.catalogue
        return ImportTask(
            self.locations.home,
            catalogue.monitor(),
            lambda: compressed_format(format_named(config.format), config.compression),
            health_check=config.health_check,
            **options,
        )

    def _note_imported(self, manifest: Manifest) -> None:
        self.known.remember(self.locations.home, manifest, is_loadable=True)

    def _finish_import(self) -> None:
        with failures_logged("writing the identity of the store"):
            self.locations.watch.ensure()
        self.snapshot.write()

    def repair(self, name: str, progress: Progress | None) -> RepairReport:
        """Repair a checkpoint from its backup."""
        home, backups = self._pair()
        checkpoint_id = self.locations.catalogue.id_of(name)
        try:
            report = self._repair(home, backups, checkpoint_id, progress)
        except CheckpointNotFoundError:
            self.locations.catalogue.resolve(checkpoint_id)  # raises an error that says where it may be found
            raise
        self.snapshot.write()
        return report

    def repair_backup(self, name: str, progress: Progress | None) -> RepairReport:
        """Repair a backup from its checkpoint."""
        home, backups = self._pair()
        checkpoint_id = self.locations.backup_catalogue.id_of(name)
        with backups_named(backups, checkpoint_id):
            return self._repair(backups, home, checkpoint_id, progress)

    def _repair(
        self, experiment: Experiment, other: Experiment, checkpoint_id: str, progress: Progress | None
    ) -> RepairReport:
        try:
            report = repair(experiment, checkpoint_id, other, progress)
        except CorruptCheckpointError as error:
            if quarantine.is_quarantined(experiment, checkpoint_id):
                option = "" if experiment is self.locations.home else "--backups "
                error.hint = f"{error.hint} `ckpt delete {option}{checkpoint_id}` gives it up."
            raise
        manifest = experiment.get(checkpoint_id)
        self.known.remember(experiment, manifest)
        if report.damages:
            self._tell_of_repair(experiment, manifest, report)
        return report

    def quarantine(self, name: str, progress: Progress | None) -> QuarantineReport:
        """Set a damaged checkpoint aside, or repair it from its backup."""
        home, backups = self._pair()
        report = self._set_aside(home, self.locations.catalogue.id_of(name), backups, progress)
        self.snapshot.write()
        return report

    def quarantine_backup(self, name: str, progress: Progress | None) -> QuarantineReport:
        """Set a damaged backup aside, or repair it from its checkpoint."""
        home, backups = self._pair()
        checkpoint_id = self.locations.backup_catalogue.id_of(name)
        with backups_named(backups, checkpoint_id):
            return self._set_aside(backups, checkpoint_id, home, progress)

    def _set_aside(
        self, experiment: Experiment, checkpoint_id: str, other: Experiment, progress: Progress | None
    ) -> QuarantineReport:
        was_there = quarantine.is_quarantined(experiment, checkpoint_id)
        report = quarantine.set_aside(experiment, checkpoint_id, other, progress, known=self.known)
        manifest = experiment.read(checkpoint_id).record
        if isinstance(manifest, Manifest) and not was_there:
            if report.repair is not None:
                self._tell_of_repair(experiment, manifest, report.repair)
            else:
                is_backup = experiment is self.locations.backups
                self._tell("checkpoint.quarantined", manifest, report.message, is_backup=is_backup)
        return report

    def _tell_of_repair(self, experiment: Experiment, manifest: Manifest, report: RepairReport) -> None:
        is_backup = experiment is self.locations.backups
        self._tell("checkpoint.repaired", manifest, report.message, is_backup=is_backup)

    def _tell(self, kind: EventKind, manifest: Manifest, message: str, **details: Any) -> None:
        checkpoint = self.locations.best.describe(manifest)
        self.locations.events.emit(kind, message, checkpoint=checkpoint, **details)

    def delete_quarantined(self, checkpoint_id: str) -> int:
        """Remove what is left of a quarantined checkpoint; return how many bytes that frees."""
        home, backups = self._pair()
        try:
            with deletions.deleting(self.locations, quarantine.get(home, checkpoint_id)):
                return quarantine.remove(home, checkpoint_id)
        except CheckpointNotFoundError as error:
            error.hint = "`list_quarantined` and `ckpt quarantine` show what is."
            with suppress(CheckpointError):  # backups that cannot be reached
                if quarantine.is_quarantined(backups, checkpoint_id):
                    error.hint = (
                        f"Its backup is: `delete_backup` removes it, or `ckpt delete --backups {checkpoint_id}`."
                    )
            raise

    def wanted_backups(self) -> set[str]:
        """Return what should have a backup: as the configuration says, and as many as the backup location keeps.

        Where it says nothing, there may be a training whose own says otherwise: then only where there are backups at
        all, the best and the newest, which each of these trainings backs up.
        """
        config, catalogue = self.locations.config, self.locations.catalogue
        if not config.backup_checkpoints:
            return set()
        checkpoints = {manifest.checkpoint_id: manifest for manifest in catalogue.manifests()}
        backups = {manifest.checkpoint_id: manifest for manifest in self.locations.backup_catalogue.manifests()}
        best = {best_id} if (best_id := catalogue.best_id()) else set()
        if config.backup_only_best:
            return best
        if not config.model_fields_set & _ABOUT_BACKUPS:
            return best | set(list(checkpoints)[-1:]) if backups else set()
        monitor = catalogue.monitor()
        kept = kept_if_valid((backups | checkpoints).values(), at_most(config.max_backups, monitor), [monitor])
        return kept & checkpoints.keys()

    def _pair(self) -> tuple[Experiment, Experiment]:
        return self.locations.home, self.locations.backups
