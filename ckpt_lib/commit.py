"""The save protocol: the only code that makes a checkpoint visible, and the only code that takes one away.

A save writes the payload under a temporary name, hashing it on the way, and makes it durable. Then, under the folder's
lock: a tombstone is left, the payload gets its name, the folder is made durable, the manifest is written, made durable
and renamed into place, the tombstone is taken away, and the folder is made durable again. Only then is the save
acknowledged. The rename of the manifest is the commit: a crash before it leaves a temporary file, or a payload with a
tombstone, and the next sweep removes either; a crash after it leaves a whole checkpoint.

A deletion leaves a tombstone, removes the manifest, then the payload, then the tombstone. A crash on the way leaves a
tombstone, from which the next sweep goes on. So a tombstone always means the same: without a manifest, its payload is
to go.
"""

from __future__ import annotations

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
from ckpt_lib.folder import CheckpointFolder, interrupted_deletions
from ckpt_lib.formats import Format, Payload
from ckpt_lib.index import Index
from ckpt_lib.metadata import FileEntry, Manifest
from ckpt_lib.names import CheckpointId
from ckpt_lib.store import PendingFile
from ckpt_lib.stream import BLOCK_SIZE_BYTES, FileDigests, HashingWriter, Progress, find_damages, missing_file
from ckpt_lib.stream.digests import Buffer


def save(folder: CheckpointFolder, index: Index, draft: Draft, payload_format: Format, payload: Payload) -> Manifest:
    """Commit ``payload`` and return its manifest; when this returns, the checkpoint survives a crash.

    A save whose ``idempotency_key`` has been saved before writes nothing and returns the earlier manifest. Any error
    leaves the folder as it was, but for one: when all was written and making the folder's names durable fails, the
    checkpoint stays, whole.
    """
    if earlier := index.with_idempotency_key(draft.idempotency_key):
        return earlier
    suffix = index.next_suffix(draft.epoch, draft.step, draft.timestamp)
    first = CheckpointId(draft.epoch, draft.step, draft.timestamp, suffix)
    checkpoint_id, pending = _claim(folder, index, first, payload_format.suffix)
    try:
        with HashingWriter(pending) as stream:
            payload_format.write(payload, stream)
            digests = stream.finish()
        pending.sync()
        with folder.lock():
            # Another process may have saved the same thing while this one was writing.
            if earlier := index.with_idempotency_key(draft.idempotency_key):
                return earlier
            manifest = Manifest(
                checkpoint_id=checkpoint_id,
                sequence=index.next_sequence(),
                format=payload_format.name,
                files=(_file_entry(checkpoint_id + payload_format.suffix, digests),),
                **draft.__dict__,
            )
            _publish(folder, pending, manifest)
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

    ``choose_manifest`` is asked, under the target's lock, for the manifest to publish there; by default it is the
    source's. Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when the source does not verify; then, as after
    any error, the target is as it was.
    """
    pending = target.store.open_write(target.payload_path(manifest), replace=replace)
    try:
        _transfer(source, manifest, pending, progress)
        pending.sync()
        with target.lock():
            published = choose_manifest() if choose_manifest else manifest
            _publish(target, pending, published)
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
    checkpoint_id, pending = _claim(target, index, CheckpointId.parse(manifest.checkpoint_id), suffix)
    try:
        _transfer(source, manifest, pending, progress)
        pending.sync()
        with target.lock():
            if earlier := index.with_uid(manifest.uid):
                return earlier
            adopted = manifest.changed(
                checkpoint_id=checkpoint_id,
                experiment_name=experiment_name,
                sequence=index.next_sequence(),
                parent_id=None,
                idempotency_key=None,  # it speaks of a save of the other experiment
                files=(manifest.payload.model_copy(update={"name": checkpoint_id + suffix}),),
            )
            _publish(target, pending, adopted)
    finally:
        pending.discard()
    return adopted


def edit(folder: CheckpointFolder, checkpoint_id: str, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Rewrite a manifest atomically; concurrent edits are applied one after the other."""
    with folder.lock():
        changed = change(folder.read_manifest(checkpoint_id))
        _put(folder, folder.manifest_path(checkpoint_id), changed.to_bytes())
        folder.store.sync(folder.path)
    return changed


def mend(
    folder: CheckpointFolder, manifest: Manifest, pieces: Iterable[tuple[int, Buffer]], *, version: str
) -> str | None:
    """Overwrite damaged bytes of a payload where they lie; return the file's new version.

    ``None``, and nothing is written, when the file is not the ``version`` in which the damage was found. Payloads are
    otherwise never written to: ``pieces`` must be what the manifest's digests say, and lie where the file is damaged.
    Then a crash leaves sound bytes as they were, and damaged ones damaged or sound, and the next repair goes on.
    """
    with folder.lock():
        found = folder.payload_entry(manifest)
        is_same = folder.read_manifest(manifest.checkpoint_id).uid == manifest.uid
        if found is None or found.version != version or not is_same:
            return None
        folder.store.patch(folder.payload_path(manifest), pieces, size_bytes=manifest.payload.size_bytes)
        mended = folder.payload_entry(manifest)
    return None if mended is None else mended.version


def delete(
    folder: CheckpointFolder, checkpoint_id: str, *, unless: Callable[[Manifest], CheckpointError | None]
) -> Manifest | None:
    """Remove a checkpoint and return its manifest, or ``None`` when another process was faster.

    ``unless`` is asked about the manifest as it now is, under the lock, and may return an error to raise instead.
    """
    store = folder.store
    with folder.lock():
        try:
            manifest = folder.read_manifest(checkpoint_id)
        except CheckpointNotFoundError:
            return None
        if error := unless(manifest):
            raise error
        _put(folder, folder.tombstone_path(checkpoint_id), manifest.to_bytes())
        store.sync(folder.path)
        store.delete(folder.manifest_path(checkpoint_id))
        store.sync(folder.path)
        _finish_deletion(folder, manifest)
    return manifest


def sweep(folder: CheckpointFolder) -> list[str]:
    """Clear what dead processes left: unfinished files and deletions. Returns the names that went."""
    with folder.lock():
        swept = folder.store.sweep(folder.path)
        for checkpoint_id in interrupted_deletions(folder.store.entries(folder.path)):
            tombstone = folder.tombstone_path(checkpoint_id)
            if folder.store.stat(folder.manifest_path(checkpoint_id)):
                folder.store.delete(tombstone)  # killed after a commit, or before a deletion took effect
            elif manifest := _read_tombstone(folder, checkpoint_id):
                _finish_deletion(folder, manifest)
                swept.append(manifest.payload.name)
    return swept


def _read_tombstone(folder: CheckpointFolder, checkpoint_id: str) -> Manifest | None:
    """The manifest whose deletion began; ``None`` when the tombstone is damaged, or not this one's: it says nothing."""
    path = folder.tombstone_path(checkpoint_id)
    with folder.store.open_read(path) as file:
        try:
            manifest = Manifest.from_bytes(file.read(), path=folder.store.location(path))
        except (IntegrityError, UnsupportedSchemaError):
            return None
    return manifest if manifest.checkpoint_id == checkpoint_id else None


def write_snapshot(folder: CheckpointFolder, name: str, content: Callable[[], bytes]) -> None:
    """Replace a derived file of the folder atomically; what it is derived from does not change meanwhile.

    Power loss may damage it; the next change renews it.
    """
    with folder.lock():
        _put(folder, folder.path_of(name), content(), durable=False)


def _claim(folder: CheckpointFolder, index: Index, wanted: CheckpointId, suffix: str) -> tuple[str, PendingFile]:
    """Claim ``wanted`` or the next free id of its second: by the temporary file itself, created exclusively."""
    number = wanted.suffix
    while True:
        checkpoint_id = str(CheckpointId(wanted.epoch, wanted.step, wanted.timestamp, number))
        number = max(number, 1) + 1
        try:
            pending = folder.store.open_write(folder.path_of(checkpoint_id + suffix))
        except CheckpointExistsError:
            continue
        # Asked after the claim: whoever had this id before has published it by the time its claim is free again.
        taken = (folder.manifest_path(checkpoint_id), folder.tombstone_path(checkpoint_id))
        if not any(folder.store.stat(path) for path in taken) and not index.was_used(checkpoint_id):
            return checkpoint_id, pending
        pending.discard()


def _publish(folder: CheckpointFolder, pending: PendingFile, manifest: Manifest) -> None:
    """Make a durable payload a checkpoint; the folder is locked."""
    tombstone = folder.tombstone_path(manifest.checkpoint_id)
    # Need not survive power loss: at worst a payload that no one looks at then stays behind.
    _put(folder, tombstone, manifest.to_bytes(), durable=False)
    try:
        pending.publish()
    except CheckpointError:  # an interrupt leaves the tombstone: who knows whether the payload has its name by then
        folder.store.delete(tombstone)
        raise
    try:
        # Power loss may keep the later of two new names and lose the earlier: the payload's is made durable first.
        folder.store.sync(folder.path)
        _put(folder, folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())
    except BaseException:
        if folder.store.stat(folder.manifest_path(manifest.checkpoint_id)) is None:
            folder.store.delete(folder.payload_path(manifest))
        folder.store.delete(tombstone)
        raise
    folder.store.delete(tombstone)
    folder.store.sync(folder.path)


def _put(folder: CheckpointFolder, path: str, content: bytes, *, durable: bool = True) -> None:
    """Write a small file: all of it, durable, under its name, or nothing; the folder is locked."""
    pending = folder.store.open_write(path, replace=True)
    try:
        pending.write(content)
        if durable:
            pending.sync()
        pending.publish()
    finally:
        pending.discard()


def _finish_deletion(folder: CheckpointFolder, manifest: Manifest) -> None:
    folder.store.delete(folder.payload_path(manifest))
    folder.store.sync(folder.path)
    folder.store.delete(folder.tombstone_path(manifest.checkpoint_id))


def _file_entry(name: str, digests: FileDigests) -> FileEntry:
    return FileEntry(name=name, **digests.__dict__)


def _transfer(source: CheckpointFolder, manifest: Manifest, target: PendingFile, progress: Progress | None) -> None:
    """Stream a payload into ``target`` and refuse it at the end if a byte was not as it was saved."""
    try:
        with source.store.open_read(source.payload_path(manifest)) as file:
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
