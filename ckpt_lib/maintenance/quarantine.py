"""Quarantine: what is damaged and cannot be repaired is set aside, with the report, and never deleted by itself.

A checkpoint in quarantine is not listed, not loaded, counts for no retention rule, and its id is not given out again.
Its payload stays where it is: a backup may turn up that verifies, or the disk may come back. What becomes of it
otherwise is for a person to say.
"""

from __future__ import annotations

from functools import partial

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import Manifest, Quarantine
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ProtectedCheckpointError,
)
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.deletion import Check, delete_all, deleted_by_others, purge, refuse_pinned
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.layout import manifest_name
from ckpt_lib.experiment.stored_payload import format_of
from ckpt_lib.maintenance.repair import RepairReport, repair
from ckpt_lib.maintenance.validate import KnownVersions, ValidationReport, validate
from ckpt_lib.stream import Progress


class QuarantinedCheckpoint(BaseModel):
    """A checkpoint, or a backup of one, that was set aside, why, and what is left of it."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    is_backup: bool = False
    quarantined_at: AwareDatetime
    report: ValidationReport
    checkpoint: CheckpointMetadata
    size_bytes: int = 0
    """The size of its payload in the store."""


class QuarantineReport(BaseModel):
    """The report on a damaged checkpoint that was repaired or, without ``repair``, set aside."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    report: ValidationReport
    repair: RepairReport | None = None

    @property
    def is_quarantined(self) -> bool:
        return self.repair is None

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        if self.repair is not None:
            return f"repaired instead: {self.repair.message}"
        return f"set aside: {self.report.message}"


def set_aside(
    experiment: Experiment,
    checkpoint_id: str,
    other: Experiment,
    progress: Progress | None = None,
    *,
    known: KnownVersions | None = None,
) -> QuarantineReport:
    """Repair a damaged checkpoint from its ``other`` copy, or else set it aside; one that is stays so.

    When no sound one is left then, the newest sound one that was deleted comes back.

    Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is intact,
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none,
    :class:`~ckpt_lib.errors.UnsupportedSchemaError` for one that a newer version wrote,
    :class:`~ckpt_lib.errors.UnsupportedFormatError` for one whose bytes are sound and whose format is not installed,
    :class:`~ckpt_lib.errors.CorruptManifestError` for one whose manifest is damaged, which a repair may bring back, and
    :class:`~ckpt_lib.errors.StoreError`. Killed on the way, it is as it was, repaired in part, or set aside.
    """

    def found_to_be(report: ValidationReport, repaired: RepairReport | None = None) -> QuarantineReport:
        return QuarantineReport(
            checkpoint_id=checkpoint_id, experiment_name=experiment.name, report=report, repair=repaired
        )

    for _ in range(ATTEMPTS):
        found = experiment.read_visible(checkpoint_id)
        manifest = found.manifest
        if manifest.quarantined is not None:
            return found_to_be(_report_of(manifest, manifest.quarantined))
        report = validate(experiment, manifest, progress)
        if report:
            raise ProtectedCheckpointError(
                "the checkpoint is intact and stays where it is",
                checkpoint_id=checkpoint_id,
                path=experiment.location(),
                hint="An intact one needs no quarantine; deleting is another thing.",
            )
        try:
            repaired = repair(experiment, checkpoint_id, other, progress)
        except (CorruptCheckpointError, CheckpointExistsError, ProtectedCheckpointError):
            # Nothing that would help, nothing of this one, or files that belong to another program.
            if report.has_unknown_format:
                format_of(manifest)  # raises, unless it was installed meanwhile
                continue
            is_sound = partial((known or KnownVersions()).verify, experiment)
            if edits.quarantine(experiment, found, report.model_dump(mode="json"), is_sound=is_sound):
                return found_to_be(report)
        else:
            return found_to_be(report, repaired)
    raise too_busy(experiment, "the checkpoint while it was examined", checkpoint_id)


def list_quarantined(experiment: Experiment, *, is_backup: bool = False) -> list[QuarantinedCheckpoint]:
    """Return everything in quarantine, oldest first."""
    return [
        QuarantinedCheckpoint(
            checkpoint_id=manifest.checkpoint_id,
            experiment_name=experiment.name,
            is_backup=is_backup,
            quarantined_at=manifest.quarantined.at,
            report=_report_of(manifest, manifest.quarantined),
            checkpoint=manifest.describe(),
            size_bytes=_stored_bytes(experiment, manifest),
        )
        for manifest in experiment.index.view().quarantined
        if manifest.quarantined
    ]


def _stored_bytes(experiment: Experiment, manifest: Manifest) -> int:
    entries = (experiment.store.stat(experiment.key(file.name)) for file in manifest.files)
    return sum(entry.size_bytes for entry in entries if entry)


def is_quarantined(experiment: Experiment, checkpoint_id: str) -> bool:
    """Tell whether a checkpoint is in quarantine."""
    record = experiment.read(checkpoint_id).record
    return isinstance(record, Manifest) and record.is_visible and record.quarantined is not None


def get(experiment: Experiment, checkpoint_id: str) -> Manifest:
    """Return a checkpoint that is in quarantine, or raise :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""
    if not is_quarantined(experiment, checkpoint_id):
        raise _not_quarantined(checkpoint_id)
    return experiment.get(checkpoint_id)


def remove(experiment: Experiment, checkpoint_id: str) -> int:
    """Remove a checkpoint in quarantine for good; return how many bytes that frees.

    Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when it is not in quarantine, or not any more, and
    :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is pinned, or a run has just resumed from it.
    """
    get(experiment, checkpoint_id)
    return delete_for_good(experiment, checkpoint_id, check=_refuse_sound_and_pinned)


def _refuse_sound_and_pinned(manifest: Manifest) -> CheckpointError | None:
    """Return an error for one that was repaired meanwhile, and for one that is pinned."""
    return _not_quarantined(manifest.checkpoint_id) if manifest.quarantined is None else refuse_pinned(manifest)


def _not_quarantined(checkpoint_id: str) -> CheckpointNotFoundError:
    return CheckpointNotFoundError(
        "the checkpoint is not in quarantine", checkpoint_id=checkpoint_id, hint="`ckpt quarantine` lists what is."
    )


def delete_for_good(experiment: Experiment, checkpoint_id: str, *, check: Check = lambda _: None) -> int:
    """Delete one checkpoint, as a person asked, and remove its files; return how many bytes that frees.

    ``check`` is asked as :func:`~ckpt_lib.experiment.deletion.delete_all` does. Without one, a pin does not keep it:
    that of a backup is its checkpoint's. Raises
    :class:`~ckpt_lib.errors.ProtectedCheckpointError` when a run has just resumed from it, and
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none.
    """
    manifest = experiment.get(checkpoint_id)
    size_bytes = 0 if manifest.is_in_place else _stored_bytes(experiment, manifest)
    outcome = delete_all(experiment, [checkpoint_id], check=check)
    if error := outcome.refused.get(checkpoint_id):
        raise error
    revisions = [item.revision for item in outcome.deleted]  # what someone else has deleted is theirs to bring back
    if not revisions:
        raise deleted_by_others(checkpoint_id)
    purge(experiment, grace_seconds=0.0, only=lambda item: item.revision in revisions, asked=True)
    return size_bytes


def _report_of(manifest: Manifest, quarantine: Quarantine) -> ValidationReport:
    """Return the report that a quarantine has recorded; a newer version may have written another kind of one."""
    try:
        return ValidationReport.model_validate(quarantine.report)
    except ValidationError:
        name = manifest_name(manifest.checkpoint_id)
        damage = Damage(file=name, kind="unreadable", message="the report of its quarantine cannot be read")
        return ValidationReport(
            checkpoint_id=manifest.checkpoint_id, experiment_name=manifest.experiment_name, damages=(damage,)
        )
