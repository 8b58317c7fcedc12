"""Repair: bring the damaged bytes of one copy of a checkpoint back from the other copy.

The chunk table tells which chunks of a payload are damaged. Only these are read from the other copy, and none is
written before it agrees with the table. They are written **in place**: the cost grows with the damage and not with the
file, as that of a new file would. That is safe because a write touches nothing but chunks that are damaged already: a
crash leaves the sound ones as they are and the damaged ones damaged or sound, and the next repair goes on from there.
Whoever has the file open or mapped has verified the chunks that he uses, and these do not change. Hard links to the
file see it repaired.

Neither copy needs to be whole: as long as no chunk is damaged in both, each can be repaired from the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

import xxhash
from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    IntegrityError,
    StorageFullError,
    StoreError,
    StoreUnavailableError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.layout import CheckpointFolder, Mark
from ckpt_lib.maintenance import transfer
from ckpt_lib.maintenance.validate import (
    ValidationReport,
    can_repair,
    compare,
    is_unreadable,
    unreadable_report,
    validate,
    with_tensors,
)
from ckpt_lib.stream import BLOCK_SIZE_BYTES, Progress
from ckpt_lib.stream.chunks import altered_chunks, chunk_range, has_chunk_table

Remedy = Literal["repair", "doctor", "quarantine"]
"""Which command helps a damaged copy."""

ATTEMPTS = 3
CHUNKS_PER_LOCK = 32
"""How many are rewritten before others get their turn at the folder's lock."""


class RepairReport(BaseModel):
    """What was damaged in one copy of a checkpoint and is whole again; without ``damages`` there was nothing to do."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    damages: tuple[Damage, ...] = ()
    method: Literal["none", "chunks", "file"] = "none"
    chunks_rewritten: int = 0
    bytes_rewritten: int = 0

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        if self.method == "none":
            return "intact, nothing to repair"
        how = "replaced by a copy" if self.method == "file" else f"{count_of(self.chunks_rewritten, 'chunk')} rewritten"
        return f"{how} ({self.bytes_rewritten} bytes): " + "; ".join(damage.message for damage in self.damages)


def repair(
    folder: CheckpointFolder,
    checkpoint_id: str,
    other: CheckpointFolder,
    experiment_name: str,
    progress: Progress | None = None,
) -> RepairReport:
    """Make the copy of a checkpoint in ``folder`` whole from the one in ``other``, and report what was done.

    Damaged chunks are rewritten in place, and read back from the disk. Where that cannot be done (payload or manifest
    are missing or unreadable, the disk refuses the bytes, the chunk table says nothing of the damage), the whole file
    is copied, as in a restore. ``other`` is only read.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when what is needed is damaged or missing in both copies, or
    when the bytes are those that were saved and cannot be loaded;
    nothing was written then, unless ``other`` went bad meanwhile. Raises
    :class:`~ckpt_lib.errors.CheckpointExistsError` when ``other`` holds a different checkpoint of that id, and
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted meanwhile. A crash leaves sound
    bytes as they were, and the next call does the rest.
    """
    task = _Repair(folder, other, experiment_name, progress)
    for _ in range(ATTEMPTS):
        try:
            manifest = folder.read_manifest(checkpoint_id)
        except CorruptManifestError as error:
            return task.by_copy(unreadable_report(error, checkpoint_id, experiment_name))
        if report := task.of_payload(manifest):
            return report
    raise StoreUnavailableError(
        "the checkpoint was changed again and again while it was repaired",
        checkpoint_id=checkpoint_id,
        path=folder.location(),
        hint="Try again when nobody else works on it.",
    )


def remedy(
    folder: CheckpointFolder,
    other: CheckpointFolder,
    report: ValidationReport,
    other_report: ValidationReport | None = None,
) -> Remedy:
    """Return what helps a damaged copy in ``folder``; the ``other`` one is read, unless its report is known.

    ``"doctor"`` where the other copy has lost its manifest, which this one still has; ``"quarantine"`` where nothing
    can bring the bytes back.
    """
    checkpoint_id = report.checkpoint_id
    if report.is_unloadable:
        return "quarantine"
    if other_report is None:
        try:
            manifest = other.read_manifest(checkpoint_id)
            other_report = compare(other, manifest, report.experiment_name, deep=False)
        except CorruptManifestError as error:
            other_report = unreadable_report(error, checkpoint_id, report.experiment_name)
        except CheckpointNotFoundError:
            has_manifest = all(damage.kind != "manifest" for damage in report.damages)
            return "doctor" if has_manifest and _has_payload(folder, other, checkpoint_id) else "quarantine"
    return "repair" if can_repair(other_report, report) else "quarantine"


def _has_payload(folder: CheckpointFolder, other: CheckpointFolder, checkpoint_id: str) -> bool:
    """Whether the payload lies in ``other`` without a manifest, and not because it was deleted or set aside."""
    is_marked = any(other.store.stat(other.marker_path(checkpoint_id, mark)) for mark in get_args(Mark))
    return not is_marked and other.payload_entry(folder.read_manifest(checkpoint_id)) is not None


@dataclass(frozen=True)
class _Repair:
    """One repair of what lies in ``folder`` from what lies in ``other``."""

    folder: CheckpointFolder
    other: CheckpointFolder
    experiment_name: str
    progress: Progress | None

    def of_payload(self, manifest: Manifest) -> RepairReport | None:
        """``None`` when someone else replaced or repaired the file meanwhile."""
        entry = self.folder.payload_entry(manifest)
        found = compare(self.folder, manifest, self.experiment_name, self.progress, deep=False)
        if found:  # SHA-256 is what is trusted, should the table ever disagree with it
            found = validate(self.folder, manifest, self.experiment_name)
        if found:
            return RepairReport(checkpoint_id=manifest.checkpoint_id, experiment_name=self.experiment_name)
        if found.is_unloadable:
            raise CorruptCheckpointError(
                f"its bytes are those that were saved, and no copy can help: {found.message}",
                checkpoint_id=manifest.checkpoint_id,
                path=self.folder.payload_location(manifest),
                damages=found.damages,
                hint=f"`ckpt quarantine {manifest.checkpoint_id}` sets it aside; a backup, with --backups.",
            )
        _check_same(self.folder, manifest, self.other)
        numbers = _damaged_chunks(self.folder, manifest, found)
        if entry is None:
            self.folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile: that is no damage
        if self.folder.payload_entry(manifest) != entry:
            return None
        if entry is None or numbers is None:
            return self.by_copy(found)
        return self.by_chunks(manifest, found, numbers, entry.version)

    def by_chunks(
        self, manifest: Manifest, found: ValidationReport, numbers: Sequence[int], version: str
    ) -> RepairReport | None:
        """Rewrite damaged chunks; ``None`` when the file is not this ``version`` any more."""
        if lacking := _differing(self.other, manifest, numbers):
            return self.by_copy(found, altered_chunks(manifest.payload, lacking))
        is_mended = self._mend(manifest, numbers, version)
        if is_mended is None:
            return None
        if not is_mended:
            return self.by_copy(found)
        return _report(with_tensors(found, manifest, self.folder), manifest.payload, "chunks", numbers)

    def _mend(self, manifest: Manifest, numbers: Sequence[int], version: str) -> bool | None:
        """Whether the chunks are sound now, on the disk, or ``None`` when the file has been exchanged."""
        try:
            with self.other.store.open_read(self.other.payload_path(manifest)) as source:
                for first in range(0, max(1, len(numbers)), CHUNKS_PER_LOCK):
                    pieces = _pieces(source, manifest, numbers[first : first + CHUNKS_PER_LOCK])
                    mended = commit.mend(self.folder, manifest, pieces, version=version)
                    if mended is None:
                        return None
                    version = mended
        except (StoreUnavailableError, StorageFullError):
            raise
        except (StoreError, FileNotFoundError):  # a sector that cannot be written, a file that is not ours to write to
            return False
        return self.folder.is_complete(manifest) and not _differing(self.folder, manifest, numbers)

    def by_copy(self, found: ValidationReport, lacking: Sequence[Damage] = ()) -> RepairReport:
        """Copy the whole file, which the other copy's SHA-256 must allow. ``lacking`` is damaged in both."""
        try:
            manifest = transfer.restore(self.folder, found.checkpoint_id, self.other, self.progress)
        except CheckpointNotFoundError as error:
            raise self._lost(found, lacking, "there is none") from error
        except (IntegrityError, StoreError) as error:
            if isinstance(error, StoreError) and not (is_unreadable(error) and self._is_of_other(error, found)):
                raise
            raise self._lost(found, lacking, error.message) from error
        numbers = range(len(manifest.payload.chunk_xxh3_128))
        return _report(with_tensors(found, manifest, self.folder), manifest.payload, "file", numbers)

    def _is_of_other(self, error: StoreError, found: ValidationReport) -> bool:
        """Whether it was the other copy that could not be read, and not this one that could not be written."""
        return error.path is not None and error.path.startswith(self.other.location(found.checkpoint_id))

    def _lost(self, found: ValidationReport, lacking: Sequence[Damage], reason: str) -> CorruptCheckpointError:
        damages = list(lacking or found.damages)
        what = "; ".join(damage.message for damage in damages)
        return CorruptCheckpointError(
            f"it cannot be repaired: damaged {'in both copies' if lacking else 'here'}: {what}. "
            f"Of the other copy: {reason}",
            checkpoint_id=found.checkpoint_id,
            path=self.folder.location(),
            damages=damages,
            hint=f"Nothing was written. The other copy was looked for in {self.other.location()}"
            f"{self._whereabouts(found)}. An export may be a third one; `ckpt list` shows older checkpoints, "
            "`ckpt list --backups` other backups.",
        )

    def _whereabouts(self, found: ValidationReport) -> str:
        """Where the other copy is, if it was deleted or set aside."""
        if self.other.store.stat(self.other.marker_path(found.checkpoint_id, "deleted")):
            return f", where it is in the trash: `ckpt undelete {found.checkpoint_id}`"
        if self.other.store.stat(self.other.marker_path(found.checkpoint_id, "quarantined")):
            return ", where it was set aside: `ckpt quarantine`"
        return ""


def _report(
    found: ValidationReport, entry: FileEntry, method: Literal["chunks", "file"], numbers: Sequence[int]
) -> RepairReport:
    ranges = [chunk_range(entry, number) for number in numbers]
    return RepairReport(
        checkpoint_id=found.checkpoint_id,
        experiment_name=found.experiment_name,
        damages=found.damages,
        method=method,
        chunks_rewritten=len(numbers),
        bytes_rewritten=entry.size_bytes if method == "file" else sum(stop - start for start, stop in ranges),
    )


def _check_same(folder: CheckpointFolder, manifest: Manifest, other: CheckpointFolder) -> None:
    """Refuse another checkpoint of the same id; the chunks of a copy with a damaged manifest speak for themselves."""
    try:
        twin = other.read_manifest(manifest.checkpoint_id)
    except (CheckpointNotFoundError, CorruptManifestError):
        return
    if twin.uid != manifest.uid:
        raise CheckpointExistsError(
            "the other copy is of a different checkpoint with that id",
            checkpoint_id=manifest.checkpoint_id,
            path=other.location(),
            expected=f"uid {manifest.uid}",
            got=f"uid {twin.uid}",
            hint=f"Nothing was repaired; {folder.payload_location(manifest)} is as it was.",
        )


def _damaged_chunks(folder: CheckpointFolder, manifest: Manifest, found: ValidationReport) -> list[int] | None:
    """The chunks to rewrite, none when the file is only too long; ``None`` when that would not make it whole."""
    entry = manifest.payload
    kinds = {damage.kind for damage in found.damages}
    if not has_chunk_table(entry) or not kinds <= {"altered", "truncated", "extended"}:
        return None
    size, last = entry.chunk_size_bytes, len(entry.chunk_xxh3_128) - 1
    touched: set[int] = set()
    for damage in found.damages:
        if damage.kind == "extended":  # the chunk in which it should have ended was not looked at
            touched |= {last} if last >= 0 else set()
        else:
            touched.update(range(damage.start // size, min((damage.stop - 1) // size, last) + 1))
    numbers = _differing(folder, manifest, sorted(touched))
    return numbers if numbers or "extended" in kinds else None


def _differing(folder: CheckpointFolder, manifest: Manifest, numbers: Sequence[int]) -> list[int]:
    """Those of the chunks that a copy does not have as they were saved."""
    buffer = memoryview(bytearray(BLOCK_SIZE_BYTES))
    try:
        with folder.store.open_read(folder.payload_path(manifest)) as file:
            return [number for number in numbers if not _is_sound(file, manifest.payload, number, buffer)]
    except FileNotFoundError:
        return list(numbers)
    except StoreError as error:
        if not is_unreadable(error):
            raise
        return list(numbers)


def _is_sound(file: BinaryIO, entry: FileEntry, number: int, buffer: memoryview) -> bool:
    """Whether a chunk can be read and agrees with the table; it is left in ``buffer`` if that has room for it."""
    start, stop = chunk_range(entry, number)
    digest, filled = xxhash.xxh3_128(), 0
    try:
        file.seek(start)
        while start < stop:
            target = buffer[filled : filled + stop - start]
            count = file.readinto(target)  # type: ignore[attr-defined]  # every binary file has it
            if not count:
                return False
            digest.update(target[:count])
            start += count
            filled = (filled + count) % len(buffer)
    except StoreError as error:
        if not is_unreadable(error):
            raise
        return False
    return digest.hexdigest() == entry.chunk_xxh3_128[number]


def _pieces(source: BinaryIO, manifest: Manifest, numbers: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
    """Chunks with their offsets, each verified once more: what was sound a moment ago is not written unseen."""
    entry = manifest.payload
    buffer = memoryview(bytearray(min(entry.chunk_size_bytes, entry.size_bytes)))  # each is written before the next
    for number in numbers:
        if not _is_sound(source, entry, number, buffer):
            raise CorruptCheckpointError(
                "the other copy was damaged while it was read",
                checkpoint_id=manifest.checkpoint_id,
                damages=altered_chunks(entry, [number]),
            )
        start, stop = chunk_range(entry, number)
        yield start, buffer[: stop - start]
