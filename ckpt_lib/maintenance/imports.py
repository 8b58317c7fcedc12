"""Imports of our own: an exported checkpoint, or a payload that has no manifest, becomes the newest of an experiment.

The manifest that was exported with it is proof: its SHA-256 says whether the bytes are those that were saved. Without
one, the file itself is asked. It is a zip archive with a CRC-32 of each record, and holds epoch, step, metrics and
configuration. That is enough for a checkpoint, and enough to find every accident, but no proof: the new manifest says
so.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from ckpt_lib.core.facts import CheckpointFacts, GivenFacts
from ckpt_lib.core.manifest import Compression, FileEntry, Manifest
from ckpt_lib.core.metadata import check_count
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import CheckpointId, is_checkpoint_id
from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CorruptCheckpointError,
    NotACheckpointError,
    NotAStoreError,
    StoreError,
)
from ckpt_lib.experiment import commit, copies, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import blocks_of
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, manifest_entries
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.experiment.stored_payload import StoredPayload
from ckpt_lib.formats import Format, PayloadSource, format_named, is_compressed, plain_source
from ckpt_lib.formats.registry import SEPARATOR, codec_name_of, format_of_bare_files
from ckpt_lib.maintenance.exports import folder_and_name
from ckpt_lib.maintenance.import_report import ImportedItem
from ckpt_lib.maintenance.validate import UNLOADABLE, compare, is_unreadable, require_loadable, validate
from ckpt_lib.store import location, open_store
from ckpt_lib.stream import Progress, StreamDigest

_START_BYTES = 8
UNPROVEN_TAG = "adopted"
"""The tag of a checkpoint that came without proof of what was saved."""
_DESCRIPTION = (
    "Imported without a manifest. The checksums within the file agree, which finds accidents; that these are the bytes "
    "that were saved cannot be proven. Tags and pin are lost."
)
IMPORTABLE = (
    f"<checkpoint id>.pt with its manifest <checkpoint id>{MANIFEST_SUFFIX} beside it, a payload that this library "
    "saved, or a checkpoint of another program"
)
_KEYS = {MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY, "epoch", "step", "metrics", "config"}


@dataclass(frozen=True)
class Imported:
    """What an import made of a checkpoint."""

    manifest: Manifest
    title: str
    """What it was, for a person."""
    is_new: bool
    """False for one that was imported before."""
    left_out: tuple[str, ...] = ()
    """What was not taken, and what it does not say: one sentence each."""

    def item(self) -> ImportedItem:
        """Return what a report says of it."""
        return ImportedItem(
            path="",
            title=self.title,
            result="imported" if self.is_new else "already there",
            checkpoint_id=self.manifest.checkpoint_id,
            epoch=self.manifest.epoch,
            step=self.manifest.step,
            size_bytes=self.manifest.size_bytes,
            left_out=self.left_out,
        )


def import_exported(
    experiment: Experiment, origin: Experiment, checkpoint_id: str, progress: Progress | None
) -> Imported:
    """Take in a checkpoint that lies in ``origin`` with its manifest.

    Its structure is looked at first, and every byte is verified on the way. Importing it again returns the checkpoint
    it became, or raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when that has been damaged since.
    """
    manifest, is_new = _import_exported(experiment, origin, origin.get(checkpoint_id), progress)
    return Imported(manifest, "a checkpoint with its manifest", is_new)


def import_payload(
    experiment: Experiment, origin: Experiment, name: str, *, monitor: Monitor, progress: Progress | None
) -> Imported:
    """Take in a payload that this library wrote, and that has no manifest: that is made from what it holds.

    ``monitor`` becomes its measure of the best if it is the first checkpoint.
    """
    manifest, is_new = _import_file(experiment, origin, name, monitor, progress)
    return Imported(manifest, "a payload of this library without its manifest", is_new)


def is_payload_of_ours(origin: Experiment, name: str) -> bool:
    """Tell whether a file is a payload that this library wrote, by its name or its structure; no tensor is read."""
    from ckpt_lib.foreign import FoundFiles  # torch, only where it is used

    if is_checkpoint_id(name.partition(".")[0]):
        return True
    try:
        stored = _format_of(origin, name)
        entry = origin.store.stat(name)
        if entry is None:
            return False
        with FoundFiles(name, {"": entry.size_bytes}, lambda _: open_file(origin, name), title=name) as source:
            outline = stored.inspect(source)
    except (CheckpointError, FileNotFoundError) as error:
        if isinstance(error, StoreError) and not is_unreadable(error):
            raise
        return False
    return outline.keys() >= _KEYS


def _require_intact(experiment: Experiment, imported: Manifest) -> None:
    """Raise when what was imported before is damaged by now."""
    report = validate(experiment, imported)
    if not report:
        raise CorruptCheckpointError(
            f"the checkpoint was imported before, and is damaged here: {report.message}",
            checkpoint_id=imported.checkpoint_id,
            path=experiment.location(imported.payload_name),
            damages=report.damages,
            hint=f"`ckpt restore {imported.checkpoint_id}` brings back a backup; or delete it and import it again.",
        )


# --- with a manifest ---


def _import_exported(
    experiment: Experiment, origin: Experiment, manifest: Manifest, progress: Progress | None
) -> tuple[Manifest, bool]:
    try:
        require_loadable(origin, manifest)
    except FileNotFoundError:  # which the copy tells from a deletion
        pass
    except UNLOADABLE:
        if compare(origin, manifest):
            raise
        # The bytes are damaged: the copy says which.

    is_new = False

    def change(copied: Manifest) -> Manifest:
        nonlocal is_new
        is_new = True
        return copied.changed(
            experiment_name=experiment.name,
            sequence=experiment.index.next_sequence(),
            parent_id=None,
            idempotency_key=None,  # it speaks of another's save
        )

    unplaced = manifest.changed(sequence=0)  # its place in another experiment means nothing here
    imported = copies.copy(origin, unplaced, experiment, change=change, new_id=True, asked=True, progress=progress)
    assert imported is not None  # None is the answer only to those who do not ask
    if not is_new:
        _require_intact(experiment, imported)
        _require_alike(experiment, manifest, imported)
    return imported, is_new


def _require_alike(experiment: Experiment, manifest: Manifest, imported: Manifest) -> None:
    """Raise when what was imported before holds more than what is to be imported, or less."""
    if imported.content_sha256 != manifest.content_sha256:
        raise CheckpointExistsError(
            "the checkpoint was imported before, and one of the two was thinned",
            checkpoint_id=imported.checkpoint_id,
            path=experiment.location(imported.payload_name),
            hint="Nothing was imported. Import it into another experiment, or delete the checkpoint first.",
        )


# --- without one ---


def _import_file(
    experiment: Experiment, origin: Experiment, name: str, monitor: Monitor, progress: Progress | None
) -> tuple[Manifest, bool]:
    try:
        entry = _digest(origin, name)
        stored = _format_of(origin, name)
        payload, compression = _read(origin, entry, stored)
        facts = _facts(payload, experiment.name, monitor)
    except CheckpointError as error:
        if isinstance(error, StoreError) and not is_unreadable(error):
            raise
        raise not_a_checkpoint(origin, name, error.message) from error
    key = f"import of {entry.sha256}"
    if earlier := keys.find(experiment, key):
        _require_intact(experiment, earlier)
        return earlier, False
    facts = replace(facts, timestamp=_timestamp(name), idempotency_key=key, libraries={})
    manifest = commit.save(
        experiment,
        facts,
        lambda payload: _copy(origin, entry.model_copy(update={"compression": compression}), payload, progress),
        format_name=stored.name,
        suffix=stored.suffix,
    )
    return manifest, manifest.uid == facts.uid


def not_a_checkpoint(
    origin: Experiment, name: str, reason: str = "no program is known that writes such checkpoints"
) -> NotACheckpointError:
    """Return the error for a file that is no checkpoint, which says of what kind it is."""
    from ckpt_lib.foreign.file_types import describe_file  # torch, only where it is used

    with open_file(origin, name) as file:
        kind = describe_file(file)
    return NotACheckpointError(
        f"it is {kind}, and cannot be imported: {reason}", path=location(origin.store, name), expected=IMPORTABLE
    )


def _digest(origin: Experiment, name: str) -> FileEntry:
    digest = StreamDigest()
    with origin.store.open_read(name) as reader:
        for block in blocks_of(reader):
            digest.update(block)
    return FileEntry(name=name, **vars(digest.finish()))


def _format_of(origin: Experiment, name: str) -> Format:
    """Return the format of a bare file, by its first bytes: one that was saved as it is, or compressed."""
    with open_file(origin, name) as file:
        codec_name = codec_name_of(file.read(_START_BYTES))
    plain_name = format_of_bare_files().name
    return format_named(f"{plain_name}{SEPARATOR}{codec_name}" if codec_name else plain_name)


def _read(origin: Experiment, entry: FileEntry, stored: Format) -> tuple[dict[str, Any], Compression | None]:
    """Return what it holds: of the very bytes that were digested, and without running code."""
    from ckpt_lib.foreign.checksums import check_checksums  # torch, only where it is used
    from ckpt_lib.foreign.format import SourceFiles

    bare, compression = format_of_bare_files(), None
    with StoredPayload(origin, [entry], verify=True) as stored_source:
        source: PayloadSource = stored_source
        if is_compressed(stored.name):
            source, _ = plain_source(stored, stored_source)
            codec_name = stored.name.partition(SEPARATOR)[2]
            compression = Compression(codec=codec_name, plain_size_bytes=source.open().size_bytes)
        check_checksums(SourceFiles(source, entry.name))
        payload = bare.read(source)
    if missing := _KEYS - payload.keys():
        raise NotACheckpointError(f"the file holds no {', '.join(sorted(missing))}")
    return payload, compression


def _facts(payload: dict[str, Any], experiment_name: str, monitor: Monitor) -> CheckpointFacts:
    given = GivenFacts(
        epoch=check_count("epoch", payload["epoch"]),
        step=check_count("step", payload["step"]),
        metrics=payload["metrics"],
        config=payload["config"],
        tags=[UNPROVEN_TAG],
        description=_DESCRIPTION,
    )
    return given.checked(model_name="unknown", experiment_name=experiment_name, monitor=monitor, with_environment=True)


def _timestamp(name: str) -> datetime:
    checkpoint_id = name.partition(".")[0]
    if is_checkpoint_id(checkpoint_id):
        return CheckpointId.parse(checkpoint_id).timestamp
    return datetime.now(UTC).replace(microsecond=0)


def _copy(origin: Experiment, entry: FileEntry, payload: commit.Payload, progress: Progress | None) -> None:
    with origin.store.open_read(entry.name) as reader, payload.open() as stream:
        for block in blocks_of(reader, progress):
            stream.write(block)
        stream.compression = entry.compression
    if payload.files[-1].sha256 != entry.sha256:
        raise was_changed(location(origin.store, entry.name))


def was_changed(path: str) -> CorruptCheckpointError:
    """Return the error for what was written to while it was imported."""
    return CorruptCheckpointError(
        "the checkpoint was changed while it was imported",
        path=path,
        hint="Nothing was imported: try again when nobody writes to it.",
    )


# --- finding it ---


def locate(source: str, experiment_name: str) -> tuple[Experiment, str]:
    """Return a folder, and the id of the exported checkpoint there, or the name of a file without a manifest.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is neither.
    """
    found: list[str] = []
    if not _names_a_file(source):
        as_folder = Experiment(open_store(source), "", experiment_name)
        with contextlib.suppress(NotAStoreError):  # another file
            found = sorted(manifest_entries(as_folder.store.list(""), ""))
        if len(found) == 1:
            return as_folder, found[0]
    if found:
        raise NotACheckpointError(
            f"the folder holds {len(found)} checkpoints",
            path=source,
            hint="Name one of its payload files, or import all of them: `ckpt import --tree`.",
        )
    origin, name = folder_and_name(source, experiment_name)
    checkpoint_id = name.partition(".")[0]
    if is_checkpoint_id(checkpoint_id) and checkpoint_id in manifest_entries(origin.store.list(""), ""):
        return origin, checkpoint_id
    if origin.store.stat(name) is None:
        raise NotACheckpointError(_why_not(origin, name), path=source, expected=IMPORTABLE)
    return origin, name


def _why_not(origin: Experiment, name: str) -> str:
    """Say why there is nothing to import."""
    path = location(origin.store, name)
    if origin.store.list(name) or os.path.isdir(path):
        return "the folder holds no checkpoint with its manifest"
    return "a link or a device is at this path" if os.path.lexists(path) else "there is nothing at this path"


def _names_a_file(source: str) -> bool:
    return is_checkpoint_id(source.replace(os.sep, "/").rpartition("/")[2].partition(".")[0])
