"""Payload files of an experiment, read from start to end and replaced whole."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_lib.core.damage import Damage, missing_file
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.stream.checking import find_damages
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.writer import HashingWriter


def find_stored_damages(experiment: Experiment, file: FileEntry) -> list[Damage]:
    """Read a payload file and report every way in which it is not as it was saved."""
    try:
        with open_file(experiment, file.name) as stored:
            return find_damages(stored, file)
    except FileNotFoundError:
        return [missing_file(file.name)]


def replace_file(experiment: Experiment, manifest: Manifest, file: FileEntry, blocks: Iterable[Buffer]) -> bool:
    """Give a payload file its bytes again, atomically; ``False`` when its checkpoint went away meanwhile.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, and changes nothing, when ``blocks`` are other bytes than
    were saved.
    """
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
        upload.commit()
    finally:
        upload.abort()
    return _is_still_named(experiment, manifest, file)


def _is_still_named(experiment: Experiment, manifest: Manifest, file: FileEntry) -> bool:
    """Look whether the file is wanted still; a purge may have been faster, and nobody would remove the file again."""
    record = experiment.read(manifest.checkpoint_id).record
    if isinstance(record, Manifest) and record.state != "purging" and file.name in {item.name for item in record.files}:
        return True
    experiment.store.delete(experiment.key(file.name))
    return False
