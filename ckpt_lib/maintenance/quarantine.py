"""Quarantine: what is damaged and cannot be repaired is set aside, with the report, and never deleted by itself.

A checkpoint in quarantine is not listed, not loaded, counts for no retention rule, and its id is not given out again.
Its payload stays where it is: a backup may turn up that verifies, or the disk may come back. What becomes of it
otherwise is for a person to say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    IntegrityError,
    ProtectedCheckpointError,
    StoreUnavailableError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.layout import CheckpointFolder, marker_entries
from ckpt_lib.formats.registry import PAYLOAD_SUFFIXES
from ckpt_lib.maintenance import transfer
from ckpt_lib.maintenance.repair import ATTEMPTS, RepairReport, repair
from ckpt_lib.maintenance.validate import UNLOADABLE, ValidationReport, require_loadable, unreadable_report, validate
from ckpt_lib.stream import Progress


class QuarantinedCheckpoint(BaseModel):
    """A checkpoint, or a backup of one, that was set aside, why, and what is left of it."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    is_backup: bool = False
    quarantined_at: AwareDatetime | None = None
    report: ValidationReport
    checkpoint: CheckpointMetadata | None = None
    """``None`` when its manifest is damaged or of a newer version, or it had none."""
    size_bytes: int = 0
    """How much its payload takes where it lies."""


class QuarantineReport(BaseModel):
    """What was found of a damaged checkpoint and what became of it: repaired or, without ``repair``, set aside."""

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


class _Record(BaseModel):
    """The last line of a quarantine's marker."""

    schema_version: Literal[1] = 1
    quarantined_at: AwareDatetime
    report: ValidationReport


def set_aside(
    folder: CheckpointFolder,
    checkpoint_id: str,
    other: CheckpointFolder,
    experiment_name: str,
    progress: Progress | None = None,
) -> QuarantineReport:
    """Repair a damaged checkpoint from its ``other`` copy, or else set it aside; one that is stays so.

    Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is intact, or somebody has it in use,
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none,
    :class:`~ckpt_lib.errors.UnsupportedSchemaError` for one that a newer version wrote, and
    :class:`~ckpt_lib.errors.StoreError`. Killed on the way, it is as it was, repaired
    in part, or set aside.
    """
    for _ in range(ATTEMPTS):
        is_unchanged = _watch(folder, checkpoint_id)
        if is_quarantined(folder, checkpoint_id):
            report = read(folder, checkpoint_id, experiment_name).report
            return QuarantineReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name, report=report)
        report = _examine(folder, checkpoint_id, experiment_name, progress)
        if report:
            raise ProtectedCheckpointError(
                "the checkpoint is intact and stays where it is",
                checkpoint_id=checkpoint_id,
                path=folder.location(),
                hint="An intact one needs no quarantine; deleting is another thing.",
            )
        try:
            repaired = repair(folder, checkpoint_id, other, experiment_name, progress)
        except (CorruptCheckpointError, CheckpointExistsError):  # nothing that would help, or nothing of this one
            if commit.quarantine(folder, checkpoint_id, _record(report), is_unchanged=is_unchanged):
                return QuarantineReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name, report=report)
        else:
            return QuarantineReport(
                checkpoint_id=checkpoint_id, experiment_name=experiment_name, report=report, repair=repaired
            )
    raise _changing(folder, checkpoint_id)


def set_aside_orphan(folder: CheckpointFolder, payload_name: str, version: str, report: ValidationReport) -> bool:
    """Set a payload aside that has no manifest; ``False`` when it has one by now, or is another file."""

    def is_unchanged() -> bool:
        entry = folder.store.stat(folder.path_of(payload_name))
        has_manifest = folder.store.stat(folder.manifest_path(report.checkpoint_id)) is not None
        return entry is not None and entry.version == version and not has_manifest

    return commit.quarantine(folder, report.checkpoint_id, _record(report), is_unchanged=is_unchanged)


def list_quarantined(folder: CheckpointFolder, experiment_name: str) -> list[QuarantinedCheckpoint]:
    """Everything in quarantine, by id."""
    entries = folder.store.entries(folder.path)
    listed = {entry.name for entry in entries}
    found = sorted(marker_entries(entries, "quarantined"))
    return [read(folder, name, experiment_name) for name in found if f"{name}.json" not in listed]


def read(folder: CheckpointFolder, checkpoint_id: str, experiment_name: str) -> QuarantinedCheckpoint:
    """One checkpoint in quarantine. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`."""
    try:
        manifest = transfer.quarantined_or_none(folder, checkpoint_id)
    except UnsupportedSchemaError:  # set aside by a newer version, which alone can tell more
        manifest = None
    record = _record_or_none(folder, checkpoint_id)
    sizes = [folder.store.stat(folder.path_of(name)) for name in payload_names(checkpoint_id, manifest)]
    return QuarantinedCheckpoint(
        checkpoint_id=checkpoint_id,
        experiment_name=experiment_name,
        quarantined_at=record.quarantined_at if record else None,
        report=record.report if record else _unknown(checkpoint_id, experiment_name),
        checkpoint=manifest.describe() if manifest else None,
        size_bytes=sum(entry.size_bytes for entry in sizes if entry),
    )


def is_quarantined(folder: CheckpointFolder, checkpoint_id: str) -> bool:
    """Whether a checkpoint is in quarantine."""
    is_marked = folder.store.stat(folder.marker_path(checkpoint_id, "quarantined")) is not None
    return is_marked and folder.store.stat(folder.manifest_path(checkpoint_id)) is None


def bring_back(
    folder: CheckpointFolder,
    checkpoint_id: str,
    other: CheckpointFolder,
    experiment_name: str,
    progress: Progress | None = None,
    *,
    is_backup: bool = False,
) -> RepairReport:
    """Take a checkpoint out of quarantine: as it is if it verifies by now, else as a copy of ``other``, which must.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when neither does; then nothing has changed. Raises
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when it is not in quarantine, and
    :class:`~ckpt_lib.errors.CheckpointExistsError` when the other copy is of a different checkpoint. Killed on the way,
    it is in quarantine or back.
    """
    found = read(folder, checkpoint_id, experiment_name)
    if release_if_whole(folder, checkpoint_id, experiment_name, progress):
        return RepairReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name)
    try:
        _require_loadable_copy(other, checkpoint_id)
        manifest = transfer.restore(folder, checkpoint_id, other, progress)
    except (*UNLOADABLE, CheckpointNotFoundError, IntegrityError) as error:
        other_copy = "there is none" if isinstance(error, CheckpointNotFoundError) else error.message
        raise CorruptCheckpointError(
            f"it stays in quarantine: {found.report.message}. Of the other copy: {other_copy}",
            checkpoint_id=checkpoint_id,
            path=folder.location(),
            damages=found.report.damages,
            hint=_what_is_left_to_do(checkpoint_id, is_backup=is_backup),
        ) from error
    return RepairReport(
        checkpoint_id=checkpoint_id,
        experiment_name=experiment_name,
        damages=found.report.damages,
        method="file",
        chunks_rewritten=len(manifest.payload.chunk_xxh3_128),
        bytes_rewritten=manifest.payload.size_bytes,
    )


def _what_is_left_to_do(checkpoint_id: str, *, is_backup: bool) -> str:
    removal = f"ckpt delete {'--backups ' if is_backup else ''}{checkpoint_id}"
    return (
        "An export may be another copy; `ckpt list` shows older checkpoints, `ckpt list --backups` other backups. "
        f"`{removal}` removes it for good."
    )


def _require_loadable_copy(other: CheckpointFolder, checkpoint_id: str) -> None:
    """Refuse to bring back what would have to be set aside again."""
    with contextlib.suppress(FileNotFoundError):  # which the restore says better
        require_loadable(other, other.read_manifest(checkpoint_id))


def release_if_whole(
    folder: CheckpointFolder, checkpoint_id: str, experiment_name: str, progress: Progress | None = None
) -> bool:
    """Bring a checkpoint back that verifies where it lies; whether it does."""
    manifest = transfer.quarantined_or_none(folder, checkpoint_id)
    entry = folder.payload_entry(manifest) if manifest else None
    if manifest is None or entry is None or not validate(folder, manifest, experiment_name, progress):
        return False
    return commit.release(folder, manifest, version=entry.version)


def remove(folder: CheckpointFolder, checkpoint_id: str) -> int:
    """Remove a checkpoint in quarantine for good; see :func:`ckpt_lib.experiment.commit.remove_quarantined`."""
    names = payload_names(checkpoint_id, transfer.quarantined_or_none(folder, checkpoint_id))
    return commit.remove_quarantined(folder, checkpoint_id, names)


def payload_names(checkpoint_id: str, manifest: Manifest | None) -> list[str]:
    """What a payload is called, as its manifest says or, without one, as the built-in formats do."""
    return [manifest.payload.name] if manifest else [checkpoint_id + suffix for suffix in PAYLOAD_SUFFIXES]


def _examine(
    folder: CheckpointFolder, checkpoint_id: str, experiment_name: str, progress: Progress | None
) -> ValidationReport:
    try:
        return validate(folder, folder.read_manifest(checkpoint_id), experiment_name, progress)
    except CorruptManifestError as error:
        return unreadable_report(error, checkpoint_id, experiment_name)


def _watch(folder: CheckpointFolder, checkpoint_id: str) -> Callable[[], bool]:
    """A question to be asked later: whether manifest and payload are still those of now."""

    def versions() -> list[str | None]:
        entries = folder.store.entries(folder.path)
        return [entry.version for entry in entries if entry.name.partition(".")[0] == checkpoint_id]

    before = versions()
    return lambda: versions() == before


def _record_or_none(folder: CheckpointFolder, checkpoint_id: str) -> _Record | None:
    try:
        return _Record.model_validate_json(folder.read_record(checkpoint_id)[1])
    except ValidationError:
        return None


def _record(report: ValidationReport) -> bytes:
    return _Record(quarantined_at=datetime.now(UTC), report=report).model_dump_json().encode()


def _unknown(checkpoint_id: str, experiment_name: str) -> ValidationReport:
    damage = Damage(
        file=f".{checkpoint_id}.quarantined", kind="unreadable", message="the record of its quarantine cannot be read"
    )
    return ValidationReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name, damages=(damage,))


def _changing(folder: CheckpointFolder, checkpoint_id: str) -> CheckpointError:
    return StoreUnavailableError(
        "the checkpoint was changed again and again while it was examined",
        checkpoint_id=checkpoint_id,
        path=folder.location(),
        hint="Try again when nobody else works on it.",
    )
