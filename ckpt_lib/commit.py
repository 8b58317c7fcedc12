"""The save protocol: the only code that makes a checkpoint visible, and the only code that takes one away.

A save writes the payload without a name, hashing it on the way, and makes it durable. Then, under the folder's lock: a
marker says that a save began, the payload gets its name, the folder is made durable, the manifest is written, made
durable and given its name, the marker goes, and the folder is made durable again. Only then is the save acknowledged.
The manifest's name is the commit: a crash before it leaves an unfinished file, or a payload with a marker, and the next
sweep removes either; a crash after it leaves a whole checkpoint.

A deletion leaves another marker, which holds the manifest, and removes the manifest: now nobody finds the checkpoint,
though it can be brought back. The payload goes, and then the marker, when the grace period is over and nobody holds it.
A crash on the way leaves the marker, from which the next sweep goes on. Beside a manifest, a marker means nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from ckpt_lib.draft import Draft
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    IntegrityError,
    UnsupportedSchemaError,
)
from ckpt_lib.folder import CheckpointFolder, Mark, is_unfinished, manifest_entries, marker_entries
from ckpt_lib.formats import Format, Payload
from ckpt_lib.index import Index
from ckpt_lib.metadata import FileEntry, Manifest
from ckpt_lib.names import CheckpointId
from ckpt_lib.store import Entry, FolderLock, PendingFile
from ckpt_lib.stream import BLOCK_SIZE_BYTES, FileDigests, HashingWriter, Progress, find_damages, missing_file
from ckpt_lib.stream.digests import Buffer

_SWEPT_MARKS: tuple[Mark, ...] = ("saving", "deleted")


def save(
    folder: CheckpointFolder,
    index: Index,
    draft: Draft,
    payload_format: Format,
    payload: Payload,
    *,
    verify: bool = False,
) -> Manifest:
    """Commit ``payload`` and return its manifest; when this returns, the checkpoint survives a crash.

    With ``verify``, the payload is read back from the disk before it gets its name, and
    :class:`~ckpt_lib.errors.CorruptCheckpointError` is raised when a byte of it is not as it was handed over.

    A save whose ``idempotency_key`` has been saved before writes nothing and returns the earlier manifest. Any error
    leaves the folder as it was, but for one: when all was written and making the folder's names durable fails, the
    checkpoint stays, whole.
    """
    if earlier := index.with_idempotency_key(draft.idempotency_key):
        return earlier
    pending = folder.store.open_write(folder.path)
    try:
        with HashingWriter(pending) as stream:
            payload_format.write(payload, stream)
            digests = stream.finish()
        pending.sync()
        if verify:
            _read_back(folder, pending, digests)
        with folder.lock() as held:
            # Another process may have saved the same thing while this one was writing.
            if earlier := index.with_idempotency_key(draft.idempotency_key):
                return earlier
            wanted = CheckpointId(draft.epoch, draft.step, draft.timestamp)
            checkpoint_id, sequence = index.next_place(wanted, payload_format.suffix)
            manifest = Manifest(
                checkpoint_id=checkpoint_id,
                sequence=sequence,
                format=payload_format.name,
                files=(_file_entry(checkpoint_id + payload_format.suffix, digests),),
                **draft.__dict__,
            )
            _publish(folder, held, pending, manifest)
    finally:
        pending.discard()
    return manifest


def copy(
    source: CheckpointFolder,
    manifest: Manifest,
    target: CheckpointFolder,
    *,
    choose_manifest: Callable[[], Manifest] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Commit a verified copy of a checkpoint to another folder; the source is read once and never changed.

    Without ``replace``, whatever has the payload's name there raises
    :class:`~ckpt_lib.errors.CheckpointExistsError`. ``choose_manifest`` is asked, under the target's lock, for the
    manifest to publish there; by default it is the source's. Raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` when the source does not verify; then, as after any error, the
    target is as it was.
    """
    if not replace and target.payload_entry(manifest):  # which publishing would show after the copying
        raise CheckpointExistsError(
            "another file has that name there", path=target.payload_location(manifest), hint="It was left as it is."
        )
    pending = target.store.open_write(target.path)
    try:
        _transfer(source, manifest, pending, progress)
        pending.sync()
        with target.lock() as held:
            published = choose_manifest() if choose_manifest else manifest
            _publish(target, held, pending, published, replace=replace)
    finally:
        pending.discard()
    return published


def adopt(
    source: CheckpointFolder,
    manifest: Manifest,
    target: CheckpointFolder,
    index: Index,
    *,
    experiment_name: str,
    progress: Progress | None = None,
) -> Manifest:
    """Commit a verified copy of a foreign checkpoint as the newest of an experiment.

    It keeps its id if that is free and gets a suffix otherwise. A checkpoint that another process has adopted
    meanwhile, by ``uid``, is returned as it is.
    """
    suffix = manifest.payload.name.removeprefix(manifest.checkpoint_id)
    pending = target.store.open_write(target.path)
    try:
        _transfer(source, manifest, pending, progress)
        pending.sync()
        with target.lock() as held:
            if earlier := index.with_uid(manifest.uid):
                return earlier
            wanted = CheckpointId.parse(manifest.checkpoint_id)
            checkpoint_id, sequence = index.next_place(wanted, suffix, is_known=True)
            adopted = manifest.changed(
                checkpoint_id=checkpoint_id,
                experiment_name=experiment_name,
                sequence=sequence,
                parent_id=None,
                idempotency_key=None,  # it speaks of a save of the other experiment
                files=(manifest.payload.model_copy(update={"name": checkpoint_id + suffix}),),
            )
            _publish(target, held, pending, adopted)
    finally:
        pending.discard()
    return adopted


def edit(folder: CheckpointFolder, checkpoint_id: str, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Rewrite a manifest atomically; concurrent edits are applied one after the other."""
    with folder.lock() as held:
        changed = change(folder.read_manifest(checkpoint_id))
        held.put(folder.manifest_path(checkpoint_id), changed.to_bytes())
        held.sync()
    return changed


def mend(
    folder: CheckpointFolder, manifest: Manifest, pieces: Iterable[tuple[int, Buffer]], *, version: str
) -> str | None:
    """Overwrite damaged bytes of a payload where they lie; return the file's new version.

    ``None``, and nothing is written, when the file is not the ``version`` in which the damage was found. Payloads are
    otherwise never written to: ``pieces`` must be what the manifest's digests say, and lie where the file is damaged.
    Then a crash leaves sound bytes as they were, and damaged ones damaged or sound, and the next repair goes on.
    """
    with folder.lock() as held:
        found = folder.payload_entry(manifest)
        is_same = folder.read_manifest(manifest.checkpoint_id).uid == manifest.uid
        if found is None or found.version != version or not is_same:
            return None
        held.patch(folder.payload_path(manifest), pieces, size_bytes=manifest.payload.size_bytes)
        mended = folder.payload_entry(manifest)
    return None if mended is None else mended.version


def delete(
    folder: CheckpointFolder,
    checkpoint_id: str,
    *,
    unless: Callable[[Manifest], CheckpointError | None],
    grace_seconds: float = 0.0,
) -> Manifest | None:
    """Take a checkpoint away and return its manifest, or ``None`` when another process was faster.

    :func:`undelete` brings it back until its payload is removed: by the first :func:`sweep` after ``grace_seconds``, or
    at once when that is 0, but not while somebody holds it.

    ``unless`` is asked about the manifest as it now is, under the lock, and may return an error to raise instead. It is
    asked again when the manifest is gone, and so nobody can begin to use the checkpoint; then an error brings it back.
    """
    with folder.lock() as held:
        try:
            manifest = folder.read_manifest(checkpoint_id)
        except CheckpointNotFoundError:
            return None
        if error := unless(manifest):
            raise error
        held.put(folder.marker_path(checkpoint_id, "deleted"), manifest.to_bytes())
        held.sync()
        held.delete(folder.manifest_path(checkpoint_id))
        held.sync()
        if error := unless(manifest):
            _bring_back(folder, held, manifest)
            raise error
        if grace_seconds <= 0 and checkpoint_id not in folder.held():
            _finish_deletion(folder, held, manifest, "deleted")
    return manifest


def undelete(folder: CheckpointFolder, checkpoint_id: str) -> Manifest:
    """Bring a deleted checkpoint back and return its manifest; one that is there is left as it is.

    Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when nothing of it is left. Killed on the way, it is back
    or still deleted.
    """
    with folder.lock() as held:
        with contextlib.suppress(CheckpointNotFoundError):
            return folder.read_manifest(checkpoint_id)
        manifest = folder.read_marker(checkpoint_id, "deleted")
        if not folder.is_complete(manifest):
            raise CheckpointNotFoundError(
                f"the payload of {checkpoint_id} has been removed already",
                path=folder.location(),
                hint="A backup may still be there: `ckpt restore`.",
            )
        _bring_back(folder, held, manifest)
    return manifest


def sweep(folder: CheckpointFolder, seen: Iterable[Entry], *, grace_seconds: float = 0.0) -> list[str]:
    """Clear what dead processes left unfinished, and what was deleted more than ``grace_seconds`` ago.

    Nothing is done, and no lock taken, when nothing of the kind is ``seen`` in a listing of the folder. Returns the
    names that went. A payload that somebody holds stays. Ages are the store's own: the time of the marker against that
    of the lock.
    """
    if not any(is_unfinished(entry.name) for entry in seen):
        return []
    with folder.lock() as held:
        swept = held.sweep()
        entries = folder.store.entries(folder.path)
        listed, deleted, in_use = manifest_entries(entries), marker_entries(entries, "deleted"), folder.held()
        due = [
            (checkpoint_id, mark)
            for mark in _SWEPT_MARKS
            for checkpoint_id, entry in marker_entries(entries, mark).items()
            if mark == "saving"
            or checkpoint_id in listed
            or (held.time_seconds - entry.modified_seconds >= grace_seconds and checkpoint_id not in in_use)
        ]
        if due:
            # Whoever left a marker may have been killed before it was durable that the manifest is there, or gone.
            held.sync()
        for checkpoint_id, mark in due:
            # Killed after a commit, which may have been deleted since, or before a deletion took effect.
            if checkpoint_id in listed or (mark == "saving" and checkpoint_id in deleted):
                held.delete(folder.marker_path(checkpoint_id, mark))
            elif manifest := _read_marker(folder, checkpoint_id, mark):
                _finish_deletion(folder, held, manifest, mark)
                swept.append(manifest.payload.name)
    return swept


def _read_marker(folder: CheckpointFolder, checkpoint_id: str, mark: Mark) -> Manifest | None:
    """The manifest that the marker holds; ``None`` when the marker is damaged, or not this one's: it says nothing."""
    try:
        return folder.read_marker(checkpoint_id, mark)
    except (IntegrityError, UnsupportedSchemaError, CheckpointNotFoundError):
        return None


def write_snapshot(folder: CheckpointFolder, name: str, content: Callable[[], bytes]) -> None:
    """Replace a derived file of the folder atomically; what it is derived from does not change meanwhile.

    Power loss may damage it; the next change renews it.
    """
    with folder.lock() as held:
        held.put(folder.path_of(name), content(), durable=False)


def _publish(
    folder: CheckpointFolder, held: FolderLock, pending: PendingFile, manifest: Manifest, *, replace: bool = False
) -> None:
    """Make a durable payload a checkpoint."""
    marker = folder.marker_path(manifest.checkpoint_id, "saving")
    # Need not survive power loss: at worst a payload that no one looks at then stays behind.
    held.put(marker, manifest.to_bytes(), durable=False)
    try:
        held.publish(pending, folder.payload_path(manifest), replace=replace)
    except CheckpointError:  # an interrupt leaves the marker: who knows whether the payload has its name by then
        with contextlib.suppress(CheckpointError):
            held.delete(marker)
        raise
    try:
        # Power loss may keep the later of two new names and lose the earlier: the payload's is made durable first.
        held.sync()
        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())
    except BaseException:
        with contextlib.suppress(CheckpointError):  # what is left has its marker
            if folder.store.stat(folder.manifest_path(manifest.checkpoint_id)) is None:
                held.delete(folder.payload_path(manifest))
            held.delete(marker)
        raise
    held.delete(marker)
    held.sync()


def _bring_back(folder: CheckpointFolder, held: FolderLock, manifest: Manifest) -> None:
    held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())
    held.sync()
    held.delete(folder.marker_path(manifest.checkpoint_id, "deleted"))


def _finish_deletion(folder: CheckpointFolder, held: FolderLock, manifest: Manifest, mark: Mark) -> None:
    held.delete(folder.payload_path(manifest))
    held.sync()
    held.delete(folder.marker_path(manifest.checkpoint_id, mark))


def _read_back(folder: CheckpointFolder, pending: PendingFile, digests: FileDigests) -> None:
    with pending.open_read() as file:
        damages = find_damages(file, _file_entry("the new payload", digests))
    if damages:
        raise CorruptCheckpointError(
            "the disk does not give back what was written: " + "; ".join(damage.message for damage in damages),
            path=folder.location(),
            damages=damages,
            hint="Nothing was saved. Save elsewhere, and have memory and disk tested.",
        )


def _file_entry(name: str, digests: FileDigests) -> FileEntry:
    return FileEntry(name=name, **digests.__dict__)


def _transfer(source: CheckpointFolder, manifest: Manifest, target: PendingFile, progress: Progress | None) -> None:
    """Stream a payload into ``target`` and refuse it at the end if a byte was not as it was saved."""
    try:
        with (
            source.hold(manifest.checkpoint_id, "being copied"),
            source.store.open_read(source.payload_path(manifest)) as file,
        ):
            with HashingWriter(target) as stream:
                while block := file.read(BLOCK_SIZE_BYTES):
                    stream.write(block)
                    if progress:
                        progress(len(block))
                digests = stream.finish()
            if (digests.size_bytes, digests.sha256) == (manifest.payload.size_bytes, manifest.payload.sha256):
                return
            file.seek(0)
            damages = find_damages(file, manifest.payload)
    except FileNotFoundError:
        source.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        damages = [missing_file(manifest.payload.name)]
    raise CorruptCheckpointError(
        "the checkpoint is damaged and was not copied: " + "; ".join(damage.message for damage in damages),
        checkpoint_id=manifest.checkpoint_id,
        path=source.payload_location(manifest),
        damages=damages,
    )
