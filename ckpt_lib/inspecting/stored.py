"""Checkpoints of a store: found by a path, and described by their manifest and format."""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import BytesIO

from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NotACheckpointError,
    NotAStoreError,
    StoreError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.foreign import FoundFiles, found_files
from ckpt_lib.inspecting.placeholders import stored_checkpoint
from ckpt_lib.inspecting.results import Inspection, StoredCheckpoint
from ckpt_lib.inspecting.summary import summary_of, summary_of_unreadable
from ckpt_lib.store import open_store
from ckpt_lib.store.registry import scheme_of
from ckpt_lib.stream import Progress


def checkpoint_at(path: str) -> tuple[Experiment, Manifest] | None:
    """Return the checkpoint whose manifest, payload or folder is at a path or URL; ``None`` if there is no manifest.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError` for a folder of several, and for a save that did not end, and
    what reading a manifest raises.
    """
    parent, _, name = path.replace(os.sep, "/").rstrip("/").rpartition("/")
    checkpoint_id = name.partition(".")[0]
    folder = parent or ("/" if path.startswith("/") else ".")
    if not is_checkpoint_id(checkpoint_id):
        ids = _ids_in(path)
        if not ids:
            return None
        if len(ids) > 1:
            raise NotACheckpointError(
                f"the folder holds {len(ids):,} checkpoints", path=path, hint="Name one of their manifests or payloads."
            )
        folder, checkpoint_id = path, ids[0]
    try:
        experiment = Experiment(open_store(folder), "", os.path.basename(folder.rstrip("/")))
        record = experiment.read(checkpoint_id).record
    except NotAStoreError:
        return None
    if record is None or isinstance(record, Manifest):
        return None if record is None else (experiment, record)
    raise NotACheckpointError(
        "its save has not ended, and none of its files count yet"
        if record.state == "saving"
        else "its save was given up, and nothing comes of its files",
        path=experiment.location(f"{checkpoint_id}{MANIFEST_SUFFIX}"),
        got=f"a record that is {record.state}",
    )


def _ids_in(path: str) -> list[str]:
    """Return the ids of the manifests in a folder of this machine; none for anything else."""
    try:
        names = os.listdir(path.removeprefix("file://"))
    except (OSError, ValueError):
        return []
    stems = (name.removesuffix(MANIFEST_SUFFIX) for name in names if name.endswith(MANIFEST_SUFFIX))
    return sorted(filter(is_checkpoint_id, stems))


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
