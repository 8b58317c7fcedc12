"""Exports: a checkpoint and its manifest in a folder of their own, or its payload as one file."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import CheckpointExistsError, ConfigError, CorruptManifestError, StorePermissionError
from ckpt_lib.experiment.at_path import parent_and_name
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import copy_file, find_stored_damages
from ckpt_lib.experiment.layout import (
    BACKUPS_NAME,
    CLOCK_NAME,
    SNAPSHOT_NAME,
    manifest_name,
    payload_name,
    payload_suffix,
)
from ckpt_lib.formats.registry import CODEC_SUFFIXES, FILE_SUFFIXES, is_compressed
from ckpt_lib.maintenance.decompression import copy_plain_file, plain_manifest
from ckpt_lib.maintenance.transfer import same_or_raise
from ckpt_lib.store import location, open_store
from ckpt_lib.store.registry import url_text
from ckpt_lib.stream import FileDigests, HashingWriter, Progress
from ckpt_lib.stream.digests import Buffer

_SAFETENSORS_SUFFIX = ".safetensors"
_CLAIM = "0" * 16
"""What the manifest of an export has in the place of a claim: nobody claimed its id there."""


def export(
    experiment: Experiment,
    manifest: Manifest,
    destination: str | os.PathLike[str],
    progress: Progress | None = None,
) -> str:
    """Copy a checkpoint and its manifest into another folder; return where the payload lies. It is not compressed.

    A ``destination`` that ends with ``.pt``, ``.pth``, ``.ckpt`` or the suffix of the payload and is no folder becomes
    the payload itself, without a manifest; a path that ends with a slash is a folder. Exporting it there again changes
    nothing. Raises :class:`~ckpt_lib.errors.CheckpointExistsError` when another file has its name, and
    :class:`~ckpt_lib.errors.ConfigError` when the folder is that of an experiment, a payload of several files is to
    become one, or it ends with ``.safetensors``, which a conversion makes. Killed on the way, call it again.
    """
    place = location(open_store(destination))
    suffix = _exported_suffix(manifest)
    _refuse_conversion(destination, place)
    if _is_file_name(destination, place, suffix):
        return _export_file(experiment, manifest, place, progress)
    target = Experiment(open_store(destination), "", experiment.name, single_writer=True)
    refuse_experiment(target)
    _refuse_records(target)
    exported = _plain_manifest(experiment, manifest).changed(
        claim=_CLAIM,
        state="live",
        deleted_at=None,
        in_use_until=None,
        next=None,
        obsolete=(),
    )
    is_there = _is_exported(target, exported)
    for file, copy in zip(manifest.files, exported.files, strict=True):
        if not _holds(target, copy, may_replace=is_there):
            _copy_file(experiment, manifest, file, target, copy, may_replace=is_there, progress=progress)
    if not is_there:
        target.store.put(manifest_name(manifest.checkpoint_id), exported.to_bytes())
    return location(target.store, exported.payload_name)


def _is_file_name(destination: str | os.PathLike[str], place: str, suffix: str) -> bool:
    return place.lower().endswith((*FILE_SUFFIXES, suffix.lower())) and not _is_named_a_folder(destination, place)


def _is_named_a_folder(destination: str | os.PathLike[str], place: str) -> bool:
    return url_text(destination).replace(os.sep, "/").endswith("/") or os.path.isdir(place)


def _refuse_conversion(destination: str | os.PathLike[str], place: str) -> None:
    """Refuse the name of a file of safetensors, which only a conversion makes: nobody wants a folder of that name."""
    if place.lower().endswith(_SAFETENSORS_SUFFIX) and not _is_named_a_folder(destination, place):
        raise ConfigError(
            "an export as it is makes no file of safetensors",
            path=place,
            expected=f"a folder, or a file that ends with {', '.join(FILE_SUFFIXES)}",
            hint="Convert it: --format safetensors --only model. Or end the name of a folder with a slash.",
        )


def _export_file(experiment: Experiment, manifest: Manifest, destination: str, progress: Progress | None) -> str:
    folder, name = parent_and_name(destination)
    target = Experiment(open_store(folder), "", experiment.name, single_writer=True)
    if manifest.files[0].part:
        raise ConfigError(
            f"the payload is a folder of {count_of(len(manifest.files), 'file')}",
            path=location(target.store, name),
            expected="a folder to export to",
            hint="End the destination with a slash.",
        )
    refuse_experiment(target)
    copy = _plain_manifest(experiment, manifest).payload.model_copy(update={"name": name})
    if not _holds(target, copy):
        _copy_file(experiment, manifest, manifest.payload, target, copy, may_replace=False, progress=progress)
    return location(target.store, name)


def refuse_experiment(target: Experiment) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` for the folder of an experiment or of backups."""
    if target.store.stat(SNAPSHOT_NAME) or target.store.stat(CLOCK_NAME):
        raise _of_an_experiment(target)


def _refuse_records(target: Experiment) -> None:
    """Refuse a folder with records of saves or copies, its own or in its backups.

    An export would be listed there, be the latest and retire others. One that was interrupted may have left a record
    that cannot be read.
    """
    for place in (target, Experiment(target.store, BACKUPS_NAME, target.name)):
        try:
            view = place.index.view()
        except StorePermissionError:  # of a folder in it that is not ours: where an experiment is, all can be listed
            continue
        manifests = (*view.manifests, *view.deleted, *view.purging)
        if view.claims or any(manifest.claim != _CLAIM for manifest in manifests):
            raise _of_an_experiment(target)


def _of_an_experiment(target: Experiment) -> ConfigError:
    return ConfigError(
        "the folder is that of an experiment, or of backups",
        path=target.location(),
        expected="a folder of its own, which holds nothing but exports",
        hint="Export to another folder; `ckpt import` takes it into another experiment.",
    )


def _exported_suffix(manifest: Manifest) -> str:
    """Return the suffix that a payload has when it is exported: without that of a codec."""
    suffix = payload_suffix(manifest.files[0].name, manifest.checkpoint_id)
    added = next((added for added in CODEC_SUFFIXES if suffix.endswith(added)), "")
    return suffix.removesuffix(added) if is_compressed(manifest.format) else suffix


def _plain_manifest(experiment: Experiment, manifest: Manifest) -> Manifest:
    """Return a manifest of the files by the names that people know: without the claim that kept them apart, and plain.

    A compressed payload is read for that, to its end.
    """
    if is_compressed(manifest.format):
        return plain_manifest(experiment, manifest)
    start = payload_name(manifest.checkpoint_id, _exported_suffix(manifest))
    files = tuple(file.model_copy(update={"name": start + file.part}) for file in manifest.files)
    return manifest.changed(files=files)


def _is_exported(target: Experiment, exported: Manifest) -> bool:
    """Tell whether the checkpoint's manifest is there; raise when another file has its name.

    One that cannot be read is that of an earlier export if the payload beside it is whole; then it is written anew.
    """
    name = manifest_name(exported.checkpoint_id)
    if target.store.stat(name) is None:
        return False
    try:
        record = target.read(exported.checkpoint_id).record
    except CorruptManifestError as error:
        if any(find_stored_damages(target, file) for file in exported.files):
            raise CheckpointExistsError(
                "another file has the name of the manifest there",
                path=location(target.store, name),
                hint="It was left as it is: move it away, or export to another folder.",
            ) from error
        return False
    same_or_raise(record, exported, target)
    if isinstance(record, Manifest) and record.sha256 != exported.sha256:
        raise CheckpointExistsError(
            "an export of the checkpoint is there, and one of the two was thinned",
            path=location(target.store, name),
            hint="It was left as it is: move it away, or export to another folder.",
        )
    return True


def _holds(target: Experiment, file: FileEntry, *, may_replace: bool = False) -> bool:
    """Tell whether the file is there as it was saved; raise when another one, not ours to replace, has its name."""
    if target.store.stat(file.name) is None:
        return False
    if not find_stored_damages(target, file):
        return True
    if may_replace:
        return False
    raise _taken(target, file)


def _taken(target: Experiment, file: FileEntry) -> CheckpointExistsError:
    return CheckpointExistsError(
        "another file has that name there",
        path=location(target.store, file.name),
        hint="It was left as it is: move it away, or export to another folder.",
    )


def _copy_file(
    experiment: Experiment,
    manifest: Manifest,
    file: FileEntry,
    target: Experiment,
    copy: FileEntry,
    *,
    may_replace: bool,
    progress: Progress | None,
) -> None:
    """Copy one file; it gets its name only if all of it is as it was saved."""
    upload = target.store.open_write(copy.name)

    def write(blocks: Iterable[Buffer]) -> FileDigests:
        with HashingWriter(upload, chunk_size_bytes=file.chunk_size_bytes) as stream:
            for block in blocks:
                stream.write(block)
            return stream.finish()

    try:
        if is_compressed(manifest.format):
            copy_plain_file(experiment, manifest, file, copy, write, progress=progress)
        else:
            copy_file(experiment, manifest, file, write, progress)
        if not may_replace and target.store.stat(copy.name) is not None:  # it was put there meanwhile
            raise _taken(target, copy)
        upload.commit()
    finally:
        upload.abort()
