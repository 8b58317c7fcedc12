"""Imports of exports: a checkpoint of this library and its manifest, which says what its bytes must be."""

from __future__ import annotations

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointExistsError
from ckpt_lib.experiment import copies
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.maintenance.importing.refusals import refuse_older, require_intact
from ckpt_lib.maintenance.importing.report import Imported
from ckpt_lib.maintenance.validate import UNLOADABLE, compare, require_loadable
from ckpt_lib.stream import Progress


def import_exported(
    experiment: Experiment,
    origin: Experiment,
    checkpoint_id: str,
    progress: Progress | None,
    newest: Manifest | None = None,
) -> Imported:
    """Import a checkpoint that lies in ``origin`` with its manifest.

    Its structure is looked at first, and every byte is verified on the way. Importing it again returns the checkpoint
    it became, or raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when that has been damaged since. What was
    saved before ``newest`` raises :class:`~ckpt_lib.errors.ConfigError`.
    """
    manifest = origin.get(checkpoint_id)
    there = experiment.index.view().manifests
    if not any(item.is_visible and item.uid == manifest.uid for item in there):
        refuse_older(newest, epoch=manifest.epoch, step=manifest.step or None)
    _require_loadable(origin, manifest)
    imported, is_new = _copied(experiment, origin, manifest, progress)
    if not is_new:
        require_intact(experiment, imported)
        _require_same_content(experiment, manifest, imported)
    return Imported(imported, "a checkpoint with its manifest", is_new)


def _require_loadable(origin: Experiment, manifest: Manifest) -> None:
    """Raise for a checkpoint that cannot be loaded, unless the copy will tell better why."""
    try:
        require_loadable(origin, manifest)
    except FileNotFoundError:  # which the copy tells from a deletion
        pass
    except UNLOADABLE:
        if compare(origin, manifest):
            raise
        # The bytes are damaged: the copy says which.


def _copied(
    experiment: Experiment, origin: Experiment, manifest: Manifest, progress: Progress | None
) -> tuple[Manifest, bool]:
    """Copy a checkpoint as the newest; return the manifest there, and whether it is a new one."""
    is_new = False

    def change(copied: Manifest) -> Manifest:
        nonlocal is_new
        is_new = True
        return copied.changed(
            experiment_name=experiment.name,
            sequence=experiment.index.next_sequence(),
            parent_id=None,
            idempotency_key=None,  # it speaks of another's save
        )

    unplaced = manifest.changed(sequence=0)  # its place in another experiment means nothing here
    imported = copies.copy(origin, unplaced, experiment, change=change, new_id=True, asked=True, progress=progress)
    assert imported is not None  # None is the answer only to those who do not ask
    return imported, is_new


def _require_same_content(experiment: Experiment, manifest: Manifest, imported: Manifest) -> None:
    """Raise when what was imported before holds more than what is to be imported, or less."""
    if imported.content_sha256 != manifest.content_sha256:
        raise CheckpointExistsError(
            "the checkpoint was imported before, and one of the two was thinned",
            checkpoint_id=imported.checkpoint_id,
            path=experiment.location(imported.payload_name),
            hint="Nothing was imported. Import it into another experiment, or delete the checkpoint first.",
        )
