"""Payload files of an experiment, read from start to end and replaced whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from ckpt_lib.core.damage import Damage, missing_file
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import CheckpointExistsError, CorruptCheckpointError, ProtectedCheckpointError, StoreError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.store.base import RangeReader, Upload
from ckpt_lib.stream import Progress
from ckpt_lib.stream.checking import find_damages
from ckpt_lib.stream.digests import BLOCK_SIZE_BYTES, Buffer, FileDigests
from ckpt_lib.stream.writer import HashingWriter


def find_stored_damages(experiment: Experiment, file: FileEntry) -> list[Damage]:
    """Read a payload file and report every way in which it is not as it was saved."""
    try:
        with open_file(experiment, file.name) as stored:
            return find_damages(stored, file)
    except FileNotFoundError:
        return [missing_file(file.name)]


def refuse_original(experiment: Experiment, manifest: Manifest) -> None:
    """Raise :class:`~ckpt_lib.errors.ProtectedCheckpointError` for files that were imported in place.

    They belong to the program that wrote them: whatever they hold now may be all there is of it.
    """
    if not manifest.is_in_place:
        return
    checkpoint_id = manifest.checkpoint_id
    unpin = f"`ckpt pin {checkpoint_id} --off`, " if manifest.pinned else ""
    raise ProtectedCheckpointError(
        f"{manifest.payload_name} was imported in place: it belongs to the program that wrote it, and is never changed",
        checkpoint_id=checkpoint_id,
        path=experiment.location(manifest.payload_name),
        hint="Nothing was changed. `ckpt import` takes in what is there now, as a copy. To bring back the backup "
        f"beside it: {unpin}`ckpt delete {checkpoint_id}`, `ckpt restore {checkpoint_id}`.",
    )


def require_unchanged(experiment: Experiment, manifest: Manifest) -> None:
    """Raise :class:`~ckpt_lib.errors.CorruptCheckpointError` unless each file has the bytes that the manifest names."""
    if damages := [damage for file in manifest.files for damage in find_stored_damages(experiment, file)]:
        raise CorruptCheckpointError(
            "its program has changed or removed the files of the checkpoint, which was imported in place: "
            + "; ".join(damage.message for damage in damages),
            checkpoint_id=manifest.checkpoint_id,
            path=experiment.location(manifest.payload_name),
            damages=damages,
            hint=f"Nothing was changed. `ckpt restore {manifest.checkpoint_id}` brings back its backup, if it has one; "
            "`ckpt import` copies what the files hold now.",
        )


def replace_file(experiment: Experiment, manifest: Manifest, file: FileEntry, blocks: Iterable[Buffer]) -> bool:
    """Give a payload file its bytes again, atomically; ``False`` when its checkpoint went away meanwhile.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, and changes nothing, when ``blocks`` are other bytes than
    were saved, :class:`~ckpt_lib.errors.ProtectedCheckpointError` for a file that was imported in place, and
    :class:`~ckpt_lib.errors.ConfigError` where only a single writer may write, and none said it is one.
    """
    refuse_original(experiment, manifest)
    experiment.check_writable()
    upload = experiment.store.open_write(experiment.key(file.name))
    try:
        with HashingWriter(upload, chunk_size_bytes=file.chunk_size_bytes) as stream:
            for block in blocks:
                stream.write(block)
            digests = stream.finish()
        if (digests.size_bytes, digests.sha256) != (file.size_bytes, file.sha256):
            raise CorruptCheckpointError(
                f"the repair of {file.name} has other bytes than were saved",
                checkpoint_id=manifest.checkpoint_id,
                path=experiment.location(file.name),
                hint="Nothing was changed: repair it from another backup.",
            )
        _commit(experiment, manifest, file, upload)
    finally:
        upload.abort()
    return _is_still_named(experiment, manifest, file)


def _commit(experiment: Experiment, manifest: Manifest, file: FileEntry, upload: Upload) -> None:
    """Give the new file its name. Raises :class:`~ckpt_lib.errors.CheckpointExistsError` where a folder has it."""
    try:
        upload.commit()
    except StoreError as error:
        key = experiment.key(file.name)
        if experiment.store.stat(key) is None and experiment.store.list(key):
            raise CheckpointExistsError(
                "a folder is where the payload should be",
                checkpoint_id=manifest.checkpoint_id,
                path=experiment.location(file.name),
                hint="It was left as it is: move it away.",
            ) from error
        raise


def blocks_of(reader: RangeReader, progress: Progress | None = None) -> Iterator[bytes]:
    """Yield an object's bytes from start to end; ``progress`` is told of each block that was taken."""
    for start in range(0, reader.size_bytes, BLOCK_SIZE_BYTES):
        block = reader.read_at(start, start + BLOCK_SIZE_BYTES)
        yield block
        if progress:
            progress(len(block))


def copy_file(
    source: Experiment,
    manifest: Manifest,
    file: FileEntry,
    write: Callable[[Iterator[bytes]], FileEntry | FileDigests],
    progress: Progress | None,
) -> None:
    """Have ``write`` copy a payload file, block by block, and refuse the copy if a byte is not as it was saved.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` with the damage, and
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted meanwhile.
    """
    try:
        with source.store.open_read(source.key(file.name)) as reader:
            copied = write(blocks_of(reader, progress))
        if (copied.size_bytes, copied.sha256) == (file.size_bytes, file.sha256):
            return
        damages = find_stored_damages(source, file)
    except FileNotFoundError:
        source.check_current(manifest)  # raises when it was deleted meanwhile, which is no damage
        damages = [missing_file(file.name)]
    raise damaged_source(source, manifest, file.name, damages)


def damaged_source(
    source: Experiment, manifest: Manifest, name: str, damages: Sequence[Damage]
) -> CorruptCheckpointError:
    """Return the error of a copy that was refused because the file ``name``, or another, is damaged."""
    return CorruptCheckpointError(
        "the checkpoint is damaged and was not copied: " + "; ".join(damage.message for damage in damages),
        checkpoint_id=manifest.checkpoint_id,
        path=source.location(name),
        damages=damages,
    )


def payload_version(experiment: Experiment, manifest: Manifest) -> str | None:
    """Return a text that changes when a payload file or its recorded digest does; ``None`` when one is missing."""
    entries = [(file.sha256, experiment.store.stat(experiment.key(file.name))) for file in manifest.files]
    if any(entry is None for _, entry in entries):
        return None
    return "/".join(f"{sha256}/{entry.version}" for sha256, entry in entries if entry)


def _is_still_named(experiment: Experiment, manifest: Manifest, file: FileEntry) -> bool:
    """Look whether the file is wanted still; a purge may have been faster, and nobody would remove the file again."""
    record = experiment.read(manifest.checkpoint_id).record
    if isinstance(record, Manifest) and record.state != "purging":
        if file.name in {item.name for item in record.files}:
            return True
        if any(file in item.files and not item.removing for item in record.obsolete):  # it may come back
            return False
    experiment.store.delete(experiment.key(file.name))
    return False
