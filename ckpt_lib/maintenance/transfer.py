"""Verified copies between a checkpoint's home and its backups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_lib.core.manifest import Claim, FileEntry, Manifest
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    ProtectedCheckpointError,
)
from ckpt_lib.experiment import claims, copies, edits
from ckpt_lib.experiment.commit import Payload
from ckpt_lib.experiment.deletion import undelete
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.files import blocks_of, damaged_source, refuse_original, replace_file
from ckpt_lib.experiment.found import Found
from ckpt_lib.experiment.layout import manifest_name
from ckpt_lib.experiment.replacement import HeldNext, replace_payload
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.maintenance.validate import compare
from ckpt_lib.stream import Progress


def backup(
    home: Experiment,
    manifest: Manifest,
    backups: Experiment,
    *,
    verify_existing: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Copy a checkpoint to the backup location; ``False`` when a whole copy is there already.

    A copy that is there is judged by its manifest and its size, and so is the checkpoint then. With
    ``verify_existing``, every byte of both is read, and a damaged copy is replaced. Where one of the two was thinned,
    each is judged by its own digests, and neither is replaced by the other.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when the checkpoint itself is found damaged: damage is never
    copied over a backup; and :class:`~ckpt_lib.errors.ConfigError` when the backup is the checkpoint itself, under
    another name. Killed on the way, the next call begins again.
    """
    existing = _readable(backups, manifest.checkpoint_id)
    if isinstance(existing, Manifest) and existing.is_visible:
        same_or_raise(existing, manifest, backups)
        if existing.claim == manifest.claim:  # a backup has one of its own
            from ckpt_lib.experiment.locations import check_apart  # a conversion needs no configuration

            check_apart("checkpoints", home, "backup_dir", backups)
        if _is_whole(backups, existing, verify=verify_existing):
            if verify_existing or not home.is_complete(manifest):
                _require_intact(home, manifest, progress)
            return False
    _put_in_place(home, manifest, backups, progress, use_pointer=False)
    return True


def _is_whole(experiment: Experiment, manifest: Manifest, *, verify: bool) -> bool:
    is_usable = manifest.quarantined is None and experiment.is_complete(manifest)
    return is_usable and (not verify or compare(experiment, manifest).is_valid)


def _require_intact(home: Experiment, manifest: Manifest, progress: Progress | None) -> None:
    """Raise when a checkpoint that has its backup is damaged itself."""
    report = compare(home, manifest, progress)
    if not report:
        home.check_current(manifest)  # raises when it was deleted meanwhile, which is no damage
        raise CorruptCheckpointError(
            f"the checkpoint is damaged, and has its backup already: {report.message}",
            checkpoint_id=manifest.checkpoint_id,
            path=home.location(manifest.payload_name),
            damages=report.damages,
            hint=f"`ckpt repair {manifest.checkpoint_id}` brings back what is damaged.",
        )


def restore(
    experiment: Experiment, checkpoint_id: str, other: Experiment, progress: Progress | None = None
) -> Manifest:
    """Put the other copy of a checkpoint in its place, whether that is damaged, half gone or deleted.

    Tags and description stay as the experiment has them, if its manifest can still be read. Where one of the two copies
    was thinned, the payload here goes to the trash; one that is whole is not replaced by less, which raises
    :class:`~ckpt_lib.errors.ProtectedCheckpointError`. So does one that was imported in place and has changed since:
    its files belong to another program. Once its record is deleted, the copy becomes an ordinary checkpoint. Raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` or :class:`~ckpt_lib.errors.CorruptManifestError` when the other
    copy is damaged too, :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none, and
    :class:`~ckpt_lib.errors.CheckpointExistsError` when a checkpoint with another ``uid`` has the id; the experiment is
    then unchanged. Killed on the way, call it again.
    """
    saved = other.read(checkpoint_id).record
    if not isinstance(saved, Manifest) or saved.state == "purging":
        raise no_backup(other, checkpoint_id)
    return _put_in_place(other, saved, experiment, progress)


def no_backup(backups: Experiment, checkpoint_id: str) -> CheckpointNotFoundError:
    """Return the error for a backup that is not there."""
    return CheckpointNotFoundError(
        f"there is no backup of {checkpoint_id}",
        checkpoint_id=checkpoint_id,
        path=backups.location(),
        hint="`ckpt list --backups` shows what is there.",
    )


def other_ways(home: Experiment, backups: Experiment, checkpoint_id: str) -> str:
    """Return what is left to do about a checkpoint that its backup cannot bring back."""
    ways = []
    here, there = _readable(home, checkpoint_id), _readable(backups, checkpoint_id)
    if isinstance(here, Manifest) and here.state == "deleted":
        ways.append(f"It is in the trash: `ckpt undelete {checkpoint_id}` brings it back.")
    elif isinstance(here, Manifest) and isinstance(there, Manifest):
        ways.append(f"`ckpt repair {checkpoint_id}` puts together what is sound in the two.")
    if isinstance(there, Manifest) and there.quarantined:
        ways.append("Its backup was set aside: `ckpt quarantine --backups` tells why.")
    ways.append("`ckpt list` shows older checkpoints, `ckpt list --backups` other backups; an export may be a copy.")
    return " ".join(ways)


def _put_in_place(
    source: Experiment, saved: Manifest, target: Experiment, progress: Progress | None, *, use_pointer: bool = True
) -> Manifest:
    """Copy a checkpoint, or rewrite the files of a copy that is there; either way it is whole, live and valid then."""
    was_damaged = False
    for _ in range(ATTEMPTS):
        try:
            found = target.read(saved.checkpoint_id)
        except CorruptManifestError:
            _end_damaged(target, source, saved)
            was_damaged = True
            continue
        existing = found.record
        if not isinstance(existing, Manifest) or existing.state == "purging":
            copied = copies.copy(
                source, saved, target, asked=True, replace=True, use_pointer=use_pointer, progress=progress
            )
            assert copied is not None  # None is the answer only to those who do not ask
            if was_damaged:  # its files have new names
                sweep(target)
            return copied
        same_or_raise(existing, saved, target)
        if existing.is_in_place:
            if kept := _beside_original(source, saved, found, target, progress):
                return kept
            continue
        if existing.sha256 != saved.sha256:
            return _bring_other_payload(source, saved, target, existing, progress, may_replace=use_pointer)
        if not _rewrite(source, saved, target, existing, progress):
            continue
        if existing.state == "deleted":
            existing = undelete(target, saved.checkpoint_id)
            found = target.read(saved.checkpoint_id)
        if existing.quarantined is None:
            return existing
        if released := edits.release(target, found):
            return released
    raise too_busy(target, "the checkpoint", saved.checkpoint_id)


def _beside_original(
    source: Experiment, saved: Manifest, found: Found, target: Experiment, progress: Progress | None
) -> Manifest | None:
    """Return a checkpoint that was imported in place and is whole; ``None`` where its id is free, or looked at again.

    The record of a deleted one ends, so that the copy becomes an ordinary checkpoint of that id. The files of either
    stay as they are. Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` for one whose files were changed.
    """
    existing = found.manifest
    if existing.state == "deleted":
        _require_whole(source, saved, progress)
        edits.rewrite(target, found, state="purging")
        return None
    if not compare(target, existing, progress):
        refuse_original(target, existing)
    return existing if existing.quarantined is None else edits.release(target, found)


def _bring_other_payload(
    source: Experiment,
    saved: Manifest,
    target: Experiment,
    existing: Manifest,
    progress: Progress | None,
    *,
    may_replace: bool,
) -> Manifest:
    """Put the payload of the other copy in the place of this one's, where one of the two was thinned.

    The present payload goes to the trash, and is never replaced by less while it is whole. A backup is never changed
    in this way: what it holds is for a person to give up.
    """
    if existing.saved_sha256 != saved.saved_sha256:
        raise CheckpointExistsError(
            "a checkpoint with its uid is there, and holds something else",
            checkpoint_id=existing.checkpoint_id,
            path=target.location(),
            hint="One of the two manifests was not made by this library: delete the copy that is wrong.",
        )
    if existing.format != saved.format:
        raise CheckpointExistsError(
            "one of the two copies was exported and imported, and is not compressed as the other is",
            checkpoint_id=existing.checkpoint_id,
            path=target.location(existing.payload_name),
            expected=f"format {saved.format}",
            got=f"format {existing.format}",
            hint="Nothing was changed: delete the copy that is damaged, and empty the trash, before it is restored.",
        )
    if not may_replace:
        raise _unlike(saved, target)
    if saved.thinned and existing.thinned is None and compare(target, existing):
        raise ProtectedCheckpointError(
            "the checkpoint is whole, and its backup was thinned and holds less",
            checkpoint_id=existing.checkpoint_id,
            path=target.location(existing.payload_name),
            hint="Nothing was changed. `ckpt undelete` brings a deleted one back.",
        )
    if existing.state == "deleted":
        existing = undelete(target, existing.checkpoint_id)

    def write(held: HeldNext) -> Sequence[FileEntry]:
        return copies.copy_files(source, saved, Payload(held), progress)

    return replace_payload(target, existing, copies.suffix_of(saved), write, thinned=saved.thinned)


def _unlike(saved: Manifest, backups: Experiment) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        "the backup is damaged, and the checkpoint cannot make it whole: one of the two was thinned",
        checkpoint_id=saved.checkpoint_id,
        path=backups.location(),
        hint=f"`ckpt delete --backups {saved.checkpoint_id}` gives up what is left of it, `ckpt backup` makes another.",
    )


def _rewrite(
    source: Experiment, saved: Manifest, target: Experiment, existing: Manifest, progress: Progress | None
) -> bool:
    """Give each file of a copy its bytes again; ``False`` when the copy went away meanwhile."""
    if len(saved.files) != len(existing.files):
        raise CorruptCheckpointError(
            "the two copies have different files",
            checkpoint_id=saved.checkpoint_id,
            path=source.location(),
            hint="Delete the copy that is wrong.",
        )
    for stored, file in zip(saved.files, existing.files, strict=True):
        try:
            is_there = replace_file(target, existing, file, _stored_blocks(source, stored, progress))
        except (CorruptCheckpointError, FileNotFoundError) as error:
            _require_there(source, saved)
            raise damaged_source(source, saved, stored.name, compare(source, saved).damages) from error
        if not is_there:
            return False
    return True


def _require_whole(source: Experiment, saved: Manifest, progress: Progress | None = None) -> None:
    """Raise unless a copy is as it was saved, before what it is to replace goes."""
    report = compare(source, saved, progress)
    if not report:
        _require_there(source, saved)
        raise damaged_source(source, saved, saved.payload_name, report.damages)


def _require_there(source: Experiment, saved: Manifest) -> None:
    """Raise when the copy that was read has gone meanwhile: what is missing of it is no damage."""
    record = source.read(saved.checkpoint_id).record
    if not isinstance(record, Manifest) or not record.has_files_of(saved) or record.state == "purging":
        raise no_backup(source, saved.checkpoint_id)


def _stored_blocks(experiment: Experiment, file: FileEntry, progress: Progress | None) -> Iterator[bytes]:
    """Yield the bytes of a stored file, and tell ``progress`` of each block that was taken."""
    with experiment.store.open_read(experiment.key(file.name)) as reader:
        yield from blocks_of(reader, progress)


def _end_damaged(target: Experiment, source: Experiment, saved: Manifest) -> None:
    """Free the id of a record that cannot be read, once its other copy is known to be whole."""
    name = manifest_name(saved.checkpoint_id)
    entry = target.store.stat(target.key(name))  # first: what is written from here on is not replaced
    if entry is None or _readable(target, saved.checkpoint_id) is not None:
        return
    _require_whole(source, saved)
    claims.end_unreadable(target, saved.checkpoint_id, saved.uid, entry.version)


def _readable(experiment: Experiment, checkpoint_id: str) -> Manifest | Claim | None:
    """Return the record; ``None`` when it is missing or damaged and may be written anew."""
    try:
        return experiment.read(checkpoint_id).record
    except CorruptManifestError:
        return None


def same_or_raise(existing: Manifest | Claim | None, wanted: Manifest, experiment: Experiment) -> None:
    """Raise unless what is there is a copy of the wanted checkpoint."""
    if not isinstance(existing, Manifest) or existing.uid != wanted.uid:
        raise CheckpointExistsError(
            "a different checkpoint has that id there",
            checkpoint_id=wanted.checkpoint_id,
            path=experiment.location(),
            expected=f"uid {wanted.uid}",
            got=f"uid {existing.uid if existing else None}",
            hint="Nothing was changed: move it away, or choose another backup_dir.",
        )
