"""All experiments of a store at once: from the database, after what has changed was read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import StoreError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.listing import list_experiments
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.experiment.stored_index import store_name
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.selection import Selection, select_from
from ckpt_lib.store import Store, open_store

Step = Callable[[int, int], object]
"""Is told how many of how many experiments were looked at."""


def describe_experiments(
    config: CheckpointConfig | None = None, *, sync: bool = True, step: Step | None = None
) -> list[ExperimentOverview]:
    """Return what each experiment of a store holds, by name: that of ``config``, by default the folder ``checkpoints``.

    With ``sync``, experiments that have changed are read again first. Without, the store is not asked, and each answer
    is as old as its ``as_of`` says; a store that the index does not know is read nevertheless. Raises
    :class:`~ckpt_lib.errors.NotAStoreError` as :func:`~ckpt_lib.list_experiments`.
    """
    from ckpt_lib.index.database import database_at  # SQLAlchemy takes a moment to load

    config = config or CheckpointConfig()
    store, database = open_store(config.checkpoint_dir), database_at(config.index_url)
    folders = {} if sync else database.folders(store_name(store))
    known = [folder.overview for path, folder in folders.items() if path == folder.overview.experiment_name]
    return known or _synced(store, config.index_url, step)


def find_checkpoints(
    config: CheckpointConfig | None = None, *, sync: bool = True, **asked: Any
) -> list[CheckpointMetadata]:
    """Return checkpoints of all experiments of a store, as :meth:`~ckpt_lib.CheckpointManager.list_checkpoints` does.

    They are in the order of their experiments' names, and of saving, unless told otherwise. ``after`` is the name of an
    experiment and an id, with a slash between them. ``sync`` is that of :func:`describe_experiments`.
    """
    from ckpt_lib.index.database import database_at

    config, selection = config or CheckpointConfig(), Selection.of(**asked)
    overviews = describe_experiments(config, sync=sync)
    store = open_store(config.checkpoint_dir)
    found = database_at(config.index_url).find(store_name(store), selection)
    if found is not None:
        return found
    names = [item.experiment_name for item in overviews]
    return select_from([checkpoint for name in names for checkpoint in _described(store, name)], selection)


def _described(store: Store, name: str) -> list[CheckpointMetadata]:
    described = Catalogue(Experiment(store, name, name)).describe_all()
    return [checkpoint.model_copy(update={"experiment_name": name}) for checkpoint in described]


def reindex(config: CheckpointConfig, *, step: Step | None = None) -> list[ExperimentOverview]:
    """Forget all that the index knows of the store, and read everything again.

    A crash leaves an index that knows less, and the next question reads what is missing. Raises as
    :func:`describe_experiments`, and :class:`~ckpt_lib.errors.StoreError` if the index cannot be used.
    """
    from ckpt_lib.index.database import database_at

    database = database_at(config.index_url)
    store = open_store(config.checkpoint_dir)
    list_experiments(store)  # a mistyped path forgets nothing
    if not database.is_usable():
        raise StoreError(
            "the index cannot be used",
            path=database.url,
            hint="The warning above says why. Without an index, questions take longer.",
        )
    database.forget(store_name(store))
    return _synced(store, config.index_url, step)


def _synced(store: Store, index_url: str | None, step: Step | None) -> list[ExperimentOverview]:
    from ckpt_lib.index.database import database_at

    database, name_of_store = database_at(index_url), store_name(store)
    names = list_experiments(store)
    known = database.folders(name_of_store)
    found = []
    for number, name in enumerate(names, start=1):
        folder = known.get(name)
        if folder and folder.version is not None and store.folder_version(name) == folder.version:
            found.append(folder.overview)
        else:
            found.append(Experiment(store, name, name, is_indexed=True, index_url=index_url).index.sync())
        if step:
            step(number, len(names))
    database.forget(name_of_store, [path for path in known if path.partition("/")[0] not in names])
    return found
