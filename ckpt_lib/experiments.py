"""Which experiments a store holds."""

from __future__ import annotations

import difflib

from ckpt_lib.errors import ExperimentNotFoundError, InvalidNameError, NotAStoreError
from ckpt_lib.folder import MANIFEST_SUFFIX, SNAPSHOT_NAME, CheckpointFolder, marker_entries
from ckpt_lib.names import check_experiment_name, is_checkpoint_id
from ckpt_lib.store import Store


def list_experiments(store: Store, *, missing_ok: bool = False) -> list[str]:
    """The names of the experiments in ``store``, sorted.

    Raises :class:`NotAStoreError` when there are files but no experiment among them, and, unless ``missing_ok``, when
    there is nothing at all: a mistyped path must not look like an empty store.
    """
    entries = store.entries("")
    if missing_ok and not entries:
        return []
    names = [entry.name for entry in entries if entry.is_folder and _is_experiment(store, entry.name)]
    if not names:
        raise NotAStoreError(
            "no checkpoints are stored here",
            path=store.location(""),
            expected="a folder of experiments, each with checkpoints and their manifests",
            got=f"{len(entries)} other files and folders" if entries else "nothing",
            hint="Name the checkpoint_dir that the training used.",
        )
    return names


def check_experiment_exists(store: Store, name: str) -> str:
    """Return ``name`` if the store holds that experiment, else raise, naming what is there."""
    check_experiment_name(name)
    known = list_experiments(store)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise ExperimentNotFoundError(
            f"there is no experiment {name!r}",
            path=store.location(""),
            hint=f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known[:10])}.",
        )
    return name


def _is_experiment(store: Store, name: str) -> bool:
    try:
        check_experiment_name(name)
    except InvalidNameError:
        return False
    folder = CheckpointFolder(store, name)
    entries = store.entries(folder.path)
    return bool(marker_entries(entries, "quarantined")) or any(
        entry.name == SNAPSHOT_NAME or is_checkpoint_id(entry.name.removesuffix(MANIFEST_SUFFIX)) for entry in entries
    )
