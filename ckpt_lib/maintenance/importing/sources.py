"""Finds what a path names: an exported checkpoint, or a file without a manifest."""

from __future__ import annotations

import contextlib
import os

from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import NotACheckpointError, NotAStoreError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import manifest_entries
from ckpt_lib.maintenance.exports import folder_and_name
from ckpt_lib.maintenance.importing.refusals import IMPORTABLE
from ckpt_lib.store import location, open_store


def locate(source: str, experiment_name: str) -> tuple[Experiment, str]:
    """Return a folder, and the id of the exported checkpoint there, or the name of a file without a manifest.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is neither.
    """
    found: list[str] = []
    if not _names_a_file(source):
        as_folder = Experiment(open_store(source), "", experiment_name)
        with contextlib.suppress(NotAStoreError):  # another file
            found = sorted(manifest_entries(as_folder.store.list(""), ""))
        if len(found) == 1:
            return as_folder, found[0]
    if found:
        raise NotACheckpointError(
            f"the folder holds {len(found)} checkpoints",
            path=source,
            hint="Name one of its payload files, or import all of them: `ckpt import --tree`.",
        )
    origin, name = folder_and_name(source, experiment_name)
    checkpoint_id = name.partition(".")[0]
    if is_checkpoint_id(checkpoint_id) and checkpoint_id in manifest_entries(origin.store.list(""), ""):
        return origin, checkpoint_id
    if origin.store.stat(name) is None:
        raise NotACheckpointError(_why_not(origin, name), path=source, expected=IMPORTABLE)
    return origin, name


def _why_not(origin: Experiment, name: str) -> str:
    """Say why there is nothing to import."""
    path = location(origin.store, name)
    if origin.store.list(name) or os.path.isdir(path):
        return "the folder holds no checkpoint with its manifest"
    return "a link or a device is at this path" if os.path.lexists(path) else "there is nothing at this path"


def _names_a_file(source: str) -> bool:
    return is_checkpoint_id(source.replace(os.sep, "/").rpartition("/")[2].partition(".")[0])
