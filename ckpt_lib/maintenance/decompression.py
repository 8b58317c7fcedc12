"""The plain payload of a checkpoint that is compressed: what people get who ask for its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ckpt_lib.core.manifest import Decompressed, FileEntry, Manifest
from ckpt_lib.errors import CorruptCheckpointError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import payload_name
from ckpt_lib.experiment.stored_payload import StoredPayload, errors_named, format_of
from ckpt_lib.formats import plain_source
from ckpt_lib.stream import FileDigests, Progress, StreamDigest
from ckpt_lib.stream.digests import Buffer


def plain_manifest(experiment: Experiment, manifest: Manifest) -> Manifest:
    """Return the manifest of the plain payload, with the names that people know; all of it is read and verified.

    It says of each file which compressed one it was made from, so that both count as copies of one checkpoint. Raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` with the damage, and
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted meanwhile.
    """
    stored = format_of(manifest)
    entries = []
    files = manifest.files
    with errors_named(experiment, manifest, files), StoredPayload(experiment, files, verify=True) as source:
        plain, plain_format = plain_source(stored, source)
        start = payload_name(manifest.checkpoint_id, plain_format.suffix)
        for file, part in zip(files, plain.names, strict=True):
            digest = StreamDigest(file.chunk_size_bytes)
            for block in plain.open(part).blocks():
                digest.update(block)
            made_from = Decompressed(part=file.part, sha256=file.sha256)
            entries.append(FileEntry(name=start + part, **vars(digest.finish()), decompressed=made_from))
    return manifest.changed(files=tuple(entries), format=plain_format.name)


def copy_plain_file(
    experiment: Experiment,
    manifest: Manifest,
    file: FileEntry,
    copy: FileEntry,
    write: Callable[[Iterable[Buffer]], FileDigests],
    *,
    progress: Progress | None,
) -> None:
    """Have ``write`` take the plain bytes of a compressed file, and refuse them unless they are those of ``copy``."""
    files: Sequence[FileEntry] = [file]
    with errors_named(experiment, manifest, files):
        with StoredPayload(experiment, files, verify=True) as source:
            plain, _ = plain_source(format_of(manifest), source)
            blocks = plain.open(plain.names[0]).blocks()
            written = write(_counted(blocks, progress) if progress else blocks)
        if (written.size_bytes, written.sha256) != (copy.size_bytes, copy.sha256):
            raise CorruptCheckpointError("the payload was changed while it was decompressed", hint="Try it again.")


def _counted(blocks: Iterable[Buffer], progress: Progress) -> Iterable[Buffer]:
    for block in blocks:
        yield block
        progress(len(block))
