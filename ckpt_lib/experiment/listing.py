"""Which experiments a store holds."""

from __future__ import annotations

import os

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import check_experiment_name
from ckpt_lib.core.wording import did_you_mean
from ckpt_lib.errors import (
    ExperimentNotFoundError,
    IntegrityError,
    InvalidNameError,
    NotAStoreError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import BACKUPS_NAME, FOLDER_SUFFIX, SNAPSHOT_NAME, manifest_entries
from ckpt_lib.store import Store, location, open_store
from ckpt_lib.store.identity import IDENTITY_NAME


def list_experiments(store: Store | str | os.PathLike[str], *, missing_ok: bool = False) -> list[str]:
    """Return the names of the experiments in ``store``, sorted; a path or URL is opened as a store.

    A store that was initialised and holds none yet gives an empty list. Raises :class:`NotAStoreError` when there is
    neither an identity file nor an experiment, so that a mistyped path or a missing disk does not look like an empty
    store; with ``missing_ok``, a folder that is empty or missing gives an empty list as well.
    """
    if isinstance(store, str | os.PathLike):
        store = open_store(store)
    entries = store.list("")
    folders = [entry.key.removesuffix(FOLDER_SUFFIX) for entry in entries if entry.is_folder]
    names = [name for name in folders if is_experiment(store, name)]
    is_store = bool(names) or any(entry.key == IDENTITY_NAME for entry in entries)
    if not is_store and (entries or not missing_ok):
        raise NotAStoreError(
            "no checkpoints are stored here",
            path=location(store),
            expected=f"a store, with its file {IDENTITY_NAME} or with experiments",
            got=f"{len(entries)} other files and folders" if entries else "nothing",
            hint="Name the checkpoint_dir that the training used, or mount its disk; `ckpt init` creates a new store.",
        )
    return names


def check_experiment_exists(store: Store, name: str, *, backups: Store | None = None) -> str:
    """Return ``name`` if the store holds that experiment, or the store of its ``backups``; else raise.

    The error names what is there.
    """
    check_experiment_name(name)
    if is_experiment(store, name):  # to ask for all takes longer the more there are
        return name
    known = list_experiments(store, missing_ok=backups is not None)
    if name not in known and backups is not None:  # all the checkpoints may be gone
        known = sorted({*known, *list_experiments(backups, missing_ok=True)}) or list_experiments(store)
    if name not in known:
        raise ExperimentNotFoundError(
            f"there is no experiment {name!r}",
            path=location(store),
            hint=did_you_mean(name, known, otherwise=f"The store holds: {', '.join(known[:10]) or 'none yet'}."),
        )
    return name


def is_experiment(store: Store, name: str) -> bool:
    """Tell whether the folder of this name holds checkpoints, or their backups."""
    try:
        check_experiment_name(name)
    except InvalidNameError:
        return False
    # All the checkpoints may be gone, but for their backups.
    return any(_holds_checkpoints(Experiment(store, path, name)) for path in (name, f"{name}/{BACKUPS_NAME}"))


def _holds_checkpoints(experiment: Experiment) -> bool:
    if experiment.store.stat(experiment.key(SNAPSHOT_NAME)) is not None:
        return True
    entries = experiment.store.list(experiment.path)
    return any(_is_manifest(experiment, item) for item in manifest_entries(entries, experiment.path))


def _is_manifest(experiment: Experiment, checkpoint_id: str) -> bool:
    """Tell whether a record is, or was, that of a checkpoint: claims may be left of one that never was."""
    try:
        return isinstance(experiment.read(checkpoint_id).record, Manifest)
    except (IntegrityError, UnsupportedSchemaError):
        return True
