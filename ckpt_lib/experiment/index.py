"""``Index``: which checkpoints a folder holds. A cache of its records, and never the authority over them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from ckpt_lib.core.manifest import SCHEMA_VERSION, Claim, FileEntry, Manifest
from ckpt_lib.errors import (
    CheckpointError,
    IntegrityError,
    StoreError,
    StoreUnavailableError,
    UnsupportedSchemaError,
    is_store_failure,
)
from ckpt_lib.experiment.layout import FOLDER_SUFFIX, manifest_entries, manifest_name
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.store.base import Entry, Store

if TYPE_CHECKING:
    from ckpt_lib.experiment.experiment import Found

Item = Manifest | Claim | CheckpointError

_LISTING_SHARE = 0.01
"""The part of a run's time that may go into listing anew what its saves know well enough."""


@dataclass(frozen=True)
class View:
    """A folder's checkpoints at one moment, oldest first, and what was beside them, all from one listing."""

    manifests: tuple[Manifest, ...]
    """Those that readers see: live ones, and those that may be about to leave."""
    deleted: tuple[Manifest, ...]
    """Deleted ones that may still be brought back."""
    purging: tuple[Manifest, ...]
    claims: tuple[Claim, ...]
    unreadable: tuple[CheckpointError, ...]
    entries: Mapping[str, Entry]
    """Every file and folder, by key."""
    path: str = ""
    """The folder."""
    whole: tuple[Manifest, ...] = ()
    """Those of ``usable`` whose files are all there, with the right sizes."""
    best: Manifest | None = None
    """The best of ``usable``, by the measure that the newest of them records."""

    @property
    def usable(self) -> tuple[Manifest, ...]:
        """Those that readers are shown: not in quarantine."""
        return tuple(item for item in self.manifests if item.quarantined is None)

    @property
    def quarantined(self) -> tuple[Manifest, ...]:
        return tuple(item for item in self.manifests if item.quarantined)

    @property
    def valid(self) -> tuple[Manifest, ...]:
        """Those that others may rely on."""
        return tuple(item for item in self.manifests if item.is_valid)

    def is_complete(self, manifest: Manifest) -> bool:
        """Tell whether each payload file is there with the right size; of files in a folder, that there is a folder."""
        return all(self._holds(file) for file in manifest.files)

    def _holds(self, file: FileEntry) -> bool:
        wanted = _listed_as(file, self.path)
        entry = self.entries.get(wanted.key)
        return entry is not None and entry.size_bytes == wanted.size_bytes

    def with_saved(self, manifest: Manifest) -> View:
        """Return this view with one more checkpoint."""
        files = (_listed_as(file, self.path) for file in manifest.files)
        manifests = (*self.manifests, manifest)
        later = replace(
            self,
            manifests=manifests,
            claims=tuple(claim for claim in self.claims if claim.checkpoint_id != manifest.checkpoint_id),
            entries={**self.entries, **{entry.key: entry for entry in files}},
            whole=(*self.whole, manifest),
        )
        newest = self.manifests[-1:]
        if manifest.quarantined or any(
            item.monitor != manifest.monitor or _position(item) > _position(manifest) for item in newest
        ):
            return _with_answers(replace(later, manifests=tuple(in_order(manifests))))
        return replace(later, best=best_of([*filter(None, [self.best]), manifest]))


class Index:
    """The records of one folder. Each question first reads again those that changed."""

    def __init__(self, store: Store, path: str, read: Callable[[str], Found]) -> None:
        self._store = store
        self._path = path
        self._read = read
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, Item]] = {}
        self._last: View | None = None
        self._fresh_until = 0.0
        self._largest = 0
        self._is_listed = False

    def view(self) -> View:
        """Return what is there now."""
        with self._lock:
            started = time.monotonic()
            entries = self._store.list(self._path)
            listed = manifest_entries(entries, self._path)
            found = {checkpoint_id: self._item(checkpoint_id, entry) for checkpoint_id, entry in listed.items()}
            self._found = {checkpoint_id: item for checkpoint_id, item in found.items() if item is not None}
            self._last = _view([item for _, item in self._found.values()], entries, self._path)
            self._note_all(self._last)
            now = time.monotonic()
            self._fresh_until = now + (now - started) / _LISTING_SHARE
            return self._last

    def last_with(self, changed: Manifest) -> View:
        """Return :attr:`last`, with ``changed`` as it is now."""
        last = self._last or _view([], (), self._path)
        if last.usable[-1:] == (changed,):
            return last
        others = [item for item in last.manifests if item.checkpoint_id != changed.checkpoint_id]
        manifests = in_order([*others, changed] if changed.is_visible else others)
        return _with_answers(replace(last, manifests=tuple(manifests)))

    def recent_view(self) -> View | None:
        """Return :attr:`last` while another listing would cost more than a hundredth of the time; else list anew.

        A new monitor is known at once: the record of the newest checkpoint, which holds it, is looked at each time.
        """
        is_fresh = time.monotonic() < self._fresh_until and self._is_newest_unchanged()
        return self._last if is_fresh else self.last_view()

    def _is_newest_unchanged(self) -> bool:
        newest = self._last.manifests[-1:] if self._last else ()
        for manifest in newest:
            try:
                entry = self._store.stat(f"{self._path}/{manifest_name(manifest.checkpoint_id)}".lstrip("/"))
            except Exception as error:
                if not is_store_failure(error):
                    raise
                return False
            known = self._found.get(manifest.checkpoint_id)  # another thread may have listed meanwhile
            return entry is not None and known is not None and entry.version == known[0]
        return True

    def last_view(self) -> View | None:
        """Return what is there now, or what was when the store last answered; ``None`` when it never has."""
        try:
            return self.view()
        except Exception as error:
            if not is_store_failure(error):
                raise
            return self._last

    @property
    def last(self) -> View | None:
        """What the last listing and the saves since then showed; the store is not asked."""
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

    def _item(self, checkpoint_id: str, entry: Entry) -> tuple[str, Item] | None:
        known = self._found.get(checkpoint_id)
        if known and known[0] == entry.version and not isinstance(known[1], StoreError):
            return known
        item = _outcome(self._read, checkpoint_id)
        return None if item is None else (entry.version, item)


def _listed_as(file: FileEntry, path: str) -> Entry:
    """Return what a listing of the folder ``path`` shows of a payload file: of one in a folder, that folder."""
    folder, is_below, _ = file.name.partition(FOLDER_SUFFIX)
    start = f"{path}/" if path else ""
    return Entry(f"{start}{folder}{is_below}", 0 if is_below else file.size_bytes)


def _outcome(read: Callable[[str], Found], checkpoint_id: str) -> Item | None:
    try:
        return read(checkpoint_id).record
    except StoreUnavailableError:  # the whole store is away: no answer is better than half of one
        raise
    except (IntegrityError, UnsupportedSchemaError, StoreError) as error:
        error.checkpoint_id = checkpoint_id
        return error


def _view(items: list[Item], entries: Iterable[Entry], path: str) -> View:
    manifests = in_order(item for item in items if isinstance(item, Manifest))
    view = View(
        tuple(item for item in manifests if item.is_visible),
        tuple(item for item in manifests if item.state == "deleted"),
        tuple(item for item in manifests if item.state == "purging"),
        tuple(item for item in items if isinstance(item, Claim)),
        tuple(item for item in items if isinstance(item, CheckpointError)),
        {entry.key: entry for entry in entries},
        path,
    )
    return _with_answers(view)


def _with_answers(view: View) -> View:
    """Return ``view`` with what each save asks of it."""
    usable = view.usable
    return replace(view, whole=tuple(item for item in usable if view.is_complete(item)), best=best_of(usable))


def best_of(manifests: Sequence[Manifest]) -> Manifest | None:
    """Return the best by the measure that the newest, which is the last, records."""
    best = ranked(manifests, manifests[-1].monitor) if manifests else []
    return best[0] if best else None


def in_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Sort by sequence; where two saves did not see each other, by time and ``uid``."""
    return sorted(manifests, key=_position)


def _position(manifest: Manifest) -> tuple[int, datetime, str]:
    return manifest.sequence, manifest.timestamp, manifest.uid


def snapshot(manifests: Iterable[Manifest], experiment_name: str) -> bytes:
    """Return the content of ``checkpoint_metadata.json``: all manifests in one file, for people."""
    described = [
        manifest.describe().model_dump(mode="json", exclude={"is_best", "is_latest"}) for manifest in manifests
    ]
    content = {"schema_version": SCHEMA_VERSION, "experiment_name": experiment_name, "checkpoints": described}
    # Sorted as manifests are: what was just saved here is in the order of the caller.
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode("utf-8") + b"\n"
