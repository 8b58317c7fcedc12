"""``Validator``: validates an experiment's checkpoints and backups, and remembers which are intact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointNotFoundError, CorruptManifestError, UnsupportedSchemaError
from ckpt_lib.experiment.experiment import CheckpointSet, Experiment
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.maintenance.copies import backups_named
from ckpt_lib.maintenance.validate import KnownVersions, ValidationReport, unreadable_report, validate, with_tensors
from ckpt_lib.stream import Progress


@dataclass(frozen=True)
class Validator:
    """Reads payloads, by SHA-256 if ``deep`` and else by their chunks, and reports what is wrong with them."""

    experiment: Experiment
    known: KnownVersions

    def validate(self, name: str, progress: Progress | None, *, deep: bool) -> ValidationReport:
        """Validate what ``name`` stands for. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""

        def validate_found(folder: CheckpointFolder, manifest: Manifest) -> ValidationReport:
            return self._validate(folder, manifest, progress, deep=deep)

        try:
            return self.experiment.with_found(name, validate_found)
        except (CorruptManifestError, UnsupportedSchemaError) as error:
            return unreadable_report(error, name, self.experiment.name)

    def validate_backup(self, name: str, progress: Progress | None, *, deep: bool) -> ValidationReport:
        """Validate a backup. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""
        backups = self.experiment.backups
        checkpoint_id = backups.id_of(name)
        with backups_named(backups.folder, checkpoint_id):
            try:
                manifest = backups.folder.read_manifest(checkpoint_id)
            except (CorruptManifestError, UnsupportedSchemaError) as error:
                return unreadable_report(error, checkpoint_id, self.experiment.name)
            return self._validate(backups.folder, manifest, progress, deep=deep)

    def validate_all(
        self, checkpoints: CheckpointSet, progress: Progress | None, *, deep: bool
    ) -> Iterator[ValidationReport]:
        """Validate every checkpoint of a set, those whose manifest cannot be read at the end."""
        for manifest in checkpoints.index.manifests():
            with suppress(CheckpointNotFoundError):  # deleted meanwhile
                yield self._validate(checkpoints.folder, manifest, progress, deep=deep)
        yield from self.unreadable(checkpoints)

    def unreadable(self, checkpoints: CheckpointSet) -> list[ValidationReport]:
        """The reports of those whose manifest cannot be read."""
        errors = checkpoints.index.unreadable()
        return [unreadable_report(error, str(error.checkpoint_id), self.experiment.name) for error in errors]

    def _validate(
        self, folder: CheckpointFolder, manifest: Manifest, progress: Progress | None, *, deep: bool
    ) -> ValidationReport:
        report = validate(folder, manifest, self.experiment.name, progress, deep=deep)
        if report or report.is_unloadable:
            self.known.remember(folder, manifest, is_loadable=report.is_valid)
        if report:
            return report
        if not folder.is_complete(manifest):
            folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        primary, backups = self.experiment.primary.folder, self.experiment.backups.folder
        return with_tensors(report, manifest, folder, backups if folder is primary else primary)
