"""``Index``: which checkpoints a folder holds. A cache of its records, and never the authority over them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from ckpt_lib.core.manifest import SCHEMA_VERSION, Claim, Manifest
from ckpt_lib.errors import (
    CheckpointError,
    IntegrityError,
    NotAStoreError,
    StoreError,
    StoreUnavailableError,
    UnsupportedSchemaError,
    is_store_failure,
)
from ckpt_lib.experiment.found import Found
from ckpt_lib.experiment.layout import manifest_entries, manifest_name
from ckpt_lib.experiment.stored_index import WORTH_ASKING, StoredIndex, overview_of
from ckpt_lib.experiment.view import View, view_of
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.store.base import Entry, Store

Item = Manifest | Claim | CheckpointError

_LISTING_SHARE = 0.01
"""The part of a run's time that may go into listing anew what its saves know well enough."""
_MOMENT_SECONDS = 0.005
"""A listing that takes no longer is made anew with each save that may be the best; a save takes about as long."""

_VERSION_ATTEMPTS, _PAUSE_SECONDS = 3, 0.0005
"""A folder cannot tell its version while somebody writes to it, which takes microseconds."""


class Index:
    """The records of one folder. Each question first reads again those that changed."""

    def __init__(
        self,
        store: Store,
        path: str,
        experiment_name: str,
        read: Callable[[str], Found],
        stored: StoredIndex | None = None,
    ) -> None:
        self._store = store
        self._path = path
        self._experiment_name = experiment_name
        self._read = read
        self._stored = stored
        self.listing = threading.RLock()
        """Of many threads that find the last listing outdated, the one that holds this lists anew."""
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._found: dict[str, tuple[str, Item]] = {}
        self._last: View | None = None
        self._last_version: str | None = None
        self._last_overview: tuple[View, ExperimentOverview] | None = None
        self._listed_seconds = 0.0
        self._listing_seconds = 0.0
        self._fresh_until = 0.0
        self._largest = 0
        self._is_listed = False
        self._record_count: int | None = None

    def view(self, *, is_noted: bool = False) -> View:
        """Return what is there now; with ``is_noted``, the database knows all of it afterwards."""
        with self._lock:
            began, listed_seconds = time.monotonic(), time.time()
            folder_version = self.folder_version()
            started = time.monotonic()
            entries = self._store.list(self._path)
            self._listing_seconds = time.monotonic() - started  # what is read below need not be read the next time
            listed = manifest_entries(entries, self._path)
            self._record_count = len(listed)
            if self._stored:
                known = self._stored.unread(len(listed.keys() - self._found.keys()))
                self._found = {**{item: (found.version, found.record) for item, found in known.items()}, **self._found}
            found = {checkpoint_id: self._item(checkpoint_id, entry) for checkpoint_id, entry in listed.items()}
            self._found = {checkpoint_id: item for checkpoint_id, item in found.items() if item is not None}
            items = [item for _, item in self._found.values()]
            started = time.monotonic()
            self._last = view_of(items, entries, self._below(items), self._path)
            if any(isinstance(item, StoreError) for item in items):
                folder_version = None  # a record that was refused can be read once it is not, without a write
            self._last_version, self._listed_seconds = folder_version, listed_seconds  # once the view is there
            self._listing_seconds += time.monotonic() - started
            self._note_all(self._last)
            if self._stored:
                self._stored.note(self._last, self._found, listed_seconds, folder_version, is_wanted=is_noted)
            now = time.monotonic()
            self._fresh_until = now + (now - began) / _LISTING_SHARE
            return self._last

    def unchanged_view(self) -> View:
        """Return the last listing if nothing was written to the folder since it began, else list anew.

        A file that was altered in place leaves the folder's version as it was.
        """
        version = self.folder_version()
        if version is not None and (view := self.view_at(version)) is not None:
            return view
        with self.listing:
            version = self.folder_version()
            return (None if version is None else self.view_at(version)) or self.view()

    def view_at(self, version: str) -> View | None:
        """Return the last listing if the folder had this version when it began, and damaged records are as they were.

        Whoever mends one by hand may write into the file as it is, which leaves the folder's version.
        """
        view = self._last if self._last_version == version else None
        return view if view is not None and all(map(self._is_still_damaged, view.unreadable)) else None

    def overview_at(self, version: str) -> ExperimentOverview | None:
        """Return what there is in a few numbers, by the last listing if the folder had this version when it began."""
        view = self.view_at(version)
        if view is None:
            return None
        known = self._last_overview
        if known is None or known[0] is not view:
            self._last_overview = known = view, overview_of(view, self._experiment_name, self._listed_seconds)
        return known[1]

    def folder_version(self) -> str | None:
        """Return the version of the folder, where the store tells it and the records are kept by the database."""
        if self._stored is None:
            return None
        with self._asking:  # threads that ask at once would each find the folder locked by another
            for _ in range(_VERSION_ATTEMPTS):
                if (version := self._store.folder_version(self._path)) is not None:
                    return version
                time.sleep(_PAUSE_SECONDS)
        return None

    def has_many(self) -> bool:
        """Tell whether there were so many records when they were last listed that the database answers sooner.

        Lists the folder, and reads nothing, if this process never did.
        """
        if self._record_count is None:
            self._record_count = len(manifest_entries(self._store.list(self._path), self._path))
        return self._record_count >= WORTH_ASKING

    def sync(self) -> ExperimentOverview:
        """List the folder, let the database know all of it, and return what there is in a few numbers."""
        listed_seconds = time.time()
        return overview_of(self.view(is_noted=True), self._experiment_name, listed_seconds)

    def last_with(self, changed: Manifest) -> View:
        """Return :attr:`last`, with ``changed`` as it is now."""
        return (self._last or view_of([], (), (), self._path)).with_changed(changed)

    def affordable_view(self) -> View | None:
        """Return :attr:`last` while another listing would cost more than a hundredth of the time; else list anew.

        A new monitor is known at once: the record of the newest checkpoint, which holds it, is looked at each time.
        """
        newest = self._last.manifests[-1:] if self._last else ()
        is_fresh = time.monotonic() < self._fresh_until and all(map(self.is_unchanged, newest))
        return self._last if is_fresh else self.view_or_last()

    def newer_view(self) -> View | None:
        """Return what is there now where listing it takes a moment, and :meth:`affordable_view` where it takes longer.

        ``None`` when the store has never answered.
        """
        return self.view_or_last() if self._listing_seconds < _MOMENT_SECONDS else self.affordable_view()

    def is_unchanged(self, manifest: Manifest) -> bool:
        """Tell whether the record of a checkpoint is still as this process knows it; asks for its version alone."""
        return self._is_as_known(manifest.checkpoint_id)

    def _is_still_damaged(self, error: CheckpointError) -> bool:
        return error.checkpoint_id is not None and self._is_as_known(error.checkpoint_id)

    def _is_as_known(self, checkpoint_id: str) -> bool:
        try:
            entry = self._store.stat(f"{self._path}/{manifest_name(checkpoint_id)}".lstrip("/"))
        except Exception as error:
            if not is_store_failure(error):
                raise
            return False
        known = self._found.get(checkpoint_id)  # another thread may have listed meanwhile
        return entry is not None and known is not None and entry.version == known[0]

    def view_or_last(self) -> View | None:
        """Return what is there now, or what was when the store last answered; ``None`` when it never has."""
        try:
            return self.view()
        except Exception as error:
            if not is_store_failure(error):
                raise
            return self._last

    @property
    def last(self) -> View | None:
        """The view of the last listing and the saves since then; the store is not asked."""
        return self._last

    def manifests(self) -> list[Manifest]:
        """Return every readable checkpoint that is not deleted, by sequence."""
        return list(self.view().manifests)

    def unreadable(self) -> list[CheckpointError]:
        """Return why each record that cannot be read cannot; ``checkpoint_id`` tells whose it is."""
        return list(self.view().unreadable)

    def next_sequence(self) -> int:
        """Return one more than the largest sequence known; lists the folder only if this process never did."""
        if not self._is_listed:
            self.view()
        with self._lock:
            self._largest += 1
            return self._largest

    def note(self, sequence: int) -> None:
        """Let later saves come after ``sequence``, which was seen elsewhere or was just given."""
        with self._lock:
            self._largest = max(self._largest, sequence)

    def note_rewritten(self, found: Found) -> None:
        """Take in a manifest that was just changed here: the next listing need not read it again."""
        with self._lock:
            self._found[found.manifest.checkpoint_id] = (str(found.version), found.manifest)

    def note_saved(self, manifest: Manifest, version: str) -> None:
        """Take in what was just saved here, so that no listing is needed to know of it.

        ``version`` is that of its record.
        """
        self.note(manifest.sequence)
        with self._lock:
            _, known = self._found.get(manifest.checkpoint_id, ("", None))
            if self._last is None or isinstance(known, Manifest):
                return
            self._found[manifest.checkpoint_id] = (version, manifest)
            self._last = self._last.with_saved(manifest)

    def _note_all(self, view: View) -> None:
        known = (*view.manifests, *view.deleted, *view.purging)
        # A damaged record may come back from a backup: what is saved meanwhile comes after it.
        largest = max((item.sequence for item in known), default=0) + len(view.unreadable)
        self._largest, self._is_listed = max(self._largest, largest), True

    def _below(self, items: Iterable[Item]) -> Iterator[Entry]:
        """Yield what lies in the folders of payloads: the listing above shows only that such a folder is there."""
        manifests = (item for item in items if isinstance(item, Manifest) and item.state != "purging")
        for manifest in manifests:
            if manifest.payload.part:
                with contextlib.suppress(NotAStoreError, FileNotFoundError):  # no folder, or none any more
                    folder = f"{self._path}/{manifest.payload_name}".lstrip("/")
                    yield from self._store.list(folder, recursive=True)

    def _item(self, checkpoint_id: str, entry: Entry) -> tuple[str, Item] | None:
        known = self._found.get(checkpoint_id)
        if known and known[0] == entry.version and not isinstance(known[1], StoreError):
            return known
        item = _outcome(self._read, checkpoint_id)
        return None if item is None else (entry.version, item)


def _outcome(read: Callable[[str], Found], checkpoint_id: str) -> Item | None:
    try:
        return read(checkpoint_id).record
    except StoreUnavailableError:  # the whole store is away: no answer is better than half of one
        raise
    except (IntegrityError, UnsupportedSchemaError, StoreError) as error:
        error.checkpoint_id = checkpoint_id
        return error


def snapshot(manifests: Iterable[Manifest], experiment_name: str) -> bytes:
    """Return the content of ``checkpoint_metadata.json``: all manifests in one file, for people, each on a line."""
    described = (
        manifest.describe().model_dump(mode="json", exclude={"is_best", "is_latest", "is_complete"})
        for manifest in manifests
    )
    head = {"schema_version": SCHEMA_VERSION, "experiment_name": experiment_name}
    # Sorted as manifests are: what was just saved here is in the order of the caller.
    lines = ",\n".join(json.dumps(item, sort_keys=True, ensure_ascii=False) for item in described)
    return f'{json.dumps(head)[:-1]}, "checkpoints": [\n{lines}\n]}}\n'.encode()
