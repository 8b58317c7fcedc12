"""The save protocol: the only code that makes a checkpoint visible, and the only code that takes one away.

A save writes the payload without a name, hashing it on the way, and makes it durable. Then, under the folder's lock: a
marker says that a save began, the payload gets its name, the folder is made durable, the manifest is written, made
durable and given its name, the marker goes, and the folder is made durable again. Only then is the save acknowledged.
The manifest's name is the commit: a crash before it leaves an unfinished file, or a payload with a marker, and the next
sweep removes either; a crash after it leaves a whole checkpoint.

A deletion leaves another marker, which holds the manifest, and removes the manifest: now nobody finds the checkpoint,
though it can be brought back. The payload goes, and then the marker, when the grace period is over and nobody holds it.
A crash on the way leaves the marker, from which the next sweep goes on. A damaged checkpoint is set aside in the same
way, but what is left of it stays until somebody decides. Beside a manifest, a marker means nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, get_args

from ckpt_lib.core.damage import missing_file
from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    IntegrityError,
    ProtectedCheckpointError,
    StorageFullError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import CheckpointFolder, Mark, is_marker, manifest_entries, marker_entries
from ckpt_lib.formats import Format, Layout
from ckpt_lib.store import Entry, FolderLock, PendingFile
from ckpt_lib.stream import BLOCK_SIZE_BYTES, FileDigests, HashingWriter, Progress, find_damages
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.writer import Sink

OVERHEAD_BYTES = 32 * 2**10
"""Room that a commit takes beside the payload: for the manifest, its marker and leases."""

Check = Callable[[Manifest], CheckpointError | None]
"""Returns the error to raise instead of deleting the checkpoint of a manifest; ``None`` when it may be deleted."""


def save(
    folder: CheckpointFolder,
    index: Index,
    facts: CheckpointFacts,
    payload_format: Format,
    layout: Layout,
    *,
    verify: bool = False,
) -> Manifest:
    """Commit a payload that was laid out, and return its manifest; when this returns, the checkpoint survives a crash.

    With ``verify``, the payload is read back from the disk before it gets its name, and
    :class:`~ckpt_lib.errors.CorruptCheckpointError` is raised when a byte of it is not as it was handed over.

    A save whose ``idempotency_key`` has been saved before writes nothing and returns the earlier manifest. Any error
    leaves the folder as it was, but for one: when all was written and making the folder's names durable fails, the
    checkpoint stays, whole.
    """
    if earlier := index.with_idempotency_key(facts.idempotency_key):
        return earlier
    pending = folder.store.open_write(folder.path)
    try:
        with HashingWriter(pending) as stream:
            layout.write(stream)
            digests = stream.finish()
        pending.sync()
        if verify:
            _read_back(folder, pending, digests)
        with folder.lock() as held:
            # Another process may have saved the same thing while this one was writing.
            if earlier := index.with_idempotency_key(facts.idempotency_key):
                return earlier
            wanted = CheckpointId(facts.epoch, facts.step, facts.timestamp)
            checkpoint_id, sequence = index.next_place(wanted, payload_format.suffix)
            manifest = Manifest(
                checkpoint_id=checkpoint_id,
                sequence=sequence,
                format=payload_format.name,
                files=(_file_entry(checkpoint_id + payload_format.suffix, digests),),
                **facts.__dict__,
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
    _refuse_what_is_in_the_way(target, manifest, replace=replace)
    pending = target.store.open_write(target.path)
    try:
        copy_bytes(source, manifest, pending, progress)
        pending.sync()
        with target.lock() as held:
            published = choose_manifest() if choose_manifest else manifest
            _publish(target, held, pending, published, replace=replace)
            held.delete(target.marker_path(manifest.checkpoint_id, "quarantined"))  # it is whole again
    finally:
        pending.discard()
    return published


def _refuse_what_is_in_the_way(target: CheckpointFolder, manifest: Manifest, *, replace: bool) -> None:
    """Raise early what publishing would show after the copying."""
    if target.payload_entry(manifest):
        if not replace:
            raise CheckpointExistsError(
                "another file has that name there", path=target.payload_location(manifest), hint="It was left as it is."
            )
    elif any(entry.name == manifest.payload.name for entry in target.store.entries(target.path)):
        raise CheckpointExistsError(
            "a folder is where the payload should be",
            checkpoint_id=manifest.checkpoint_id,
            path=target.payload_location(manifest),
            hint="It was left as it is: move it away, and try again.",
        )


def adopt(
    source: CheckpointFolder,
    manifest: Manifest,
    target: CheckpointFolder,
    index: Index,
    *,
    experiment_name: str,
    comes_home: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Commit a verified copy of a foreign checkpoint as the newest of an experiment.

    It keeps its id if that is free and gets a suffix otherwise. One that ``comes_home`` was saved for this experiment:
    it keeps its place in the order, too, if that is free, its parent and its key. A checkpoint that another process has
    adopted meanwhile, by ``uid``, is returned as it is.
    """
    suffix = manifest.payload.name.removeprefix(manifest.checkpoint_id)
    pending = target.store.open_write(target.path)
    try:
        copy_bytes(source, manifest, pending, progress)
        pending.sync()
        with target.lock() as held:
            if earlier := index.with_uid(manifest.uid):
                return earlier
            _clear_unfinished(target, held, manifest.checkpoint_id)
            wanted = CheckpointId.parse(manifest.checkpoint_id)
            checkpoint_id, sequence = index.next_place(wanted, suffix, is_known=True)
            adopted = manifest.changed(
                checkpoint_id=checkpoint_id,
                experiment_name=experiment_name,
                sequence=manifest.sequence if comes_home and index.has_place_for(manifest) else sequence,
                parent_id=manifest.parent_id if comes_home else None,
                monitor=known[-1].monitor if (known := index.manifests()) else manifest.monitor,
                idempotency_key=manifest.idempotency_key if comes_home else None,  # else it speaks of another's save
                files=(manifest.payload.model_copy(update={"name": checkpoint_id + suffix}),),
            )
            _publish(target, held, pending, adopted)
    finally:
        pending.discard()
    return adopted


def edit(folder: CheckpointFolder, checkpoint_id: str, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Rewrite a manifest atomically; concurrent edits are applied one after the other."""
    with folder.lock() as held:
        return _rewrite(folder, held, change(folder.read_manifest(checkpoint_id)))


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
    unless: Check,
    grace_seconds: float = 0.0,
) -> Manifest | None:
    """Delete one checkpoint, as :func:`delete_all` does, or raise the error that ``unless`` returns.

    Returns its manifest, or ``None`` when another process has deleted it already.
    """
    gone, refused = delete_all(folder, [checkpoint_id], make_check=lambda: unless, grace_seconds=grace_seconds)
    for error in refused.values():
        raise error
    return gone[0] if gone else None


def delete_all(
    folder: CheckpointFolder,
    checkpoint_ids: Iterable[str],
    *,
    make_check: Callable[[], Check],
    grace_seconds: float = 0.0,
) -> tuple[list[Manifest], dict[str, CheckpointError]]:
    """Delete checkpoints under one lock; return the manifests of those that were deleted, and the errors of the others.

    What another process has deleted already is in neither. :func:`undelete` brings a checkpoint back until its payload
    is removed. The first :func:`sweep` after ``grace_seconds`` removes it, or this call when that is 0, but not while
    somebody holds the checkpoint. Killed on the way, each checkpoint is there, deleted, or gone, and the next sweep
    does the rest.

    ``make_check`` is called under the lock, twice. First the check that it returns says for each manifest whether it
    may be deleted. When the manifests are gone, nobody can begin to use a checkpoint any more: a new check is made,
    and what it refuses is brought back.
    """
    gone, refused = [], {}
    with folder.lock() as held:
        doomed = []
        check = make_check()
        for checkpoint_id in checkpoint_ids:
            with contextlib.suppress(CheckpointNotFoundError):
                manifest = folder.read_manifest(checkpoint_id)
                if error := check(manifest):
                    refused[checkpoint_id] = error
                else:
                    doomed.append(manifest)
        if not doomed:
            return [], refused
        for manifest in doomed:
            _mark_deleted(folder, held, manifest)
            _drop_other_markers(folder, held, manifest.checkpoint_id, "deleted")
        held.sync()
        for manifest in doomed:
            held.delete(folder.manifest_path(manifest.checkpoint_id))
        held.sync()
        check = make_check()
        for manifest in doomed:
            if error := check(manifest):
                _bring_back(folder, held, manifest, "deleted")
                refused[manifest.checkpoint_id] = error
            else:
                gone.append(manifest)
        if grace_seconds <= 0:
            in_use = folder.held()
            _finish_deletions(folder, held, [item for item in gone if item.checkpoint_id not in in_use], "deleted")
    return gone, refused


def undelete(folder: CheckpointFolder, checkpoint_id: str, *, pin: bool = False) -> Manifest:
    """Bring a deleted checkpoint back and return its manifest; one that is there is left as it is, but for the pin.

    With ``pin`` it is pinned from the moment it is back, or was there. Raises
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when nothing of it is left. Killed on the way, it is back or still
    deleted.
    """
    with folder.lock() as held:
        with contextlib.suppress(CheckpointNotFoundError):
            there = folder.read_manifest(checkpoint_id)
            return _rewrite(folder, held, there.changed(pinned=True)) if pin and not there.pinned else there
        manifest = folder.read_marker(checkpoint_id, "deleted")
        if not folder.is_complete(manifest):
            raise CheckpointNotFoundError(
                f"the payload of {checkpoint_id} has been removed already",
                path=folder.location(),
                hint=f"A backup may still be there: `ckpt restore {checkpoint_id}`.",
            )
        if pin:
            manifest = manifest.changed(pinned=True)
        _bring_back(folder, held, manifest, "deleted")
    return manifest


def quarantine(
    folder: CheckpointFolder, checkpoint_id: str, report: bytes, *, is_unchanged: Callable[[], bool]
) -> bool:
    """Set a checkpoint aside: nobody finds it any more, and what is left of it stays where it is.

    Its marker keeps the manifest as it was and ``report``, one line. ``False``, and nothing is changed, when it is no
    longer what the report is about. Killed on the way, it is there as before, or set aside. Raises
    :class:`~ckpt_lib.errors.ProtectedCheckpointError` while somebody holds it.
    """
    with folder.lock() as held:
        _refuse_held(folder, checkpoint_id)
        if not is_unchanged():
            return False
        record = folder.read_manifest_bytes(checkpoint_id) + b"\n" + report + b"\n"
        held.put(folder.marker_path(checkpoint_id, "quarantined"), record)
        _drop_other_markers(folder, held, checkpoint_id, "quarantined")
        held.sync()
        held.delete(folder.manifest_path(checkpoint_id))
        held.sync()
    return True


def release(folder: CheckpointFolder, manifest: Manifest, *, version: str) -> bool:
    """Bring a quarantined checkpoint back, whose payload was found whole in this ``version``.

    ``False``, and nothing is changed, when it is another one, or the checkpoint is not in quarantine.
    """
    with folder.lock() as held:
        entry = folder.payload_entry(manifest)
        is_there = folder.store.stat(folder.marker_path(manifest.checkpoint_id, "quarantined"))
        if entry is None or entry.version != version or not is_there:
            return False
        if folder.store.stat(folder.manifest_path(manifest.checkpoint_id)) is None:
            _bring_back(folder, held, manifest, "quarantined")
    return True


def remove_quarantined(folder: CheckpointFolder, checkpoint_id: str, payload_names: Iterable[str]) -> int:
    """Remove what is left of a quarantined checkpoint for good; return how many bytes that frees.

    Killed on the way, it is still in quarantine, perhaps without its payload, and the next call does the rest. Raises
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when it is not in quarantine.
    """
    with folder.lock() as held:
        marker = folder.marker_path(checkpoint_id, "quarantined")
        if folder.store.stat(marker) is None or folder.store.stat(folder.manifest_path(checkpoint_id)):
            raise CheckpointNotFoundError(f"{checkpoint_id} is not in quarantine", path=folder.location())
        _refuse_held(folder, checkpoint_id)
        freed_bytes = 0
        for path in map(folder.path_of, payload_names):
            if entry := folder.store.stat(path):  # a folder of that name is not ours
                freed_bytes += entry.size_bytes
                held.delete(path)
        held.sync()
        held.delete(marker)
        held.sync()
    return freed_bytes


def reference(
    folder: CheckpointFolder, payload_name: str, make_manifest: Callable[[], Manifest], *, version: str
) -> Manifest | None:
    """Give a payload that lies there without a manifest the one that was found for this ``version`` of it.

    ``None``, and nothing is changed, when the file is another one, or has a manifest by now. Killed on the way, it has
    its manifest or none.
    """
    path = folder.path_of(payload_name)
    with folder.lock() as held:
        entry, manifest = folder.store.stat(path), make_manifest()
        manifest_path = folder.manifest_path(manifest.checkpoint_id)
        if entry is None or entry.version != version or folder.store.stat(manifest_path):
            return None
        # Nobody knows whether its bytes and its name are durable. Both have to be, before the manifest's name.
        held.patch(path, (), size_bytes=entry.size_bytes)
        held.sync()
        held.put(manifest_path, manifest.to_bytes())
        held.sync()
        for mark in get_args(Mark):
            held.delete(folder.marker_path(manifest.checkpoint_id, mark))
    return manifest


def drop_needless_marker(folder: CheckpointFolder, checkpoint_id: str) -> None:
    """Remove what a save or copy that was committed left behind when it was cut off, where no sweep comes by."""
    marker = folder.marker_path(checkpoint_id, "saving")
    if folder.store.stat(marker) is not None:
        with folder.lock() as held:
            if folder.store.stat(folder.manifest_path(checkpoint_id)) is not None:
                held.delete(marker)


def drop_damaged_marker(folder: CheckpointFolder, checkpoint_id: str, mark: Mark) -> bool:
    """Remove a marker that cannot be read any more, and so says nothing of the payload; whether there was one."""
    with folder.lock() as held:
        try:
            folder.read_marker(checkpoint_id, mark)
        except CorruptManifestError:
            held.delete(folder.marker_path(checkpoint_id, mark))
            return True
        except CheckpointNotFoundError:
            pass
    return False


class Swept(NamedTuple):
    """What a sweep removed."""

    expired: list[Manifest]
    """Checkpoints that had been deleted, and whose payload was still there or on its way out."""
    leftovers: list[str]
    """Names of files that dead processes left unfinished."""


def sweep(folder: CheckpointFolder, seen: Iterable[Entry], *, grace_seconds: float = 0.0) -> Swept:
    """Clear what dead processes left unfinished, and what was deleted more than ``grace_seconds`` ago.

    No lock is taken when no marker is ``seen`` in a listing of the folder, and the store knows of no leftovers. A
    payload that somebody holds stays. Ages are the store's own: the time of the marker against that of the lock.
    """
    expired: list[Manifest] = []
    if not (any(is_marker(entry.name) for entry in seen) or folder.store.leftovers(folder.path)):
        return Swept(expired, [])
    with folder.lock() as held:
        leftovers = held.sweep()
        entries = folder.store.entries(folder.path)
        listed, in_use = manifest_entries(entries), folder.held()
        marked = {mark: marker_entries(entries, mark) for mark in get_args(Mark)}
        set_aside = marked["deleted"].keys() | marked["quarantined"].keys()

        def is_due(checkpoint_id: str, mark: Mark, entry: Entry) -> bool:
            if checkpoint_id in listed or mark == "saving":
                return True
            is_old = held.time_seconds - entry.modified_seconds >= grace_seconds
            return mark == "deleted" and is_old and checkpoint_id not in in_use

        due = [
            (checkpoint_id, mark)
            for mark, found in marked.items()
            for checkpoint_id, entry in found.items()
            if is_due(checkpoint_id, mark, entry)
        ]
        if due:
            # Whoever left a marker may have been killed before it was durable that the manifest is there, or gone.
            held.sync()
        for checkpoint_id, mark in due:
            # Killed after a commit, which may have been set aside since, or before a deletion took effect.
            if checkpoint_id in listed or (mark == "saving" and checkpoint_id in set_aside):
                held.delete(folder.marker_path(checkpoint_id, mark))
            elif manifest := _read_marker(folder, checkpoint_id, mark):
                _finish_deletions(folder, held, [manifest], mark)
                if mark == "deleted":
                    expired.append(manifest)
                else:
                    leftovers.append(manifest.payload.name)
    return Swept(expired, leftovers)


def purge(folder: CheckpointFolder, *, is_enough: Callable[[], bool]) -> list[str]:
    """Remove the payloads of deleted checkpoints for good, those deleted first first, until ``is_enough`` says so.

    Returns the ids. One that somebody holds stays.
    """
    purged = []
    with folder.lock() as held:
        entries = folder.store.entries(folder.path)
        listed, in_use = manifest_entries(entries), folder.held()
        markers = sorted(marker_entries(entries, "deleted").items(), key=lambda item: item[1].modified_seconds)
        for checkpoint_id, _ in markers:
            if is_enough():
                break
            if checkpoint_id in listed or checkpoint_id in in_use:
                continue
            if manifest := _read_marker(folder, checkpoint_id, "deleted"):
                _finish_deletions(folder, held, [manifest], "deleted")
                purged.append(checkpoint_id)
    return purged


def _clear_unfinished(folder: CheckpointFolder, held: FolderLock, checkpoint_id: str) -> None:
    """Free the id of a save that a dead process did not finish: a living one would have the lock."""
    unfinished = _read_marker(folder, checkpoint_id, "saving")
    if unfinished and folder.store.stat(folder.manifest_path(checkpoint_id)) is None:
        _finish_deletions(folder, held, [unfinished], "saving")


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
    marker, content = folder.marker_path(manifest.checkpoint_id, "saving"), manifest.to_bytes()
    is_replaced = replace and folder.payload_entry(manifest) is not None
    # Need not survive power loss: at worst a payload that no one looks at then stays behind.
    held.put(marker, content, durable=False)
    try:
        held.publish(pending, folder.payload_path(manifest), replace=replace)
    except CheckpointError:  # an interrupt leaves the marker: who knows whether the payload has its name by then
        with contextlib.suppress(CheckpointError):
            held.delete(marker)
        raise
    try:
        # Power loss may keep the later of two new names and lose the earlier: the payload's is made durable first.
        held.sync()
        held.put(folder.manifest_path(manifest.checkpoint_id), content)
    except BaseException:
        with contextlib.suppress(CheckpointError):  # what is left has its marker
            # What was in its place, deleted or in quarantine, may have been as good.
            if not is_replaced and folder.store.stat(folder.manifest_path(manifest.checkpoint_id)) is None:
                held.delete(folder.payload_path(manifest))
            held.delete(marker)
        raise
    held.delete(marker)
    held.sync()


def _rewrite(folder: CheckpointFolder, held: FolderLock, manifest: Manifest) -> Manifest:
    held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())
    held.sync()
    return manifest


def _mark_deleted(folder: CheckpointFolder, held: FolderLock, manifest: Manifest) -> None:
    marker = folder.marker_path(manifest.checkpoint_id, "deleted")
    try:
        held.put(marker, manifest.to_bytes())
    except StorageFullError:  # which is when deleting matters most
        held.link(folder.manifest_path(manifest.checkpoint_id), marker)


def _bring_back(folder: CheckpointFolder, held: FolderLock, manifest: Manifest, mark: Mark) -> None:
    try:
        held.put(folder.manifest_path(manifest.checkpoint_id), manifest.to_bytes())
    except StorageFullError:
        # A link will do, unless the marker holds more than the manifest, or another one.
        if mark == "quarantined" or folder.read_marker(manifest.checkpoint_id, mark) != manifest:
            raise
        marker = folder.marker_path(manifest.checkpoint_id, mark)
        held.link(marker, folder.manifest_path(manifest.checkpoint_id))
    held.sync()
    held.delete(folder.marker_path(manifest.checkpoint_id, mark))


def _drop_other_markers(folder: CheckpointFolder, held: FolderLock, checkpoint_id: str, mark: Mark) -> None:
    """Before the manifest goes, beside which they mean nothing."""
    for other in set(get_args(Mark)) - {mark}:
        held.delete(folder.marker_path(checkpoint_id, other))


def _refuse_held(folder: CheckpointFolder, checkpoint_id: str) -> None:
    if reason := folder.held().get(checkpoint_id):
        raise ProtectedCheckpointError(f"it was left as it is: {reason}", checkpoint_id=checkpoint_id)


def _finish_deletions(folder: CheckpointFolder, held: FolderLock, manifests: Sequence[Manifest], mark: Mark) -> None:
    for manifest in filter(folder.payload_entry, manifests):  # a folder of that name is not ours
        held.delete(folder.payload_path(manifest))
    held.sync()
    for manifest in manifests:
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


def copy_bytes(source: CheckpointFolder, manifest: Manifest, target: Sink, progress: Progress | None) -> None:
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
        "it is damaged and was not copied: " + "; ".join(damage.message for damage in damages),
        checkpoint_id=manifest.checkpoint_id,
        path=source.payload_location(manifest),
        damages=damages,
    )
