"""``Index``: what checkpoints a folder holds. A cache of its manifests, and never the authority over them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count

from ckpt_lib.core.manifest import SCHEMA_VERSION, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    StoreError,
    StoreUnavailableError,
    UnsupportedSchemaError,
    is_store_failure,
)
from ckpt_lib.experiment.layout import CheckpointFolder, Mark, manifest_entries, marker_entries, names_of
from ckpt_lib.store import Entry

_GONE: tuple[Mark, Mark] = ("deleted", "quarantined")
LAST_SEQUENCE = 10**15
"""A larger one says only that its checkpoint is newer than all of another folder, which could not be looked at."""


@dataclass(frozen=True)
class View:
    """A folder's manifests at one moment, oldest first, and what was beside them, all from one listing."""

    manifests: tuple[Manifest, ...]
    unreadable: tuple[CheckpointError, ...]
    deleted: tuple[Manifest, ...]
    """Deleted ones that may still be brought back."""
    quarantined: tuple[Manifest, ...]
    """Those that were set aside and whose manifest can be read."""
    entries: Mapping[str, Entry]

    def is_complete(self, manifest: Manifest) -> bool:
        """As :meth:`CheckpointFolder.is_complete`, without asking the store again."""
        entry = self.entries.get(manifest.payload.name)
        return entry is not None and not entry.is_folder and entry.size_bytes == manifest.payload.size_bytes


class Index:
    """The manifests of one folder, oldest first. Each question first reads again the manifests that changed.

    ``stranded`` is the index of a folder whose checkpoints will come here: new ones take neither their ids nor their
    places in the order.
    """

    def __init__(
        self, folder: CheckpointFolder, backups: Index | None = None, *, stranded: Index | None = None
    ) -> None:
        self._folder = folder
        self._backups = backups
        self._stranded = stranded
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, Manifest | CheckpointError]] = {}  # by file name
        self._last: View | None = None

    def view(self) -> View:
        """What is there now."""
        with self._lock:
            entries = self._folder.store.entries(self._folder.path)
            listed = manifest_entries(entries)
            found: dict[str, tuple[str, Manifest | CheckpointError]] = {}
            live = self._update(found, listed, self._folder.read_manifest)
            deleted, quarantined = (
                self._update(found, _alone(entries, mark, listed), partial(self._folder.read_marker, mark=mark))
                for mark in _GONE
            )
            self._found = found
            self._last = View(
                _in_order(live),
                tuple(item for item in live if isinstance(item, CheckpointError)),
                _in_order(deleted),
                _in_order(quarantined),
                {entry.name: entry for entry in entries},
            )
            return self._last

    def last_view(self) -> View | None:
        """What is there now, or what was when the store last answered; ``None`` when it never has."""
        try:
            return self.view()
        except Exception as error:
            if not is_store_failure(error):
                raise
            return self._last

    def _update(
        self,
        found: dict[str, tuple[str, Manifest | CheckpointError]],
        entries: Mapping[str, Entry],
        read: Callable[[str], Manifest],
    ) -> list[Manifest | CheckpointError]:
        """What the files say, read again if they changed; it is also noted in ``found``."""
        items = []
        for checkpoint_id, entry in entries.items():
            known = self._found.get(entry.name)
            if not (known and known[0] == entry.version and not isinstance(known[1], StoreError)):
                item = _outcome(read, checkpoint_id)
                if item is None:
                    continue
                known = (entry.version, item)
            found[entry.name] = known
            items.append(known[1])
        return items

    def manifests(self) -> list[Manifest]:
        """Every readable manifest, by sequence."""
        return list(self.view().manifests)

    def unreadable(self) -> list[CheckpointError]:
        """Why each manifest that cannot be read cannot; ``checkpoint_id`` tells whose it is."""
        return list(self.view().unreadable)

    def get(self, checkpoint_id: str) -> Manifest:
        """One manifest, read again from the store. Raises what :meth:`CheckpointFolder.read_manifest` does."""
        return self._folder.read_manifest(checkpoint_id)

    def next_place(self, wanted: CheckpointId, suffix: str, *, is_known: bool = False) -> tuple[str, int]:
        """The id and the sequence that the next commit gets; ask under the folder's lock.

        A new id gets a suffix larger than that of everything of the same epoch, step and second, deleted ones and
        backups included: retention may have freed an id that someone still goes by. One that ``is_known`` elsewhere
        stays as it is if nothing here has it. The sequence is larger than that of anything that may come back.
        """
        view, elsewhere = self.view(), [*self.backed_up(), *([] if is_known else self._coming())]
        known = [*view.manifests, *view.deleted, *view.quarantined, *elsewhere]
        lost = len(view.unreadable) + len(marker_entries(view.entries.values(), "quarantined"))
        sequence = max((manifest.sequence for manifest in known), default=0) + lost + 1
        moment = (wanted.epoch, wanted.step, wanted.timestamp)
        same = {item.checkpoint_id for item in known if (item.epoch, item.step, item.timestamp) == moment}

        def is_free(checkpoint_id: str) -> bool:
            return checkpoint_id not in same and names_of(checkpoint_id, suffix).isdisjoint(view.entries)

        if is_free(str(wanted)) and (is_known or not same):
            return str(wanted), sequence
        first = max((CheckpointId.parse(checkpoint_id).suffix for checkpoint_id in same), default=1)
        first = max(first, 1) + 1
        ids = (str(CheckpointId(*moment, number)) for number in count(first))
        return next(filter(is_free, ids)), sequence

    def has_place_for(self, manifest: Manifest) -> bool:
        """Whether one from elsewhere may keep its sequence: nothing here has it, and its parent comes before."""
        view = self.view()
        known = (*view.manifests, *view.deleted, *self.backed_up())
        if manifest.sequence > LAST_SEQUENCE or view.unreadable:
            return False
        return not any(
            item.sequence == manifest.sequence
            or (item.checkpoint_id == manifest.parent_id and item.sequence > manifest.sequence)
            for item in known
        )

    def _coming(self) -> list[Manifest]:
        """What will come here from another folder and knows its place."""
        view = self._stranded.last_view() if self._stranded else None
        return [item for item in view.manifests if item.sequence <= LAST_SEQUENCE] if view else []

    def backed_up(self) -> list[Manifest]:
        """The backups, as far as their location answers."""
        try:
            return self._backups.manifests() if self._backups else []
        except (CheckpointError, OSError):  # a backup location that is away must not keep anyone from saving
            return []

    def set_aside(self) -> list[str]:
        """The ids of the checkpoints in quarantine."""
        return list(marker_entries(self.view().entries.values(), "quarantined"))

    def with_uid(self, uid: str) -> Manifest | None:
        """The checkpoint that is a copy of ``uid``, if there is one."""
        return next((manifest for manifest in self.manifests() if manifest.uid == uid), None)

    def with_idempotency_key(self, key: str | None) -> Manifest | None:
        """The whole checkpoint that an earlier save with this key made, if there is one."""
        for manifest in self.manifests() if key is not None else ():
            if manifest.idempotency_key == key and self._folder.is_complete(manifest):
                return manifest
        return None


def _outcome(read: Callable[[str], Manifest], checkpoint_id: str) -> Manifest | CheckpointError | None:
    try:
        return read(checkpoint_id)
    except CheckpointNotFoundError:  # deleted since the folder was listed
        return None
    except StoreUnavailableError:  # the whole store is away: no answer is better than half of one
        raise
    except (IntegrityError, UnsupportedSchemaError, StoreError) as error:
        error.checkpoint_id = checkpoint_id
        return error


def _alone(entries: Iterable[Entry], mark: Mark, listed: Container[str]) -> dict[str, Entry]:
    """The markers that stand for a checkpoint; beside a manifest they mean nothing."""
    found = marker_entries(entries, mark).items()
    return {checkpoint_id: entry for checkpoint_id, entry in found if checkpoint_id not in listed}


def _in_order(items: Iterable[Manifest | CheckpointError]) -> tuple[Manifest, ...]:
    manifests = [item for item in items if isinstance(item, Manifest)]
    return tuple(sorted(manifests, key=lambda manifest: (manifest.sequence, manifest.checkpoint_id)))


def snapshot(manifests: Iterable[Manifest], experiment_name: str) -> bytes:
    """The content of ``checkpoint_metadata.json``: all manifests in one file, for people."""
    described = [
        manifest.describe().model_dump(mode="json", exclude={"is_best", "is_latest"}) for manifest in manifests
    ]
    content = {"schema_version": SCHEMA_VERSION, "experiment_name": experiment_name, "checkpoints": described}
    return json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"
