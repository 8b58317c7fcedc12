"""Imports of payloads of this library that have no manifest: each becomes a checkpoint by what the file says itself.

It is a zip archive with a CRC-32 of each record, and holds epoch, step, metrics and configuration. That is enough for a
checkpoint, and enough to find every accident, but no proof that these are the bytes that were saved: the new manifest
says so.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ckpt_lib.core.facts import CheckpointFacts, GivenFacts
from ckpt_lib.core.manifest import Compression, FileEntry, Manifest
from ckpt_lib.core.metadata import check_count
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import CheckpointId, is_checkpoint_id
from ckpt_lib.core.payload_keys import MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY
from ckpt_lib.errors import CheckpointError, NotACheckpointError, StoreError
from ckpt_lib.experiment import commit, keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import blocks_of
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.experiment.stored_payload import StoredPayload
from ckpt_lib.formats import Format, PayloadSource, format_named, is_compressed, plain_source
from ckpt_lib.formats.registry import SEPARATOR, codec_name_of, format_of_bare_files
from ckpt_lib.maintenance.importing.refusals import not_a_checkpoint, refuse_older, require_intact, was_changed
from ckpt_lib.maintenance.importing.report import UNPROVEN_TAG, Imported
from ckpt_lib.maintenance.validate import is_unreadable
from ckpt_lib.state.health import HealthCheck
from ckpt_lib.store import location
from ckpt_lib.stream import Progress, StreamDigest

_START_BYTES = 8
_DESCRIPTION = (
    "Imported without a manifest. The checksums within the file agree, which finds accidents; that these are the bytes "
    "that were saved cannot be proven. Tags and pin are lost."
)
_KEYS = {MODEL_KEY, OPTIMIZER_KEY, SCHEDULER_KEY, "epoch", "step", "metrics", "config"}


def import_payload(
    experiment: Experiment,
    origin: Experiment,
    name: str,
    *,
    monitor: Monitor,
    progress: Progress | None,
    health_check: bool = False,
    newest: Manifest | None = None,
) -> Imported:
    """Import a payload that this library wrote and that has no manifest: one is made from what it holds.

    ``monitor`` becomes its measure of the best if it is the first checkpoint. With ``health_check``, NaN and infinities
    keep a run from resuming from it. What was saved before ``newest`` raises :class:`~ckpt_lib.errors.ConfigError`.
    """
    health = HealthCheck(monitor) if health_check else None
    manifest, is_new = _import_file(experiment, origin, name, monitor, progress, health=health, newest=newest)
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


def _import_file(
    experiment: Experiment,
    origin: Experiment,
    name: str,
    monitor: Monitor,
    progress: Progress | None,
    *,
    health: HealthCheck | None,
    newest: Manifest | None,
) -> tuple[Manifest, bool]:
    try:
        entry = _digest(origin, name)
        stored = _format_of(origin, name)
        payload, compression = _read(origin, entry, stored)
        facts = _facts(payload, experiment.name, monitor)
        if health is not None:
            facts = replace(facts, unhealthy=health.find_fault(payload, facts.metrics))
    except CheckpointError as error:
        if isinstance(error, StoreError) and not is_unreadable(error):
            raise
        raise not_a_checkpoint(origin, name, error.message) from error
    key = f"import of {entry.sha256}"
    if earlier := keys.find(experiment, key):
        require_intact(experiment, earlier)
        return earlier, False
    refuse_older(newest, epoch=facts.epoch, step=facts.step or None)
    facts = replace(facts, timestamp=_timestamp(name), idempotency_key=key, libraries={})
    manifest = commit.save(
        experiment,
        facts,
        lambda payload: _copy(origin, entry.model_copy(update={"compression": compression}), payload, progress),
        format_name=stored.name,
        suffix=stored.suffix,
    )
    return manifest, manifest.uid == facts.uid


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
