"""``Indexed``: questions about one folder that the database answers without reading all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import manifest_name
from ckpt_lib.experiment.stored_index import StoredIndex
from ckpt_lib.index.listing import Found, Known
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.selection import Selection
from ckpt_lib.store.base import Store

T = TypeVar("T")


class Indexed:
    """The answers of the database about one folder. Threads may share it.

    Each is as new as a listing would be: the folder's version shows whether anything was written since the database
    took it in, and then it is brought up to date first. Every method returns ``None`` where a listing has to answer: in
    a folder of few records, which it does sooner; and where the store cannot tell versions, or the database is away.
    """

    def __init__(self, store: Store, path: str, index: Index, stored: StoredIndex | None) -> None:
        self._store = store
        self._path = path
        self._index = index
        self._stored = stored
        self._syncing = threading.Lock()

    def find(self, selection: Selection) -> list[CheckpointMetadata] | None:
        """Return the checkpoints that are meant, in their order. Raises as :func:`~ckpt_lib.index.selection.select`."""
        return self._ask(lambda stored, version: self._described(stored.find(version, selection)))

    def overview(self) -> ExperimentOverview | None:
        """Return what there is in a few numbers, with the best and the latest."""
        return self._ask(lambda stored, version: stored.overview(version))

    def _ask(self, question: Callable[[StoredIndex, str], T | None]) -> T | None:
        stored = self._stored
        if stored is None or not stored.is_kept or not self._index.has_many():
            return None
        if (version := self._index.folder_version()) is None:
            return None
        if (answer := question(stored, version)) is not None:
            return answer
        with self._syncing:  # of many threads that find the database outdated, one brings it up to date
            if (answer := self._answer(stored, question)) is None:
                self._index.sync()
                answer = self._answer(stored, question)
            return answer

    def _answer(self, stored: StoredIndex, question: Callable[[StoredIndex, str], T | None]) -> T | None:
        version = self._index.folder_version()
        return None if version is None else question(stored, version)

    def _described(self, found: Found | None) -> list[CheckpointMetadata] | None:
        """Describe what was found; ``None`` if a record was altered in place, which leaves the folder's version."""
        if found is None or not all(map(self._is_as_known, found.records)):
            return None
        best, latest = found.overview.best_checkpoint, found.overview.latest_checkpoint
        return [
            item.describe(
                is_best=item.checkpoint_id == best,
                is_latest=item.checkpoint_id == latest,
                is_complete=self._is_complete(item),
            )
            for item in (known.record for known in found.records)
            if isinstance(item, Manifest)
        ]

    def _is_as_known(self, known: Known) -> bool:
        entry = self._store.stat(self._key(manifest_name(known.record.checkpoint_id)))
        return entry is not None and entry.version == known.version and isinstance(known.record, Manifest)

    def _is_complete(self, manifest: Manifest) -> bool:
        entries = ((file, self._store.stat(self._key(file.name))) for file in manifest.files)
        return all(entry is not None and entry.size_bytes == file.size_bytes for file, entry in entries)

    def _key(self, name: str) -> str:
        return f"{self._path}/{name}".lstrip("/")
