"""``StoredIndex``: what the database knows of one folder of records."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.errors import CheckpointError, NotAStoreError
from ckpt_lib.experiment.view import View
from ckpt_lib.index.listing import FolderKey, Found, Known, Listing
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.selection import Selection
from ckpt_lib.store.base import Store
from ckpt_lib.store.identity import read_identity
from ckpt_lib.store.registry import scheme_of

if TYPE_CHECKING:
    from ckpt_lib.index.database import IndexDatabase

WORTH_ASKING = 64
"""For this many records or more, asking the database takes less time than reading them."""


def store_name(store: Store) -> str:
    """Return the name of a store in the database: the same on all machines that reach it by the same URL."""
    owner = platform.node()
    with suppress(NotAStoreError):
        owner = read_identity(store).uid
    return f"{owner} {store.url}".encode(errors="backslashreplace").decode()  # a path need not be valid UTF-8


class StoredIndex:
    """The rows of one folder. A store in memory has none: it ends with its process."""

    def __init__(self, store: Store, path: str, experiment_name: str, index_url: str | None) -> None:
        self._store = store
        self._path = path
        self._experiment_name = experiment_name
        self._index_url = index_url
        self._noted: dict[str, tuple[str, bool]] | None = None
        """The version of each record that the database is known to hold, and whether its payload was complete."""

    @property
    def is_kept(self) -> bool:
        """Whether the database keeps rows for this store."""
        return scheme_of(self._store.url) != "memory"

    @cached_property
    def _key(self) -> FolderKey:
        return FolderKey(store_name(self._store), self._path)

    @property
    def _database(self) -> IndexDatabase:
        from ckpt_lib.index.database import database_at  # SQLAlchemy takes a moment to load

        return database_at(self._index_url)

    def unread(self, unread_count: int) -> Mapping[str, Known]:
        """Return the records that the database knows, if that takes less time than reading ``unread_count`` of them.

        The database is asked once: after that, this process knows as much itself.
        """
        if self._noted is not None or unread_count < WORTH_ASKING or not self.is_kept:
            return {}
        records = self._database.known(self._key)
        self._noted = {checkpoint_id: (known.version, known.is_complete) for checkpoint_id, known in records.items()}
        return records

    def note(
        self,
        view: View,
        found: Mapping[str, tuple[str, Manifest | Claim | CheckpointError]],
        listed_seconds: float,
        folder_version: str | None,
        *,
        is_wanted: bool,
    ) -> None:
        """Write what a listing has found, if that is wanted or much of it is new.

        ``found`` holds each record, or why it cannot be read, with the version of its key.
        """
        if not self.is_kept:
            return
        complete = {manifest.checkpoint_id for manifest in view.whole}
        readable = {
            checkpoint_id: (version, record)
            for checkpoint_id, (version, record) in found.items()
            if not isinstance(record, CheckpointError)
        }
        before = self._noted or {}
        now = {checkpoint_id: (version, checkpoint_id in complete) for checkpoint_id, (version, _) in readable.items()}
        if not is_wanted and len(before.items() ^ now.items()) < WORTH_ASKING:
            return
        records = {
            checkpoint_id: Known(version, record, checkpoint_id in complete)
            for checkpoint_id, (version, record) in readable.items()
        }
        overview = overview_of(view, self._experiment_name, listed_seconds)
        if self._database.note(self._key, Listing(listed_seconds, folder_version, records, overview)):
            self._noted = now

    def find(self, folder_version: str, selection: Selection) -> Found | None:
        """Return the records that are meant; ``None`` unless the database knows the folder as of this version."""
        return self._database.find_in(self._key, folder_version, selection)

    def overview(self, folder_version: str) -> ExperimentOverview | None:
        """Return the folder in a few numbers; ``None`` unless the database knows it as of this version."""
        return self._database.overview_of(self._key, folder_version)


def overview_of(view: View, experiment_name: str, listed_seconds: float) -> ExperimentOverview:
    """Return what lists of experiments show of one whose listing began at this time."""
    newest = view.usable[-1] if view.usable else None
    best = view.best if newest else None
    best_value = best.metrics[newest.monitor.metric] if newest and best else None
    return ExperimentOverview(
        experiment_name=experiment_name,
        total_checkpoints=len(view.usable),
        total_size_bytes=sum(item.size_bytes for item in view.usable),
        latest_checkpoint=newest.checkpoint_id if newest else None,
        latest_timestamp=newest.timestamp if newest else None,
        best_checkpoint=best.checkpoint_id if best else None,
        monitor_metric=newest.monitor.metric if newest else None,
        best_value=None if best_value is None else float(best_value),
        unreadable_checkpoints=len(view.unreadable),
        quarantined_checkpoints=len(view.quarantined),
        as_of=datetime.fromtimestamp(listed_seconds, UTC),
    )
