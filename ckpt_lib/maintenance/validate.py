"""Whether a checkpoint is valid: its bytes are those that were saved, and they can be loaded without running code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.damage import Damage, missing_file
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.wording import listed
from ckpt_lib.errors import (
    CheckpointError,
    CorruptCheckpointError,
    StoreError,
    UnsafePayloadError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.formats import format_named
from ckpt_lib.stream import Progress, VerifiedFile, find_damaged_chunks, find_damages

TensorRanges = dict[str, list[tuple[int, int]]]

UNLOADABLE = (UnsafePayloadError, CorruptCheckpointError, UnsupportedFormatError)
"""What reading a payload raises that can never be loaded without running code, or not here."""

_NAMED_IN_MESSAGES = 3
_UNKNOWN_TENSORS = "which tensors lie there cannot be told, for the structure of the file is damaged"


class ValidationReport(BaseModel):
    """The outcome of validating one checkpoint; true when its bytes are those that were saved and can be loaded."""

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    experiment_name: str
    size_bytes: int = 0
    sha256: str = ""
    damages: tuple[Damage, ...] = ()

    @property
    def is_valid(self) -> bool:
        return not self.damages

    def __bool__(self) -> bool:
        return self.is_valid

    @property
    def is_unloadable(self) -> bool:
        """Whether its bytes are those that were saved, so that no other copy can help."""
        return any(damage.kind == "unloadable" for damage in self.damages)

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        return "; ".join(damage.message for damage in self.damages) or "intact"


def validate(
    folder: CheckpointFolder,
    manifest: Manifest,
    experiment_name: str,
    progress: Progress | None = None,
    *,
    deep: bool = True,
) -> ValidationReport:
    """Read a checkpoint's payload to its end and compare size and SHA-256, or with ``deep=False`` its chunk digests.

    Then look at its structure: a payload that cannot be loaded without running code is damaged, whatever its digests
    say. Bytes that the disk cannot give back are damage. A store that does not answer or refuses access is an error.
    """
    find = find_damages if deep else find_damaged_chunks

    def find_all(file: BinaryIO) -> list[Damage]:
        return find(file, manifest.payload, progress) or find_unloadable(folder, manifest)

    return examine(folder, manifest, experiment_name, find_all)


def compare(
    folder: CheckpointFolder,
    manifest: Manifest,
    experiment_name: str,
    progress: Progress | None = None,
    *,
    deep: bool = True,
) -> ValidationReport:
    """As :func:`validate`, but of the bytes alone, which say whether a copy is one of this checkpoint."""
    find = find_damages if deep else find_damaged_chunks
    return examine(folder, manifest, experiment_name, lambda file: find(file, manifest.payload, progress))


def find_unloadable(folder: CheckpointFolder, manifest: Manifest) -> list[Damage]:
    """What keeps a payload whose bytes are those that were saved from being loaded; see :func:`require_loadable`."""
    try:
        require_loadable(folder, manifest)
    except UNLOADABLE as error:
        message = f"{manifest.payload.name} cannot be loaded: {error.message}"
        return [Damage(file=manifest.payload.name, kind="unloadable", message=message)]
    return []


def require_loadable(folder: CheckpointFolder, manifest: Manifest) -> None:
    """Raise unless a payload can be loaded without running code. No tensor is read, and no digest is compared.

    Raises :class:`~ckpt_lib.errors.UnsafePayloadError`, :class:`~ckpt_lib.errors.CorruptCheckpointError` for what is
    malformed, :class:`~ckpt_lib.errors.UnsupportedFormatError` where its format is not installed, and what the store
    raises; ``FileNotFoundError`` when there is no payload.
    """
    try:
        stored = format_named(manifest.format)
        with VerifiedFile(folder.store.open_read(folder.payload_path(manifest)), None) as file:
            check_parts(stored.inspect(file), manifest)
    except UNLOADABLE as error:
        error.checkpoint_id = manifest.checkpoint_id
        error.path = folder.payload_location(manifest)
        raise


def check_parts(payload: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise :class:`~ckpt_lib.errors.CorruptCheckpointError` for a payload without the parts that every one has."""
    for name in ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict"):
        found = payload.get(name)
        if not isinstance(found, Mapping) and (found is not None or name == "model_state_dict"):
            reason = f"its {name} is no dict" if name in payload else f"it holds no {name}"
            raise CorruptCheckpointError(f"the payload is malformed: {reason}")
    for name, wanted in (("epoch", manifest.epoch), ("step", manifest.step)):
        if name in payload and payload[name] != wanted:
            got = ascii(payload[name])[:120]
            raise CorruptCheckpointError(f"the payload is malformed: it is of another {name}", expected=wanted, got=got)


def examine(
    folder: CheckpointFolder, manifest: Manifest, experiment_name: str, find: Callable[[BinaryIO], list[Damage]]
) -> ValidationReport:
    """Report what ``find`` makes of a checkpoint's open payload, and whatever keeps it from being opened or read."""
    try:
        with folder.store.open_read(folder.payload_path(manifest)) as file:
            damages = find(file)
    except FileNotFoundError:
        damages = [missing_file(manifest.payload.name)]
    except StoreError as error:
        if not is_unreadable(error):
            raise
        message = f"{manifest.payload.name} cannot be read: {error.message}"
        damages = [Damage(file=manifest.payload.name, kind="unreadable", message=message)]
    return ValidationReport(
        checkpoint_id=manifest.checkpoint_id,
        experiment_name=experiment_name,
        size_bytes=manifest.payload.size_bytes,
        sha256=manifest.payload.sha256,
        damages=tuple(damages),
    )


def with_tensors(report: ValidationReport, manifest: Manifest, *folders: CheckpointFolder) -> ValidationReport:
    """The report with the names of the tensors that its damages hit.

    Where they lie is read from the payload in the first of ``folders`` that can still tell: a damage to the payload's
    own structure may have destroyed that. Then each message says so.
    """
    located = [damage for damage in report.damages if damage.stop > damage.start and damage.kind != "extended"]
    if not located:
        return report
    ranges = next((found for folder in folders if (found := _tensor_ranges(folder, manifest)) is not None), None)
    named = {damage: _named(damage, ranges) for damage in located}
    return report.model_copy(update={"damages": tuple(named.get(damage, damage) for damage in report.damages)})


def _tensor_ranges(folder: CheckpointFolder, manifest: Manifest) -> TensorRanges | None:
    """Name to byte ranges of every tensor, or ``None`` when the payload's structure cannot be read."""
    try:
        if folder.read_manifest(manifest.checkpoint_id).uid != manifest.uid:
            return None
        source = folder.store.open_read(folder.payload_path(manifest))
        with VerifiedFile(source, manifest.payload) as file:
            return format_named(manifest.format).tensor_ranges(file)
    except (CheckpointError, FileNotFoundError):
        return None


def _named(damage: Damage, ranges: TensorRanges | None) -> Damage:
    if ranges is None:
        return damage.model_copy(update={"message": f"{damage.message}; {_UNKNOWN_TENSORS}"})
    hit = tuple(
        name
        for name, spans in ranges.items()
        if any(start < damage.stop and damage.start < stop for start, stop in spans)
    )
    if not hit:
        return damage
    message = f"{damage.message}; it hits {listed(hit, _NAMED_IN_MESSAGES)}"
    return damage.model_copy(update={"message": message, "tensors": hit})


def can_repair(other: ValidationReport | None, damaged: ValidationReport) -> bool:
    """Whether the ``other`` copy has what is ``damaged``: it is intact, or damaged in other places.

    Of one whose manifest cannot be read nothing is known; a repair compares its chunks with the manifest that there is.
    """
    if damaged.is_unloadable or other is None or other.is_valid:
        return other is not None and not damaged.is_unloadable
    if any(damage.kind not in ("altered", "truncated", "extended") for damage in damaged.damages):
        return False
    if all(damage.kind == "manifest" for damage in other.damages):
        return True
    damages = [damage for damage in (*other.damages, *damaged.damages) if damage.kind != "extended"]
    if any(damage.kind not in ("altered", "truncated") for damage in damages):
        return False
    ranges = sorted((damage.start, damage.stop) for damage in damages)
    return all(before[1] <= after[0] for before, after in pairwise(ranges))


def is_unreadable(error: CheckpointError) -> bool:
    """Whether the store failed at just these bytes, as at a bad sector, and not as a whole."""
    return type(error) is StoreError


def unreadable_report(error: CheckpointError, checkpoint_id: str, experiment_name: str) -> ValidationReport:
    """The report of a checkpoint whose manifest cannot be read."""
    damage = Damage(file=f"{checkpoint_id}.json", kind="manifest", message=error.message)
    return ValidationReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name, damages=(damage,))


class KnownVersions:
    """Which file versions this process has seen to be valid, so that it need not read them again.

    A version is what the store tells of a file without reading it. It does not change when bits rot, so this spares
    work after each save and is not asked when someone wants to know.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intact: dict[str, str] = {}
        self._loadable: dict[str, bool] = {}  # by SHA-256: copies share the outcome

    def remember(self, folder: CheckpointFolder, manifest: Manifest, *, is_loadable: bool | None = None) -> None:
        """Note that the payload, as it now lies there, has been written or read, and holds the bytes that were saved.

        ``is_loadable`` is what is known of its structure; when nothing is, :meth:`is_valid` looks at it.
        """
        if entry := folder.payload_entry(manifest):
            with self._lock:
                self._intact[folder.payload_location(manifest)] = entry.version
                if is_loadable is not None:
                    self._loadable[manifest.payload.sha256] = is_loadable

    def is_valid(self, folder: CheckpointFolder, manifest: Manifest) -> bool:
        """Whether the payload has not changed since it was remembered, and can be loaded."""
        entry = folder.payload_entry(manifest)
        with self._lock:
            is_same = entry is not None and self._intact.get(folder.payload_location(manifest)) == entry.version
            is_loadable = self._loadable.get(manifest.payload.sha256)
        if not is_same or is_loadable is not None:
            return is_same and bool(is_loadable)
        found = examine(folder, manifest, manifest.experiment_name, lambda _: find_unloadable(folder, manifest))
        if found or found.is_unloadable:
            self.remember(folder, manifest, is_loadable=found.is_valid)
        return found.is_valid
