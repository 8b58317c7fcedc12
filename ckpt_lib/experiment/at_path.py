"""From a path or URL that a person names to the checkpoint of this library that lies there."""

from __future__ import annotations

import contextlib
import os

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import NotACheckpointError, NotAStoreError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import MANIFEST_SUFFIX, manifest_entries, manifest_name
from ckpt_lib.store import location, open_store
from ckpt_lib.store.registry import scheme_of

CHECKPOINTS = (
    f"<checkpoint id>.pt with its manifest <checkpoint id>{MANIFEST_SUFFIX} beside it, a payload that this library "
    "saved, or a checkpoint of another program"
)


def parent_and_name(path: str) -> tuple[str, str]:
    """Return the folder that a path or URL lies in, and its name there."""
    if scheme_of(path) == "file":
        path = os.path.abspath(path.removeprefix("file://"))
    parent, _, name = path.replace(os.sep, "/").rstrip("/").rpartition("/")
    return parent or "/", name


def checkpoint_at(path: str) -> tuple[Experiment, str] | None:
    """Return the folder and the id of the checkpoint whose manifest, payload or folder is at a path or URL.

    ``None`` if no manifest is there. Raises :class:`~ckpt_lib.errors.NotACheckpointError` for a folder of several, and
    :class:`~ckpt_lib.errors.NotAStoreError` where something else is in the place of its folder.
    """
    parent, name = parent_and_name(path)
    checkpoint_id = name.partition(".")[0]
    if is_checkpoint_id(checkpoint_id):
        folder = _folder(parent)
        is_there = folder.store.stat(manifest_name(checkpoint_id)) is not None
        return (folder, checkpoint_id) if is_there else None
    folder, ids = _folder(path), []
    with contextlib.suppress(NotAStoreError):  # another file
        ids = sorted(manifest_entries(folder.store.list(""), ""))
    if len(ids) > 1:
        raise NotACheckpointError(
            f"the folder holds {len(ids):,} checkpoints",
            path=path,
            hint="Name one of their manifests or payloads. `ckpt import --tree` imports all of them.",
        )
    return (folder, ids[0]) if ids else None


def manifest_at(path: str) -> tuple[Experiment, Manifest] | None:
    """Return the checkpoint as :func:`checkpoint_at` finds it, with its manifest.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError` also for a save that did not end, and what reading a manifest
    raises.
    """
    if (found := checkpoint_at(path)) is None:
        return None
    experiment, checkpoint_id = found
    record = experiment.read(checkpoint_id).record
    if record is None or isinstance(record, Manifest):
        return None if record is None else (experiment, record)
    raise NotACheckpointError(
        "its save has not ended, and none of its files count yet"
        if record.state == "saving"
        else "its save was given up, and nothing comes of its files",
        path=experiment.location(manifest_name(checkpoint_id)),
        got=f"a record that is {record.state}",
    )


def file_at(path: str) -> tuple[Experiment, str]:
    """Return the folder and the name of the file at a path or URL.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is none, which says what is there instead.
    """
    parent, name = parent_and_name(path)
    folder = _folder(parent)
    if folder.store.stat(name) is None:
        raise NotACheckpointError(_why_no_file(folder, name), path=path, expected=CHECKPOINTS)
    return folder, name


def _folder(path: str) -> Experiment:
    return Experiment(open_store(path), "", parent_and_name(path)[1])


def _why_no_file(folder: Experiment, name: str) -> str:
    path = location(folder.store, name)
    if folder.store.list(name) or os.path.isdir(path):
        return "the folder holds no checkpoint with its manifest"
    return "a link or a device is at this path" if os.path.lexists(path) else "there is nothing at this path"
