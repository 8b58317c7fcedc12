"""Checkpoints of a store, described by their manifest and format."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NotACheckpointError,
    StoreError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.foreign import FoundFiles, found_files
from ckpt_lib.inspecting.placeholders import stored_checkpoint
from ckpt_lib.inspecting.results import Inspection, StoredCheckpoint
from ckpt_lib.inspecting.summary import summary_of, summary_of_unreadable
from ckpt_lib.store.registry import scheme_of
from ckpt_lib.stream import Progress


def inspect_stored(
    experiment: Experiment, manifest: Manifest, *, stats: bool = False, progress: Progress | None = None
) -> Inspection:
    """Describe a checkpoint of a store. Where its payload cannot be read, what its manifest says is left.

    Raises the errors of the store.
    """
    with _files_of(experiment, manifest, headers_only=not stats) as files:
        try:
            _check_sizes(files, manifest.files)
            found = stored_checkpoint(files, manifest)
            more = _findings(files, manifest, found.payload)
            summary = summary_of(found, stats=stats, progress=progress, more_findings=tuple(more))
        except StoreError:
            raise
        except UnsupportedFormatError as error:
            return _without_payload(files, manifest, error, needs=(f"format:{manifest.format}",))
        except CheckpointError as error:
            return _without_payload(files, manifest, error)
    return summary.model_copy(update={"checkpoint": _facts(manifest)})


def _files_of(experiment: Experiment, manifest: Manifest, *, headers_only: bool) -> FoundFiles:
    """Return the files that are there of a payload; in a folder of this machine, also those that are no part of it."""
    place = experiment.location(manifest.payload_name)
    if scheme_of(place) == "file":
        try:
            return found_files(place, headers_only=headers_only)
        except NotACheckpointError:
            return FoundFiles(place, {}, lambda _: BytesIO(), title=manifest.payload_name)
    names = {entry.part: entry.name for entry in manifest.files}
    entries = {part: experiment.store.stat(experiment.key(name)) for part, name in names.items()}
    sizes = {part: entry.size_bytes for part, entry in entries.items() if entry is not None}
    return FoundFiles(place, sizes, lambda part: open_file(experiment, names[part]), title=manifest.payload_name)


def _without_payload(
    files: FoundFiles, manifest: Manifest, problem: CheckpointError, needs: tuple[str, ...] = ("repair",)
) -> Inspection:
    inspection = summary_of_unreadable(
        files,
        problem,
        needs=needs,
        writer="prefect-checkpoints",
        saved_at=manifest.timestamp,
        epoch=manifest.epoch,
        step=manifest.step,
        metrics=manifest.metrics,
        config=manifest.config,
        checkpoint=_facts(manifest),
    )
    return inspection if manifest.foreign else inspection.model_copy(update={"kind": manifest.format})


def _facts(manifest: Manifest) -> StoredCheckpoint:
    is_compressed = any(file.compression for file in manifest.files)
    plain_bytes = manifest.plain_size_bytes
    return StoredCheckpoint(
        checkpoint_id=manifest.checkpoint_id,
        experiment_name=manifest.experiment_name,
        state=manifest.state,
        tags=manifest.tags,
        pinned=manifest.pinned,
        format=manifest.format,
        sha256=manifest.sha256,
        is_thinned=manifest.thinned is not None,
        is_quarantined=manifest.quarantined is not None,
        plain_size_bytes=plain_bytes,
        compression_ratio=manifest.size_bytes / plain_bytes if is_compressed and plain_bytes else None,
    )


def _check_sizes(files: FoundFiles, entries: tuple[FileEntry, ...]) -> None:
    for entry in entries:
        size_bytes = files.sizes_bytes.get(entry.part)
        if size_bytes is None:
            raise CorruptCheckpointError(f"the payload's file {shown(entry.name)} is missing")
        if size_bytes != entry.size_bytes:
            raise CorruptCheckpointError(
                f"{entry.name} is {'cut off' if size_bytes < entry.size_bytes else 'longer than it was'}",
                expected=f"{entry.size_bytes:,} bytes, as its manifest says",
                got=f"{size_bytes:,}",
            )


def _findings(files: FoundFiles, manifest: Manifest, payload: object) -> Iterator[str]:
    """Yield where the payload disagrees with its manifest, and what the manifest says that people should know."""
    assert isinstance(payload, dict)
    for name in ("epoch", "step"):
        if name in payload and payload[name] != getattr(manifest, name):
            wanted = getattr(manifest, name)
            yield f"Its manifest says {name} {wanted}, and its payload {name} {shown(payload[name])}."
    if further := files.sizes_bytes.keys() - {entry.part for entry in manifest.files}:
        yield f"Its folder holds files that its manifest does not name, such as {shown(min(further))}."
    if manifest.state != "live":
        yield f"It is {'deleted' if manifest.state == 'deleted' else 'being deleted'}."
    if manifest.quarantined:
        yield f"It is in quarantine since {manifest.quarantined.at:%Y-%m-%d}: damage was found."
    if manifest.unhealthy:
        yield f"It is unhealthy: {manifest.unhealthy}."
