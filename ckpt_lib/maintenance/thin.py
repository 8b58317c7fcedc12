"""Thinning: an old checkpoint keeps its weights, and loses what only a run that goes on from it needs.

Of a model that is trained with Adam, the state of the optimizer is two thirds of the bytes. A thinned checkpoint can be
evaluated, compared, exported and fine-tuned from; no run can go on from it as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_lib.core.manifest import FileEntry, Manifest, ObsoletePayload, Thinned
from ckpt_lib.core.payload_keys import OPTIMIZER_KEY, RESUME_ONLY_KEYS, SCHEDULER_KEY
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ProtectedCheckpointError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.deletion import refuse_in_use, refuse_pinned
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.replacement import Check, HeldNext, replace_payload, switch_back
from ckpt_lib.experiment.stored_payload import StoredPayload, errors_named, format_of
from ckpt_lib.formats import Format, Payload
from ckpt_lib.maintenance.validate import check_parts, compare

_WORTH_DROPPING = (OPTIMIZER_KEY, SCHEDULER_KEY)
"""Without one of these a checkpoint stays whole: the rest is a few kilobytes, and a run may still go on from it."""


def thin(experiment: Experiment, checkpoint_id: str, *, check: Check = refuse_pinned) -> Manifest:
    """Replace the payload of a checkpoint by one without :data:`RESUME_ONLY_KEYS`; return the manifest then.

    One that is thinned, or has nothing to drop, stays as it is. Every byte is verified as it is read, and what was
    written is read back and compared before it takes the old payload's place. That stays in the trash, from where
    :func:`unthin` brings it back. ``check`` judges the manifest each time that it is replaced.

    Raises what ``check`` returns, :class:`~ckpt_lib.errors.ProtectedCheckpointError` for one that is in quarantine or
    that a run has just resumed from, :class:`~ckpt_lib.errors.CorruptCheckpointError` or
    :class:`~ckpt_lib.errors.UnsafePayloadError` for one that cannot be read whole or without running code,
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when it was deleted, :class:`~ckpt_lib.errors.StorageFullError`
    before anything is written, and :class:`~ckpt_lib.errors.VersionConflictError` when another process replaces its
    payload. After any error, and killed at any point, the checkpoint is whole: as it was, or thinned.
    """
    manifest = experiment.get(checkpoint_id)
    if manifest.thinned is not None:
        return manifest
    now = experiment.now()

    def may_thin(current: Manifest) -> CheckpointError | None:
        return _refuse_damaged(current) or refuse_in_use(current, now) or check(current)

    if error := may_thin(manifest):
        raise error
    stored = format_of(manifest)
    if not droppable(experiment, manifest):
        return manifest
    payload = _read(experiment, manifest, stored, manifest.files)
    kept = {key: None if key in RESUME_ONLY_KEYS else value for key, value in payload.items()}
    layout = stored.lay_out(stored.prepare(kept))
    hint = "Nothing was written. `ckpt trash --empty` and `ckpt cleanup` free space."
    if lack := commit.lack_of_room(experiment, layout.size_bytes, "to write the weights anew", hint=hint):
        lack.checkpoint_id = checkpoint_id
        raise lack

    def write(held: HeldNext) -> Sequence[FileEntry]:
        sink = commit.Payload(held)
        layout.write(sink)
        _compare(kept, _read(experiment, manifest, stored, sink.files), experiment, manifest)
        return sink.files

    thinned = Thinned(at=now, sha256=manifest.content_sha256)
    return replace_payload(experiment, manifest, stored.suffix, write, thinned=thinned, check=may_thin)


def unthin(experiment: Experiment, checkpoint_id: str) -> Manifest:
    """Bring back all that a thinned checkpoint held, while that is in the trash; return the manifest then.

    One that is not thinned stays as it is. Every byte of the earlier payload is verified first; the thinned one goes
    to the trash in its turn. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the earlier payload has been
    removed, and :class:`~ckpt_lib.errors.CorruptCheckpointError` when it is damaged; then nothing is changed.
    """
    manifest = experiment.get(checkpoint_id)
    if manifest.thinned is None:
        return manifest
    earlier = full_payload_of(manifest)
    if earlier is None:
        raise CheckpointNotFoundError(
            "all but the weights of the checkpoint has been removed",
            checkpoint_id=checkpoint_id,
            path=experiment.location(),
            hint=f"A backup may still hold it: `ckpt restore {checkpoint_id}` brings it back.",
        )
    report = compare(experiment, manifest.changed(files=earlier.files))
    if not report:
        experiment.check_current(manifest)  # raises when it was deleted meanwhile, which is no damage
        raise CorruptCheckpointError(
            f"what was dropped of the checkpoint is damaged: {report.message}",
            checkpoint_id=checkpoint_id,
            path=experiment.location(earlier.files[0].name),
            damages=report.damages,
            hint=f"Nothing was changed. A backup may hold it: `ckpt restore {checkpoint_id}`.",
        )
    return switch_back(experiment, checkpoint_id, earlier)


def full_payload_of(manifest: Manifest) -> ObsoletePayload | None:
    """Return the payload in the trash that holds all of the state; ``None`` where there is none any more."""
    full = [item for item in manifest.obsolete if item.thinned is None and not item.removing]
    return full[-1] if full else None


def droppable(experiment: Experiment, manifest: Manifest) -> tuple[str, ...]:
    """Return the parts that thinning would drop; only the structure of the payload is read, and no tensor.

    Raises what :func:`~ckpt_lib.maintenance.validate.require_loadable` raises.
    """
    files = manifest.files
    with errors_named(experiment, manifest, files), StoredPayload(experiment, files, verify=False) as source:
        outline = format_of(manifest).inspect(source)
    found = tuple(key for key in RESUME_ONLY_KEYS if outline.get(key) is not None)
    return found if set(found) & set(_WORTH_DROPPING) else ()


def _refuse_damaged(manifest: Manifest) -> CheckpointError | None:
    if manifest.quarantined is None:
        return None
    return ProtectedCheckpointError(
        "the checkpoint is in quarantine and stays as it is",
        checkpoint_id=manifest.checkpoint_id,
        hint=f"`ckpt repair {manifest.checkpoint_id}` brings it back if its backup can.",
    )


def _read(experiment: Experiment, manifest: Manifest, stored: Format, files: Sequence[FileEntry]) -> Payload:
    """Read a payload of a checkpoint, each byte of it verified."""
    with errors_named(experiment, manifest, files):
        with StoredPayload(experiment, files, verify=True) as source:
            source.require_all()
            payload = stored.read(source)
        check_parts(payload, manifest)
    return payload


def _compare(wanted: Mapping[str, object], found: Payload, experiment: Experiment, manifest: Manifest) -> None:
    """Raise unless what was read back is, bit for bit, what was to be kept."""
    from ckpt_lib.state.sameness import first_difference  # torch, only where it is used

    if place := first_difference(found, wanted):
        raise CorruptCheckpointError(
            f"the format {manifest.format!r} does not give back what was written: {place}",
            checkpoint_id=manifest.checkpoint_id,
            path=experiment.location(),
            hint="Nothing was changed. Have the format checked by ckpt_lib.testing, and memory and disk tested.",
        )
