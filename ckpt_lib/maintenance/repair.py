"""Repair: make one copy of a checkpoint whole from the sound chunks of both copies.

The chunk table tells which chunks of a file are damaged. Their bytes are read from the other copy, and all others from
this one, into a new file. It takes the place of the damaged one at once, and only if its SHA-256 is that of the saved
file. A crash leaves the file as it was or whole.

Neither copy needs to be whole: as long as no chunk is damaged in both, each can be repaired from the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

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
    StoreError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.files import blocks_of, refuse_original, replace_file
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
from ckpt_lib.store.base import RangeReader
from ckpt_lib.stream import Progress
from ckpt_lib.stream.chunks import altered_chunks, chunk_range

Remedy = Literal["repair", "quarantine"]
"""Which command helps a damaged copy."""


class RepairReport(BaseModel):
    """The damage in one copy of a checkpoint that was repaired; without ``damages`` there was nothing to do."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    damages: tuple[Damage, ...] = ()
    method: Literal["none", "chunks", "file"] = "none"
    chunks_rewritten: int = 0
    """Chunks that came from the other copy."""
    bytes_rewritten: int = 0
    """Bytes that came from the other copy."""

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        if self.method == "none":
            return "intact, nothing to repair"
        how = "replaced by a copy" if self.method == "file" else f"{count_of(self.chunks_rewritten, 'chunk')} rewritten"
        return f"{how} ({self.bytes_rewritten} bytes): " + "; ".join(damage.message for damage in self.damages)


def repair(
    experiment: Experiment, checkpoint_id: str, other: Experiment, progress: Progress | None = None
) -> RepairReport:
    """Make the copy of a checkpoint in ``experiment`` whole from the one in ``other``, and report what was done.

    Damaged files are put together anew from the sound chunks of both copies. Where the manifest is damaged, the whole
    checkpoint is copied, as in a restore. What verifies then, or did already, leaves quarantine. ``other`` is only
    read.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when what is needed is damaged or missing in both copies, or
    when the bytes are those that were saved and cannot be loaded. Raises
    :class:`~ckpt_lib.errors.CheckpointExistsError` when ``other`` holds a different checkpoint of that id,
    :class:`~ckpt_lib.errors.ProtectedCheckpointError` for one that was imported in place, whose files belong to another
    program, and :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted. After any error,
    each file is as it was or whole.
    """
    for _ in range(ATTEMPTS):
        try:
            found = experiment.read_visible(checkpoint_id)
        except CorruptManifestError as error:
            return _copy_back(experiment, unreadable_report(error, checkpoint_id, experiment.name), other, progress)
        manifest = found.manifest
        report = _Repair(experiment, manifest, other, progress).run()
        if report and (manifest.quarantined is None or edits.release(experiment, found)):
            return report
    raise too_busy(experiment, "the checkpoint while it was repaired", checkpoint_id)


def remedy(
    report: ValidationReport,
    other: Experiment,
    other_report: ValidationReport | None = None,
    *,
    is_in_place: bool = False,
) -> Remedy:
    """Return what helps a damaged copy; the one in ``other`` is read, unless its report is known.

    ``"quarantine"`` where nothing can bring the bytes back, and for one that was imported in place, whose files are
    never written over. Of a checkpoint whose manifest cannot be read, only a repair can tell. Raises
    :class:`~ckpt_lib.errors.UnsupportedFormatError` for one whose bytes are sound.
    """
    if report.has_unknown_format:
        raise UnsupportedFormatError(
            report.message,
            checkpoint_id=report.checkpoint_id,
            hint="Install the package that provides its format.",
        )
    if any(damage.kind == "manifest" for damage in report.damages):
        return "repair"
    if report.is_unloadable or is_in_place:
        return "quarantine"
    if other_report is None:
        try:
            other_report = compare(other, other.get(report.checkpoint_id), deep=False)
        except CorruptManifestError as error:
            other_report = unreadable_report(error, report.checkpoint_id, report.experiment_name)
        except CheckpointNotFoundError:
            return "quarantine"
    return "repair" if can_repair(other_report, report) else "quarantine"


def _copy_back(
    experiment: Experiment, damaged: ValidationReport, other: Experiment, progress: Progress | None
) -> RepairReport:
    """Copy a checkpoint whose manifest is damaged, which the other copy's SHA-256 must allow."""
    try:
        manifest = transfer.restore(experiment, damaged.checkpoint_id, other, progress)
    except (CheckpointNotFoundError, IntegrityError) as error:
        reason = "there is none" if isinstance(error, CheckpointNotFoundError) else error.message
        raise _lost(experiment, damaged.checkpoint_id, damaged.damages, other, reason) from error
    return RepairReport(
        checkpoint_id=damaged.checkpoint_id,
        experiment_name=experiment.name,
        damages=damaged.damages,
        method="file",
        chunks_rewritten=sum(len(file.chunk_xxh3_128) for file in manifest.files),
        bytes_rewritten=manifest.size_bytes,
    )


@dataclass(frozen=True)
class _Part:
    """One damaged file of a payload, what it is called in the other copy, and which of its chunks come from there.

    ``None`` stands for the whole file, where the chunk table knows nothing of the damage, and only SHA-256 does.
    """

    file: FileEntry
    other: FileEntry
    numbers: Collection[int] | None


@dataclass(frozen=True)
class _Repair:
    """One repair of a checkpoint in ``experiment`` from what lies in ``other``."""

    experiment: Experiment
    manifest: Manifest
    other: Experiment
    progress: Progress | None

    def run(self) -> RepairReport | None:
        """Return ``None`` when the checkpoint was changed meanwhile."""
        found = compare(self.experiment, self.manifest, self.progress, deep=False)
        names_chunks = not found
        if found:  # SHA-256 is what is trusted, should the table ever disagree with it
            found = validate(self.experiment, self.manifest)
        if found:
            return RepairReport(checkpoint_id=self.manifest.checkpoint_id, experiment_name=self.experiment.name)
        if found.is_unloadable:
            raise self._unloadable(found)
        if not self.experiment.is_complete(self.manifest):
            self.experiment.get(self.manifest.checkpoint_id)  # raises when it was deleted, which is no damage
        refuse_original(self.experiment, self.manifest)
        parts = self._parts(found, names_chunks=names_chunks)
        for part in parts:
            if not replace_file(self.experiment, self.manifest, part.file, self._chunks(part)):
                return None
        self._require_loadable(found)
        return self._report(found, parts)

    def _require_loadable(self, found: ValidationReport) -> None:
        """Refuse to bring back from quarantine what would have to be set aside again."""
        if self.manifest.quarantined is not None and not (now := validate(self.experiment, self.manifest)):
            if now.is_unloadable:
                raise self._unloadable(now)
            raise self._lost(now.damages, f"it was damaged again after its repair: {found.message}")

    def _unloadable(self, found: ValidationReport) -> CorruptCheckpointError:
        checkpoint_id = self.manifest.checkpoint_id
        return CorruptCheckpointError(
            f"the checkpoint holds the bytes that were saved, so no copy can help: {found.message}",
            checkpoint_id=checkpoint_id,
            path=self.experiment.location(self.manifest.payload_name),
            damages=found.damages,
            hint=f"`ckpt quarantine {checkpoint_id}` sets it aside; a backup, with --backups.",
        )

    def _parts(self, found: ValidationReport, *, names_chunks: bool) -> list[_Part]:
        """Look which chunks are damaged here, and whether all of them are sound in the other copy; nothing is written.

        ``names_chunks`` says that ``found`` comes from the chunk table, so that altered chunks need no second reading.
        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` with all that is damaged in both.
        """
        files = self._other_files()
        if files is None:
            raise self._lost(found.damages, "there is none")
        if not files:
            raise self._lost(found.damages, "it holds other bytes, because one of the two was thinned")
        parts, lacking = [], []
        for file, twin in zip(self.manifest.files, files, strict=True):
            damages = [damage for damage in found.damages if damage.file == file.name]
            kinds = {damage.kind for damage in damages}
            if not kinds:
                continue
            if names_chunks and kinds == {"altered"}:
                numbers = _named_chunks(file, damages)
            else:
                numbers = _differing(self.experiment, file, file, range(len(file.chunk_xxh3_128)))
            if not numbers and not kinds <= {"extended", "missing"}:
                parts.append(_Part(file, twin, None))
                continue
            lacking += altered_chunks(file, _differing(self.other, twin, file, numbers))
            parts.append(_Part(file, twin, frozenset(numbers)))
        if lacking:
            raise self._lost(lacking, "these bytes are damaged or missing there too", in_both=True)
        return parts

    def _other_files(self) -> Sequence[FileEntry] | None:
        """Return the files of the other copy, of one that was thinned those in its trash; ``None`` where there is none.

        None of them are returned where it holds other bytes, because one of the two was thinned.
        Refuses another checkpoint of the same id. The chunks of a copy with a damaged manifest speak for themselves.
        """
        try:
            twin = self.other.read(self.manifest.checkpoint_id).record
        except CorruptManifestError:
            return self.manifest.files
        if twin is not None and twin.uid != self.manifest.uid:
            raise CheckpointExistsError(
                "the other copy is of a different checkpoint with that id",
                checkpoint_id=self.manifest.checkpoint_id,
                path=self.other.location(),
                expected=f"uid {self.manifest.uid}",
                got=f"uid {twin.uid}",
                hint=f"Nothing was repaired; {self.experiment.location(self.manifest.payload_name)} is as it was.",
            )
        if not isinstance(twin, Manifest):
            return None
        payloads = [twin.files, *(item.files for item in twin.obsolete if not item.removing)]
        return next((files for files in payloads if _content(files) == _content(self.manifest.files)), ())

    def _chunks(self, part: _Part) -> Iterator[bytes]:
        """Yield all chunks of a file, each verified: what was sound a moment ago is not written unseen."""
        with ExitStack() as stack:
            here = _open(self.experiment, part.file, stack)
            there = _open(self.other, part.other, stack)
            if part.numbers is None:
                if there is not None:  # else SHA-256 refuses what is written
                    yield from blocks_of(there)
                return
            for number in range(len(part.file.chunk_xxh3_128)):
                own = None if number in part.numbers else _sound_chunk(here, part.file, number)
                chunk = _sound_chunk(there, part.file, number) if own is None else own
                if chunk is None:
                    raise self._lost(altered_chunks(part.file, [number]), "it was damaged while it was read")
                yield chunk

    def _lost(self, damages: Sequence[Damage], reason: str, *, in_both: bool = False) -> CorruptCheckpointError:
        return _lost(self.experiment, self.manifest.checkpoint_id, damages, self.other, reason, in_both=in_both)

    def _report(self, found: ValidationReport, parts: Sequence[_Part]) -> RepairReport:
        numbers = [(part.file, set(range(len(part.file.chunk_xxh3_128)))) for part in parts if part.numbers is None]
        numbers += [(part.file, set(part.numbers)) for part in parts if part.numbers is not None]
        ranges = [chunk_range(file, number) for file, found_numbers in numbers for number in found_numbers]
        is_whole_copy = all(len(found_numbers) == len(file.chunk_xxh3_128) for file, found_numbers in numbers)
        return RepairReport(
            checkpoint_id=found.checkpoint_id,
            experiment_name=found.experiment_name,
            damages=with_tensors(found, self.manifest, self.experiment, verify=False).damages,
            method="file" if is_whole_copy and ranges else "chunks",
            chunks_rewritten=len(ranges),
            bytes_rewritten=sum(stop - start for start, stop in ranges),
        )


def _lost(
    experiment: Experiment,
    checkpoint_id: str,
    damages: Sequence[Damage],
    other: Experiment,
    reason: str,
    *,
    in_both: bool = False,
) -> CorruptCheckpointError:
    what = "; ".join(damage.message for damage in damages)
    return CorruptCheckpointError(
        f"the checkpoint cannot be repaired: damaged {'in both copies' if in_both else 'here'}: {what}. "
        f"Of the other copy: {reason}",
        checkpoint_id=checkpoint_id,
        path=experiment.location(),
        damages=list(damages),
        hint=f"Nothing was written. The other copy was looked for in {other.location()}. An export may be a third one; "
        "`ckpt list` shows older checkpoints, `ckpt list --backups` other backups.",
    )


def _content(files: Sequence[FileEntry]) -> list[tuple[str, str]]:
    return [(file.part, file.sha256) for file in files]


def _open(experiment: Experiment, file: FileEntry, stack: ExitStack) -> RangeReader | None:
    """Open a file until ``stack`` closes; ``None`` when it is missing or cannot be read."""
    try:
        return stack.enter_context(experiment.store.open_read(experiment.key(file.name)))
    except FileNotFoundError:
        return None
    except StoreError as error:
        if not is_unreadable(error):
            raise
        return None


def _named_chunks(file: FileEntry, damages: Sequence[Damage]) -> list[int]:
    """Return the chunks of a file in which these damages lie."""
    numbers = range(len(file.chunk_xxh3_128))
    return [number for number in numbers if any(_overlap(chunk_range(file, number), damage) for damage in damages)]


def _overlap(chunk: tuple[int, int], damage: Damage) -> bool:
    start, stop = chunk
    return damage.start < stop and start < damage.stop


def _differing(experiment: Experiment, stored: FileEntry, file: FileEntry, numbers: Sequence[int]) -> list[int]:
    """Return those of a file's chunks that a copy, which calls it ``stored``, does not have as they were saved."""
    with ExitStack() as stack:
        reader = _open(experiment, stored, stack)
        return [number for number in numbers if _sound_chunk(reader, file, number) is None]


def _sound_chunk(reader: RangeReader | None, file: FileEntry, number: int) -> bytes | None:
    """Return a chunk that can be read and agrees with the table."""
    if reader is None:
        return None
    try:
        chunk = reader.read_at(*chunk_range(file, number))
    except FileNotFoundError:
        return None
    except StoreError as error:
        if not is_unreadable(error):
            raise
        return None
    return chunk if xxhash.xxh3_128_hexdigest(chunk) == file.chunk_xxh3_128[number] else None
