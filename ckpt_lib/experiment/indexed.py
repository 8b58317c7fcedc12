"""``Indexed``: questions about one folder that are answered without reading all of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import manifest_name
from ckpt_lib.experiment.stored_index import StoredIndex
from ckpt_lib.experiment.view import View
from ckpt_lib.index.listing import Found, Known
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.selection import Selection, ordered_from, part_of
from ckpt_lib.store.base import Store

T = TypeVar("T")

_ORDERS_KEPT = 8
_LISTS_BEFORE_ALL_IS_READ = 8
"""After so many lists a process reads all records once, and answers from memory."""


class Orders:
    """What was asked for of one view, all of it and in its order: each page of a list asks again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._view: View | None = None
        self._known: OrderedDict[Selection, list[Manifest]] = OrderedDict()

    def of(self, view: View, selection: Selection) -> list[Manifest]:
        """Return all pages of a list. Raises as :func:`~ckpt_lib.index.selection.select`."""
        asked = replace(selection, after=None, limit=None)
        with self._lock:
            if view is not self._view:
                self._view = view
                self._known.clear()
            if asked in self._known:
                self._known.move_to_end(asked)
                return self._known[asked]
            found = self._known[asked] = ordered_from(view.usable, asked)
            if len(self._known) > _ORDERS_KEPT:
                self._known.popitem(last=False)
            return found


class Indexed:
    """The answers about one folder of what this process has listed, or else of the database. Threads may share it.

    Each is as new as a listing would be: the folder's version is compared before each answer, and the folder is listed
    again if it has changed. Every method returns ``None`` where a listing has to answer: in a folder of few records,
    which it does sooner; and where the store cannot tell versions, or the database is away.
    """

    def __init__(self, store: Store, path: str, index: Index, stored: StoredIndex | None) -> None:
        self._store = store
        self._path = path
        self._index = index
        self._stored = stored
        self._orders = Orders()
        self._lists_by_database = 0

    def find(self, selection: Selection) -> list[CheckpointMetadata] | None:
        """Return the checkpoints that are meant, in their order. Raises as :func:`~ckpt_lib.index.selection.select`."""
        return self._ask(lambda stored, version: self._find(stored, version, selection))

    def overview(self) -> ExperimentOverview | None:
        """Return what there is in a few numbers, with the best and the latest."""
        return self._ask(lambda stored, version: self._index.overview_at(version) or _sound(stored.overview(version)))

    def _ask(self, question: Callable[[StoredIndex, str], T | None]) -> T | None:
        stored = self._stored
        if stored is None or not stored.is_kept or not self._index.has_many():
            return None
        if (version := self._index.folder_version()) is None:
            return None
        if (answer := question(stored, version)) is not None:
            return answer
        with self._index.listing:
            if (answer := self._answer(stored, question)) is None:
                self._list_anew()
                answer = self._answer(stored, question)
            return answer

    def _answer(self, stored: StoredIndex, question: Callable[[StoredIndex, str], T | None]) -> T | None:
        version = self._index.folder_version()
        return None if version is None else question(stored, version)

    def _list_anew(self) -> None:
        """List the folder. A process that has done so before has no need of the database to know of it."""
        if self._index.last is None:
            self._index.sync()
        else:
            self._index.view()

    def _find(self, stored: StoredIndex, version: str, selection: Selection) -> list[CheckpointMetadata] | None:
        view = self._index.view_at(version)
        if view is None and self._lists_by_database >= _LISTS_BEFORE_ALL_IS_READ:
            view = self._index.unchanged_view()
        if view is not None:
            return self._part_of(view, selection)
        self._lists_by_database += 1
        return self._described(stored.find(version, selection))

    def _part_of(self, view: View, selection: Selection) -> list[CheckpointMetadata] | None:
        """Describe what is meant; ``None`` if a record was altered in place, which leaves the folder's version."""
        found = part_of(self._orders.of(view, selection), selection)
        if not all(map(self._index.is_unchanged, found)):
            return None
        latest = view.usable[-1] if view.usable else None
        return [
            item.describe(is_best=item is view.best, is_latest=item is latest, is_complete=self._is_complete(item))
            for item in found
        ]

    def _described(self, found: Found | None) -> list[CheckpointMetadata] | None:
        """Describe what was found; ``None`` if a record was altered in place, which leaves the folder's version."""
        if found is None or _sound(found.overview) is None or not all(map(self._is_as_known, found.records)):
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


def _sound(overview: ExperimentOverview | None) -> ExperimentOverview | None:
    """Return what the database knows of a folder; ``None`` where a record could not be read, as it may be by now."""
    return overview if overview is not None and not overview.unreadable_checkpoints else None
