"""Validation: a checkpoint's bytes are those that were saved, and can be loaded without running code."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core import html
from ckpt_lib.core.damage import Damage, missing_file
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY
from ckpt_lib.core.wording import listed, shown, size_text
from ckpt_lib.errors import (
    CheckpointError,
    CorruptCheckpointError,
    StoreError,
    UnsafePayloadError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import payload_version
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.experiment.stored_payload import StoredPayload, format_of
from ckpt_lib.stream import Progress, find_damaged_chunks, find_damages

TensorRanges = dict[str, list[tuple[int, int]]]
Find = Callable[[BinaryIO, FileEntry], list[Damage]]

UNLOADABLE = (UnsafePayloadError, CorruptCheckpointError, UnsupportedFormatError)
"""What reading a payload raises that can never be loaded without running code, or not here."""

_OF_SOUND_BYTES = {"unloadable", "unknown format"}
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
        """True when its bytes are those that were saved, so that no other copy can help."""
        return any(damage.kind in _OF_SOUND_BYTES for damage in self.damages)

    @property
    def has_unknown_format(self) -> bool:
        """True when its bytes are those that were saved, and no installed format reads them: nothing is damaged."""
        return any(damage.kind == "unknown format" for damage in self.damages)

    @property
    def message(self) -> str:
        """One line for a table or a log."""
        return "; ".join(damage.message for damage in self.damages) or "intact"

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        yield "checkpoint_id", self.checkpoint_id
        yield "is_valid", self.is_valid
        yield "message", self.message

    def _repr_html_(self) -> str:
        rows = [(item.kind, item.file, item.start, item.stop, item.message, item.tensors) for item in self.damages]
        header = ("damage", "file", "from byte", "to", "what", "tensors")
        detail = f"{'intact' if self else 'damaged'}, {size_text(self.size_bytes)}"
        return html.block(self.checkpoint_id, html.table(header, rows, numeric=("from byte", "to")), detail=detail)


def validate(
    experiment: Experiment, manifest: Manifest, progress: Progress | None = None, *, deep: bool = True
) -> ValidationReport:
    """Read a checkpoint's files to their end and compare size and SHA-256, or with ``deep=False`` the chunk digests.

    Then look at its structure: a payload that cannot be loaded without running code is damaged, whatever its digests
    say. Bytes that the disk cannot give back are damage. A store that does not answer or refuses access is an error.
    """
    report = compare(experiment, manifest, progress, deep=deep)
    return report.model_copy(update={"damages": tuple(find_unloadable(experiment, manifest))}) if report else report


def compare(
    experiment: Experiment, manifest: Manifest, progress: Progress | None = None, *, deep: bool = True
) -> ValidationReport:
    """As :func:`validate`, but of the bytes alone, which say whether a copy is one of this checkpoint."""
    find = find_damages if deep else find_damaged_chunks
    return examine(experiment, manifest, lambda file, entry: find(file, entry, progress))


def find_unloadable(experiment: Experiment, manifest: Manifest) -> list[Damage]:
    """Return what keeps a payload of sound bytes from being loaded; see :func:`require_loadable`."""
    try:
        require_loadable(experiment, manifest)
    except FileNotFoundError as error:
        return [missing_file(str(error.filename))]
    except (StoreError, *UNLOADABLE) as error:
        return [_damage_of(manifest.payload_name, error)]
    return []


def require_loadable(experiment: Experiment, manifest: Manifest) -> None:
    """Raise unless a payload can be loaded without running code. No tensor is read, and no digest is compared.

    Raises
    :class:`~ckpt_lib.errors.UnsafePayloadError`, :class:`~ckpt_lib.errors.CorruptCheckpointError` for what is
    malformed, :class:`~ckpt_lib.errors.UnsupportedFormatError` where its format is not installed, and what the store
    raises; ``FileNotFoundError``, with its name, when a file is missing.
    """
    try:
        stored = format_of(manifest)
        with StoredPayload(experiment, manifest.files, verify=False) as source:
            check_parts(stored.inspect(source), manifest)
    except UNLOADABLE as error:
        error.checkpoint_id = manifest.checkpoint_id
        error.path = experiment.location(manifest.payload_name)
        raise


def check_parts(payload: Mapping[str, Any], manifest: Manifest) -> None:
    """Raise :class:`~ckpt_lib.errors.CorruptCheckpointError` for a payload without the parts that every one has."""
    for name in (MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY):
        found = payload.get(name)
        if not isinstance(found, Mapping) and (found is not None or name == MODEL_KEY):
            reason = f"its {name} is no dict" if name in payload else f"it holds no {name}"
            raise CorruptCheckpointError(f"the payload is malformed: {reason}")
    for name, wanted in (("epoch", manifest.epoch), ("step", manifest.step)):
        if name in payload and payload[name] != wanted:
            got = shown(payload[name])
            raise CorruptCheckpointError(f"the payload is malformed: it is of another {name}", expected=wanted, got=got)


def examine(experiment: Experiment, manifest: Manifest, find: Find) -> ValidationReport:
    """Report what ``find`` makes of each file of a payload, and whatever keeps one from being opened or read."""
    damages = [damage for entry in manifest.files for damage in _examine_file(experiment, entry, find)]
    return ValidationReport(
        checkpoint_id=manifest.checkpoint_id,
        experiment_name=experiment.name,
        size_bytes=manifest.size_bytes,
        sha256=manifest.sha256,
        damages=tuple(damages),
    )


def _examine_file(experiment: Experiment, entry: FileEntry, find: Find) -> list[Damage]:
    try:
        with open_file(experiment, entry.name) as file:
            return find(file, entry)
    except FileNotFoundError:
        return [missing_file(entry.name)]
    except StoreError as error:
        return [_damage_of(entry.name, error)]


def _damage_of(name: str, error: CheckpointError) -> Damage:
    """Return what an error says of a file; raise it again when it says nothing, as that of a store that is away."""
    if isinstance(error, UnsupportedFormatError):
        message = f"{name} is as it was saved, and cannot be loaded here: {error.message}"
        return Damage(file=name, kind="unknown format", message=message)
    if isinstance(error, UNLOADABLE):
        return Damage(file=name, kind="unloadable", message=f"{name} cannot be loaded: {error.message}")
    if is_unreadable(error):
        return Damage(file=name, kind="unreadable", message=f"{name} cannot be read: {error.message}")
    raise error


def with_tensors(
    report: ValidationReport, manifest: Manifest, *experiments: Experiment, verify: bool = True
) -> ValidationReport:
    """Return the report with the names of the tensors that its damages hit.

    Where they lie in a file is read from the payload in the first of ``experiments`` that can still tell: a damage to
    the payload's own structure may have destroyed that. Then each message says so. ``verify=False`` is for a payload
    that was verified a moment ago: looking at each record's header would read nearly all of it again.
    """
    located = [damage for damage in report.damages if damage.stop > damage.start and damage.kind != "extended"]
    parts = {file.name: file.part for file in manifest.files}
    files = {damage.file for damage in located}
    ranges = {name: _first_ranges(parts[name], manifest, experiments, verify=verify) for name in files}
    named = {damage: _named(damage, ranges[damage.file]) for damage in located}
    return report.model_copy(update={"damages": tuple(named.get(damage, damage) for damage in report.damages)})


def _first_ranges(
    part: str, manifest: Manifest, experiments: Sequence[Experiment], *, verify: bool
) -> TensorRanges | None:
    found = (_tensor_ranges(experiment, manifest, part, verify=verify) for experiment in experiments)
    return next((ranges for ranges in found if ranges is not None), None)


def _tensor_ranges(experiment: Experiment, manifest: Manifest, part: str, *, verify: bool) -> TensorRanges | None:
    """Map each tensor's name to its byte ranges in a file; ``None`` when the payload's structure cannot be read."""
    try:
        copy = experiment.get(manifest.checkpoint_id)
        if copy.uid != manifest.uid:
            return None
        with StoredPayload(experiment, copy.files, verify=verify) as source:
            return format_of(copy).tensor_ranges(source, part)
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
    """Tell whether the ``other`` copy has what is ``damaged``: it is intact, or damaged in other places.

    Of one whose manifest cannot be read nothing is known; a repair compares its chunks with the manifest that there is.
    """
    if other is not None and other.sha256 and damaged.sha256 and other.sha256 != damaged.sha256:
        return False  # one of the two was thinned
    if damaged.is_unloadable or other is None or other.is_valid:
        return other is not None and not damaged.is_unloadable
    if other.is_unloadable or any(damage.kind == "manifest" for damage in damaged.damages):
        return False
    damages = [damage for damage in (*other.damages, *damaged.damages) if damage.kind not in ("extended", "manifest")]
    ranges = sorted(_lost_range(damage) for damage in damages)
    return all(before[0] != after[0] or before[2] <= after[1] for before, after in pairwise(ranges))


def _lost_range(damage: Damage) -> tuple[str, float, float]:
    """Return which part of the payload, and which bytes of it, cannot be used. Copies have the same parts."""
    is_located = damage.kind in ("altered", "truncated")
    part = damage.file.partition("/")[2]
    return (part, damage.start, damage.stop) if is_located else (part, 0, math.inf)


def is_unreadable(error: CheckpointError) -> bool:
    """Tell whether the store failed at just these bytes, as at a bad sector, and not as a whole."""
    return type(error) is StoreError


def unreadable_report(error: CheckpointError, checkpoint_id: str, experiment_name: str) -> ValidationReport:
    """Return the report of a checkpoint whose manifest cannot be read."""
    damage = Damage(file=f"{checkpoint_id}.json", kind="manifest", message=error.message)
    return ValidationReport(checkpoint_id=checkpoint_id, experiment_name=experiment_name, damages=(damage,))


class KnownVersions:
    """The file versions that this process has seen to be valid, so that it need not read them again.

    A version is what the store tells of a file without reading it. It does not change when bits rot, so this spares
    work after each save and is not asked when someone wants to know.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intact: dict[str, str] = {}
        self._loadable: dict[tuple[str, ...], bool] = {}  # by SHA-256: copies share the outcome

    def remember(self, experiment: Experiment, manifest: Manifest, *, is_loadable: bool | None = None) -> None:
        """Note that the payload, as it now lies there, has been written or read, and holds the bytes that were saved.

        ``is_loadable`` is what is known of its structure; when nothing is, :meth:`is_valid` looks at it.
        """
        if version := payload_version(experiment, manifest):
            with self._lock:
                self._intact[experiment.location(manifest.payload_name)] = version
                if is_loadable is not None:
                    self._loadable[_content(manifest)] = is_loadable

    def is_valid(self, experiment: Experiment, manifest: Manifest) -> bool:
        """Tell whether the payload has not changed since it was remembered, and can be loaded."""
        version = payload_version(experiment, manifest)
        with self._lock:
            is_same = version is not None and self._intact.get(experiment.location(manifest.payload_name)) == version
            is_loadable = self._loadable.get(_content(manifest))
        if not is_same or is_loadable is not None:
            return is_same and bool(is_loadable)
        damages = find_unloadable(experiment, manifest)
        if all(damage.kind in _OF_SOUND_BYTES for damage in damages):
            self.remember(experiment, manifest, is_loadable=not damages)
        return not damages

    def verify(self, experiment: Experiment, manifest: Manifest) -> bool:
        """As :meth:`is_valid`, and read what is not known to be valid."""
        if self.is_valid(experiment, manifest):
            return True
        report = validate(experiment, manifest)
        if report or report.is_unloadable:
            self.remember(experiment, manifest, is_loadable=report.is_valid)
        return report.is_valid


def _content(manifest: Manifest) -> tuple[str, ...]:
    return tuple(file.sha256 for file in manifest.files)
