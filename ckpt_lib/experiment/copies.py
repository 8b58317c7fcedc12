"""Copies of a checkpoint in another place: backups and restores, imports, and saves that come from a fallback.

Two copies are one checkpoint when their ``uid`` is the same. A pointer under ``uids/`` is claimed before the id, so
that two copiers at once make one copy, and a checkpoint that was purged does not come back by itself. A folder of
backups needs none: a backup has the id of its checkpoint, so that the claim of the id is enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import CheckpointExistsError, VersionConflictError
from ckpt_lib.experiment import claims, pointers
from ckpt_lib.experiment.claims import HeldClaim, abandon, claim_over, give_up, is_dead, new_ids
from ckpt_lib.experiment.commit import Payload, commit
from ckpt_lib.experiment.deletion import take_over_purge, undelete
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.files import copy_file
from ckpt_lib.experiment.found import Found
from ckpt_lib.experiment.layout import FOLDER_SUFFIX, payload_suffix, uid_name
from ckpt_lib.store.base import ABSENT
from ckpt_lib.stream import Progress

_POLL_SECONDS = 0.1
_OF_BYTES = ("name", "size_bytes", "sha256", "chunk_size_bytes", "chunk_xxh3_128")


def copy(
    source: Experiment,
    manifest: Manifest,
    target: Experiment,
    *,
    change: Callable[[Manifest], Manifest] = lambda manifest: manifest,
    new_id: bool = False,
    asked: bool = False,
    replace: bool = False,
    verify: bool = False,
    use_pointer: bool = True,
    progress: Progress | None = None,
) -> Manifest | None:
    """Commit a verified copy to ``target`` and return its manifest; one that is there already is returned as it is.

    ``None`` when the checkpoint was deleted there, unless it is ``asked`` for. It keeps its id, or raises
    :class:`~ckpt_lib.errors.CheckpointExistsError` when another one has it; with ``new_id`` it then gets the next
    suffix. ``replace`` leaves a stray file of the payload's name to the sweep. ``use_pointer=False`` is for a target
    where every copy keeps its id, and its monitor: backups. ``change`` is given the copy's manifest before it is
    committed. Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when the source does not verify. After any error,
    the target has no new checkpoint.
    """
    for _ in range(ATTEMPTS):
        try:
            place = _find_place(manifest, target, new_id=new_id, asked=asked, use_pointer=use_pointer)
        except VersionConflictError:  # another copier was faster
            continue
        if not isinstance(place, _Place):
            return place
        held = claim_over(target, place.checkpoint_id, manifest.uid, suffix_of(manifest), place.found, replace=replace)
        if held is None:
            _refuse_taken(target, place.checkpoint_id, manifest, new_id=new_id)
            continue
        try:
            held.confirm()
            if use_pointer and not _is_pointed_to(target, held):
                give_up(held)
                continue
            payload = Payload(held, verify=verify)
            copied = change(copied_manifest(manifest, held, copy_files(source, manifest, payload, progress)))
            return commit(held, copied, take_monitor=use_pointer)
        except BaseException as error:
            give_up(held, error)
            raise
    raise too_busy(target, "the copy", manifest.checkpoint_id)


class _Place(NamedTuple):
    """An id in the target that is free for a copy, and what its key holds."""

    checkpoint_id: str
    found: Found


def _is_pointed_to(target: Experiment, held: HeldClaim) -> bool:
    pointer = pointers.read(target, uid_name(held.claim.uid)).pointer
    return pointer is not None and not pointer.gone and pointer.checkpoint_id == held.checkpoint_id


def _find_place(
    manifest: Manifest, target: Experiment, *, new_id: bool, asked: bool, use_pointer: bool
) -> _Place | Manifest | None:
    """Point the ``uid`` to an id that is free; or return the copy that is there, ``None`` where it must stay away."""
    name = uid_name(manifest.uid)
    pointed = pointers.read(target, name) if use_pointer else pointers.FoundPointer(None, ABSENT)
    pointer, version = pointed
    if pointer and pointer.gone and not asked:
        return None
    wanted = pointer.checkpoint_id if pointer else manifest.checkpoint_id
    if pointed.is_damaged and (there := pointers.find_carrier(target, name)):
        wanted = there.checkpoint_id
    for checkpoint_id in _ids(wanted, new_id=new_id):
        found = target.read(checkpoint_id)
        if found.record is not None and found.record.uid == manifest.uid:
            found = _ended(target, found)
            if isinstance(found.record, Manifest) and found.record.uid == manifest.uid:
                return _there(manifest, target, found.record, asked=asked)
        is_free = found.record is None or found.record.state == "gone"
        if not is_free or (new_id and found.record is not None and found.record.uid != manifest.uid):
            continue
        if use_pointer and (pointer is None or pointer.gone or pointer.checkpoint_id != checkpoint_id):
            mine = pointers.Pointer(checkpoint_id=checkpoint_id, uid=manifest.uid)
            pointers.put(target, name, mine, version)
        return _Place(checkpoint_id, found)
    raise _taken(target, manifest.checkpoint_id)


def _ids(wanted: str, *, new_id: bool) -> Iterable[str]:
    return new_ids(CheckpointId.parse(wanted)) if new_id else [wanted]


def _there(wanted: Manifest, target: Experiment, there: Manifest, *, asked: bool) -> Manifest | None:
    if there.saved_sha256 != wanted.saved_sha256:  # one of two copies may have been thinned
        raise CheckpointExistsError(
            "a checkpoint with its uid is there, and holds something else",
            checkpoint_id=there.checkpoint_id,
            path=target.location(),
            hint="One of the two manifests was not made by this library: import the payload without its manifest.",
        )
    if there.is_visible:
        return there
    return undelete(target, there.checkpoint_id) if asked else None


def _ended(target: Experiment, found: Found) -> Found:
    """End what a dead copier left and what is being purged; wait for a living copier: it brings what is wanted.

    Raises :class:`~ckpt_lib.errors.CheckpointExistsError` if that takes too long.
    """
    deadline = time.monotonic() + claims.PATIENCE_SECONDS
    while (record := found.record) is not None and record.state in ("saving", "abandoned", "purging"):
        if record.state == "purging":
            take_over_purge(target, found)
        elif record.state == "abandoned" or is_dead(found, target.now()):
            abandon(target, found)
        elif time.monotonic() > deadline:
            raise _taken(target, record.checkpoint_id)
        else:
            time.sleep(_POLL_SECONDS)
        found = target.read(record.checkpoint_id)
    return found


def _refuse_taken(target: Experiment, checkpoint_id: str, manifest: Manifest, *, new_id: bool) -> None:
    """Raise where the id is another's for good; return where a second look may find it free, or the copy there."""
    record = target.read(checkpoint_id).record
    if not new_id and (record is None or record.uid != manifest.uid):
        raise _taken(target, checkpoint_id)


def _taken(target: Experiment, checkpoint_id: str) -> CheckpointExistsError:
    return CheckpointExistsError(
        "another checkpoint, another copy under way, or a file has that name there",
        checkpoint_id=checkpoint_id,
        path=target.location(),
        hint="It was left as it is: try again later, or move it away.",
    )


def suffix_of(manifest: Manifest) -> str:
    """Return the suffix of a checkpoint's payload, or that of its copies if it lies where another program wrote it."""
    return payload_suffix(manifest.files[0].name, manifest.checkpoint_id)


def copied_manifest(manifest: Manifest, held: HeldClaim, files: Iterable[FileEntry]) -> Manifest:
    """Return the manifest of the copy, with all that newer versions wrote into it and its files."""
    held.experiment.index.note(manifest.sequence)
    return manifest.changed(
        checkpoint_id=held.checkpoint_id,
        claim=held.claim.claim,
        files=tuple(files),
        state="live",
        deleted_at=None,
        in_use_until=None,
        quarantined=None,
        home_uid=None,
        next=None,
        obsolete=(),
    )


def copy_files(
    source: Experiment, manifest: Manifest, payload: Payload, progress: Progress | None
) -> tuple[FileEntry, ...]:
    """Copy all files of a checkpoint, verified, and return what a manifest says of the copies.

    That holds what else the manifest says of each file, newer versions included. Raises as
    :func:`~ckpt_lib.experiment.files.copy_file`.
    """
    for file in manifest.files:
        _copy_file(source, manifest, file, payload, progress)
    pairs = zip(manifest.files, payload.files, strict=True)
    return tuple(file.model_copy(update={name: getattr(new, name) for name in _OF_BYTES}) for file, new in pairs)


def _copy_file(
    source: Experiment, manifest: Manifest, file: FileEntry, payload: Payload, progress: Progress | None
) -> None:
    def write(blocks: Iterable[bytes]) -> FileEntry:
        with payload.open(file.name.partition(FOLDER_SUFFIX)[2]) as stream:
            for block in blocks:
                stream.write(block)
        return payload.files[-1]

    copy_file(source, manifest, file, write, progress)
