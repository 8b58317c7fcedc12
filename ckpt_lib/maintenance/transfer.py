"""Verified copies: backups and their restoration, exports and imports."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    CorruptManifestError,
    NotACheckpointError,
    NotAStoreError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, SNAPSHOT_NAME, CheckpointFolder
from ckpt_lib.maintenance.foreign import kind_of
from ckpt_lib.maintenance.validate import UNLOADABLE, compare, require_loadable, validate
from ckpt_lib.store import open_store
from ckpt_lib.store.pending import new_file
from ckpt_lib.store.registry import url_text
from ckpt_lib.stream import Progress, find_damages

FILE_SUFFIXES = (".pt", ".pth", ".ckpt")
"""A path that ends so names a file to export to."""
_SET_ASIDE = "set aside: `ckpt quarantine --backups` tells why"


def backup(
    folder: CheckpointFolder,
    manifest: Manifest,
    backups: CheckpointFolder,
    *,
    verify_existing: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Copy a checkpoint to the backup location; ``False`` when a whole copy is there already.

    A copy that is there is judged by its manifest and its size, and so is the checkpoint then. With
    ``verify_existing``, every byte of both is read, and a damaged copy is replaced.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when the checkpoint itself is found damaged: damage is never
    copied over a backup. Killed on the way, the next call begins again.
    """
    existing = _manifest_or_none(backups, manifest.checkpoint_id)
    if existing:
        _same_or_raise(existing, manifest, backups)
        is_whole = backups.is_complete(existing)
        if is_whole and (not verify_existing or compare(backups, existing, existing.experiment_name)):
            if verify_existing or not folder.is_complete(manifest):
                _require_intact(folder, manifest, progress)
            return False
    commit.copy(folder, manifest, backups, replace=True, progress=progress)
    return True


def _require_intact(folder: CheckpointFolder, manifest: Manifest, progress: Progress | None) -> None:
    """Raise when a checkpoint that has its backup is damaged itself."""
    report = compare(folder, manifest, manifest.experiment_name, progress)
    if not report:
        folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        raise CorruptCheckpointError(
            f"it is damaged, and its backup is there already: {report.message}",
            checkpoint_id=manifest.checkpoint_id,
            path=folder.payload_location(manifest),
            damages=report.damages,
            hint=f"`ckpt repair {manifest.checkpoint_id}` brings back what is damaged.",
        )


def restore(
    folder: CheckpointFolder, checkpoint_id: str, backups: CheckpointFolder, progress: Progress | None = None
) -> Manifest:
    """Put the backup of a checkpoint in its place, whether that is damaged, half gone or deleted.

    Tags and description stay as the experiment has them, if its manifest can still be read. Raises
    :class:`~ckpt_lib.errors.CorruptCheckpointError` or :class:`~ckpt_lib.errors.CorruptManifestError` when the backup
    is damaged too, :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none, and
    :class:`~ckpt_lib.errors.CheckpointExistsError` when a checkpoint with another ``uid`` has the id, or a folder the
    payload's name; the experiment is then unchanged. Killed on the way, call it again.
    """
    try:
        saved = backups.read_manifest(checkpoint_id)
    except CheckpointNotFoundError as error:
        raise no_backup(backups, checkpoint_id) from error

    def current_or_saved() -> Manifest:
        current = _manifest_or_none(folder, checkpoint_id) or quarantined_or_none(folder, checkpoint_id)
        if current:
            _same_or_raise(current, saved, folder)
        return current or saved

    current_or_saved()  # refuses early what the lock would show after the copying
    return commit.copy(backups, saved, folder, choose_manifest=current_or_saved, replace=True, progress=progress)


def no_backup(backups: CheckpointFolder, checkpoint_id: str) -> CheckpointNotFoundError:
    """The error for a backup that is not there, or was set aside."""
    is_aside = backups.store.stat(backups.marker_path(checkpoint_id, "quarantined"))
    return CheckpointNotFoundError(
        f"there is no backup of {checkpoint_id}",
        checkpoint_id=checkpoint_id,
        path=backups.location(),
        hint=f"It is damaged and was {_SET_ASIDE}." if is_aside else "`ckpt list --backups` shows what is there.",
    )


def other_ways(folder: CheckpointFolder, backups: CheckpointFolder, checkpoint_id: str) -> str:
    """What is left to do about a checkpoint that its backup cannot bring back."""
    ways = []
    if folder.store.stat(folder.marker_path(checkpoint_id, "deleted")):
        ways.append(f"It is in the trash: `ckpt undelete {checkpoint_id}` brings it back.")
    if backups.store.stat(backups.marker_path(checkpoint_id, "quarantined")):
        ways.append(f"Its backup was {_SET_ASIDE}.")
    ways.append("`ckpt list` shows older checkpoints, `ckpt list --backups` other backups; an export may be a copy.")
    return " ".join(ways)


def export(
    folder: CheckpointFolder,
    manifest: Manifest,
    destination: str | os.PathLike[str],
    progress: Progress | None = None,
) -> str:
    """Copy a checkpoint and its manifest into another folder; return where the payload lies.

    A ``destination`` that ends with ``.pt``, ``.pth`` or ``.ckpt`` and is no folder becomes the payload itself, without
    a manifest; a path that ends with a slash is a folder. Exporting it there again changes nothing. Raises
    :class:`~ckpt_lib.errors.CheckpointExistsError` when another file has its name, and
    :class:`~ckpt_lib.errors.ConfigError` when the folder is that of an experiment.
    """
    target = CheckpointFolder(open_store(destination), "")
    if _is_file_name(destination, target.location()):
        return _export_file(folder, manifest, *_folder_and_name(target.location()), progress)
    _refuse_experiment(target)
    existing = _manifest_or_none(target, manifest.checkpoint_id)
    if existing:
        _same_or_raise(existing, manifest, target)
    identical = compare(target, manifest, manifest.experiment_name).is_valid
    if not (existing or identical) and target.store.stat(target.manifest_path(manifest.checkpoint_id)):
        raise CheckpointExistsError(
            "another file has the name of the manifest there",
            path=target.store.location(target.manifest_path(manifest.checkpoint_id)),
            hint="It was left as it is.",
        )
    if existing and identical:
        commit.drop_needless_marker(target, manifest.checkpoint_id)
    else:
        # A payload without manifest is what an interrupted export leaves; one with other bytes is not ours to replace.
        commit.copy(folder, manifest, target, replace=identical or existing is not None, progress=progress)
    return target.payload_location(manifest)


def _is_file_name(destination: str | os.PathLike[str], location: str) -> bool:
    is_named_a_folder = url_text(destination).replace(os.sep, "/").endswith("/") or os.path.isdir(location)
    return location.lower().endswith(FILE_SUFFIXES) and not is_named_a_folder


def _export_file(
    folder: CheckpointFolder, manifest: Manifest, target: CheckpointFolder, name: str, progress: Progress | None
) -> str:
    _refuse_experiment(target)
    if target.store.stat(target.path_of(name)):
        wanted = manifest.payload.model_copy(update={"name": name})
        with target.store.open_read(target.path_of(name)) as file:
            if find_damages(file, wanted):
                raise CheckpointExistsError(
                    "another file has that name there", path=target.location(name), hint="It was left as it is."
                )
    else:
        with new_file(Path(target.location(name))) as file:
            commit.copy_bytes(folder, manifest, file, progress)
    return target.location(name)


def _refuse_experiment(target: CheckpointFolder) -> None:
    if target.store.stat(SNAPSHOT_NAME):  # where it would be listed, be the latest and retire others
        raise ConfigError(
            "the folder is that of an experiment",
            path=target.location(),
            hint="Export to a folder of its own; `ckpt import` takes it into another experiment.",
        )


def import_checkpoint(
    folder: CheckpointFolder,
    index: Index,
    source: str | os.PathLike[str],
    *,
    experiment_name: str,
    progress: Progress | None = None,
) -> Manifest:
    """Adopt an exported checkpoint: ``source`` is its payload, its manifest, or a folder that holds just one.

    Its structure is looked at first, and every byte is verified on the way. Importing it again returns the checkpoint
    it became, or raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when that has been damaged since.

    Raises :class:`~ckpt_lib.errors.UnsafePayloadError`, :class:`~ckpt_lib.errors.CorruptCheckpointError` or
    :class:`~ckpt_lib.errors.UnsupportedFormatError` for what cannot be loaded without running code,
    :class:`~ckpt_lib.errors.CorruptManifestError` or :class:`~ckpt_lib.errors.UnsupportedSchemaError` for a manifest
    that cannot be read, and :class:`~ckpt_lib.errors.NotACheckpointError` where there is nothing to import; nothing is
    written then. Killed on the way, call it again.
    """
    origin, checkpoint_id = _locate(url_text(source))
    manifest = origin.read_manifest(checkpoint_id)
    if earlier := index.with_uid(manifest.uid):
        _intact_or_raise(folder, earlier)
        return earlier
    try:
        require_loadable(origin, manifest)
    except FileNotFoundError:  # which the copy tells from a deletion
        pass
    except UNLOADABLE:
        if compare(origin, manifest, experiment_name):
            raise
        # The bytes are damaged: the copy says which.
    return commit.adopt(origin, manifest, folder, index, experiment_name=experiment_name, progress=progress)


def _intact_or_raise(folder: CheckpointFolder, manifest: Manifest) -> None:
    report = validate(folder, manifest, manifest.experiment_name)
    if not report:
        raise CorruptCheckpointError(
            f"it was imported before, and is damaged here: {report.message}",
            checkpoint_id=manifest.checkpoint_id,
            path=folder.payload_location(manifest),
            damages=report.damages,
            hint=f"`ckpt restore {manifest.checkpoint_id}` brings back a backup; or delete it and import it again.",
        )


def _locate(source: str) -> tuple[CheckpointFolder, str]:
    as_folder = CheckpointFolder(open_store(source), "")
    found: list[str] = []
    if not _names_a_file(source):
        with contextlib.suppress(NotAStoreError):  # another file
            found = sorted(as_folder.manifest_entries())
    if len(found) == 1:
        return as_folder, found[0]
    if found:
        raise NotACheckpointError(
            f"the folder holds {len(found)} checkpoints", path=source, hint="Name one of its payload files."
        )
    origin, name = _folder_and_name(source)
    checkpoint_id = name.partition(".")[0]
    if is_checkpoint_id(checkpoint_id) and checkpoint_id in origin.manifest_entries():
        return origin, checkpoint_id
    raise NotACheckpointError(
        _why_not(as_folder, origin, name),
        path=source,
        expected=f"<checkpoint id>.pt with its manifest <checkpoint id>{MANIFEST_SUFFIX} beside it",
        hint="An export to a folder keeps the manifest, one to a file name does not. Load what another program wrote "
        "with torch.load, and save it with CheckpointManager.save_checkpoint (docs/how-to/move-checkpoints.md).",
    )


def _folder_and_name(path: str) -> tuple[CheckpointFolder, str]:
    parent, _, name = path.replace(os.sep, "/").rstrip("/").rpartition("/")
    return CheckpointFolder(open_store(parent or ("/" if path.startswith("/") else ".")), ""), name


def _why_not(as_folder: CheckpointFolder, origin: CheckpointFolder, name: str) -> str:
    """Why there is nothing to import."""
    with contextlib.suppress(NotAStoreError):  # it is a file
        if as_folder.store.entries("") or os.path.isdir(as_folder.location()):
            return "the folder holds no checkpoint with its manifest"
    try:
        with origin.store.open_read(name) as file:
            kind = kind_of(file)
    except FileNotFoundError:
        is_there = os.path.lexists(origin.location(name))
        return "a link or a device is at this path" if is_there else "there is nothing at this path"
    if is_checkpoint_id(name.partition(".")[0]):
        return "the manifest of this payload is missing"
    return f"it is {kind}, and no checkpoint with its manifest"


def _names_a_file(source: str) -> bool:
    return is_checkpoint_id(source.replace(os.sep, "/").rpartition("/")[2].partition(".")[0])


def _manifest_or_none(folder: CheckpointFolder, checkpoint_id: str) -> Manifest | None:
    """The manifest, or ``None`` when it is missing or damaged and may be written anew."""
    try:
        return folder.read_manifest(checkpoint_id)
    except (CheckpointNotFoundError, CorruptManifestError):
        return None


def quarantined_or_none(folder: CheckpointFolder, checkpoint_id: str) -> Manifest | None:
    """The manifest of a checkpoint that was set aside, if it has one that can be read."""
    try:
        return folder.read_marker(checkpoint_id, "quarantined")
    except (CheckpointNotFoundError, CorruptManifestError):
        return None


def _same_or_raise(existing: Manifest, wanted: Manifest, folder: CheckpointFolder) -> None:
    if existing.uid != wanted.uid:
        raise CheckpointExistsError(
            "a different checkpoint has that id there",
            checkpoint_id=wanted.checkpoint_id,
            path=folder.location(),
            expected=f"uid {wanted.uid}",
            got=f"uid {existing.uid}",
            hint="It was left as it is.",
        )
