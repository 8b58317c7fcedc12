"""``Validator``: validates an experiment's checkpoints and backups, and remembers which are intact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointNotFoundError, CorruptManifestError, UnsupportedSchemaError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import payload_version
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.maintenance.backup_status import Verified, note_verified
from ckpt_lib.maintenance.both_copies import backups_named
from ckpt_lib.maintenance.validate import KnownVersions, ValidationReport, unreadable_report, validate, with_tensors
from ckpt_lib.stream import Progress


@dataclass(frozen=True)
class Validator:
    """Reads payloads, by SHA-256 if ``deep`` and else by their chunks, and reports what is wrong with them."""

    locations: Locations
    known: KnownVersions
    verdicts: Verdicts

    def validate(self, name: str, progress: Progress | None, *, deep: bool) -> ValidationReport:
        """Validate what ``name`` stands for. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""

        def validate_found(experiment: Experiment, manifest: Manifest) -> ValidationReport:
            return self._validate(experiment, manifest, progress, deep=deep)

        try:
            return self.locations.with_found(name, validate_found)
        except (CorruptManifestError, UnsupportedSchemaError) as error:
            report = unreadable_report(error, name, self.locations.name)
            self.verdicts.note(self.locations.home, report)
            return report

    def validate_backup(self, name: str, progress: Progress | None, *, deep: bool) -> ValidationReport:
        """Validate a backup. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""
        backups = self.locations.backups
        checkpoint_id = self.locations.backup_catalogue.id_of(name)
        with backups_named(backups, checkpoint_id):
            try:
                manifest = backups.get(checkpoint_id)
            except (CorruptManifestError, UnsupportedSchemaError) as error:
                report = unreadable_report(error, checkpoint_id, self.locations.name)
                self.verdicts.note(backups, report)
                return report
            version = payload_version(backups, manifest)
            report = self._validate(backups, manifest, progress, deep=deep)
        note_verified(backups, {checkpoint_id: _verified(report, version)})
        return report

    def validate_all(
        self, experiment: Experiment, progress: Progress | None, *, deep: bool
    ) -> Iterator[ValidationReport]:
        """Validate every checkpoint that is not in quarantine, those whose manifest cannot be read at the end."""
        found: dict[str, Verified | None] = {}
        try:
            for manifest in experiment.index.view().usable:
                with suppress(CheckpointNotFoundError):  # deleted meanwhile
                    version = payload_version(experiment, manifest)
                    report = self._validate(experiment, manifest, progress, deep=deep)
                    found[manifest.checkpoint_id] = _verified(report, version)
                    yield report
        finally:  # also where nobody asks for the rest
            if experiment is self.locations.backups:
                note_verified(experiment, found)
        for report in self.unreadable(experiment):
            self.verdicts.note(experiment, report)
            yield report

    @staticmethod
    def unreadable(experiment: Experiment) -> list[ValidationReport]:
        """Return the reports of those whose manifest cannot be read."""
        errors = experiment.index.unreadable()
        return [unreadable_report(error, str(error.checkpoint_id), experiment.name) for error in errors]

    def _validate(
        self, experiment: Experiment, manifest: Manifest, progress: Progress | None, *, deep: bool
    ) -> ValidationReport:
        report = validate(experiment, manifest, progress, deep=deep)
        if report or report.is_unloadable:
            self.known.remember(experiment, manifest, is_loadable=report.is_valid)
        if report:
            self.verdicts.note(experiment, report, manifest)
            return report
        current = experiment.get(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        if not current.has_files_of(manifest):  # it was brought back, or has another payload, under other names
            return self._validate(experiment, current, progress, deep=deep)
        home, backups = self.locations.home, self.locations.backups
        self.verdicts.note(experiment, report, manifest)
        return with_tensors(report, manifest, experiment, backups if experiment is home else home)


def _verified(report: ValidationReport, version: str | None) -> Verified | None:
    return Verified(version=version, at=datetime.now(UTC)) if report and version else None


class Verdicts:
    """Remembers what was found of each checkpoint and backup, and tells when it is something else."""

    def __init__(self, locations: Locations) -> None:
        self._locations = locations
        self._found: dict[tuple[bool, str], bool] = {}

    def note(self, experiment: Experiment, report: ValidationReport, manifest: Manifest | None = None) -> None:
        """Emit ``checkpoint.validated`` or ``checkpoint.corrupted`` if the verdict is new, or has changed.

        The detail ``was_damaged`` tells whether the checkpoint was found damaged before.
        """
        if report.has_unknown_format:
            return  # which is no verdict
        is_backup = experiment is self._locations.backups
        before = self._found.get((is_backup, report.checkpoint_id))
        self._found[is_backup, report.checkpoint_id] = report.is_valid
        if before == report.is_valid:
            return
        if manifest is None and (last := experiment.index.last):
            manifest = next((item for item in last.manifests if item.checkpoint_id == report.checkpoint_id), None)
        self._locations.events.emit(
            "checkpoint.validated" if report else "checkpoint.corrupted",
            f"{report.checkpoint_id}: {report.message}",
            checkpoint_id=report.checkpoint_id,
            checkpoint=self._locations.best.describe(manifest) if manifest else None,
            is_backup=is_backup,
            was_damaged=before is False,
        )
