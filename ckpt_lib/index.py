"""``Index``: what checkpoints a folder holds. A cache of its manifests, and never the authority over them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    StoreError,
    StoreUnavailableError,
    UnsupportedSchemaError,
)
from ckpt_lib.folder import CheckpointFolder, manifest_entries
from ckpt_lib.metadata import SCHEMA_VERSION, Manifest
from ckpt_lib.names import CheckpointId
from ckpt_lib.store import Entry


@dataclass(frozen=True)
class View:
    """A folder's manifests at one moment, oldest first, and what was beside them, all from one listing."""

    manifests: tuple[Manifest, ...]
    unreadable: tuple[CheckpointError, ...]
    entries: Mapping[str, Entry]

    def is_complete(self, manifest: Manifest) -> bool:
        """As :meth:`CheckpointFolder.is_complete`, without asking the store again."""
        entry = self.entries.get(manifest.payload.name)
        return entry is not None and not entry.is_folder and entry.size_bytes == manifest.payload.size_bytes


class Index:
    """The manifests of one folder, oldest first. Each question first reads again the manifests that changed."""

    def __init__(self, folder: CheckpointFolder, backups: Index | None = None) -> None:
        self._folder = folder
        self._backups = backups
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, Manifest | CheckpointError]] = {}

    def view(self) -> View:
        """What is there now."""
        with self._lock:
            entries = self._folder.store.entries(self._folder.path)
            found: dict[str, tuple[str, Manifest | CheckpointError]] = {}
            for checkpoint_id, entry in manifest_entries(entries).items():
                known = self._found.get(checkpoint_id)
                if known and known[0] == entry.version and not isinstance(known[1], StoreError):
                    found[checkpoint_id] = known
                elif (read := self._read(checkpoint_id)) is not None:
                    found[checkpoint_id] = (entry.version, read)
            self._found = found
        items = [item for _, item in found.values()]
        manifests = [item for item in items if isinstance(item, Manifest)]
        manifests.sort(key=lambda manifest: (manifest.sequence, manifest.checkpoint_id))
        unreadable = [item for item in items if isinstance(item, CheckpointError)]
        return View(tuple(manifests), tuple(unreadable), {entry.name: entry for entry in entries})

    def _read(self, checkpoint_id: str) -> Manifest | CheckpointError | None:
        try:
            return self._folder.read_manifest(checkpoint_id)
        except CheckpointNotFoundError:  # deleted since the folder was listed
            return None
        except StoreUnavailableError:  # the whole store is away: no answer is better than half of one
            raise
        except (IntegrityError, UnsupportedSchemaError, StoreError) as error:
            error.checkpoint_id = checkpoint_id
            return error

    def manifests(self) -> list[Manifest]:
        """Every readable manifest, by sequence."""
        return list(self.view().manifests)

    def unreadable(self) -> list[CheckpointError]:
        """Why each manifest that cannot be read cannot; ``checkpoint_id`` tells whose it is."""
        return list(self.view().unreadable)

    def get(self, checkpoint_id: str) -> Manifest:
        """One manifest, read again from the store. Raises what :meth:`CheckpointFolder.read_manifest` does."""
        return self._folder.read_manifest(checkpoint_id)

    def next_sequence(self) -> int:
        """The sequence the next commit gets; ask under the folder's lock.

        It is larger than that of any checkpoint that may come back: damaged ones, and deleted ones with a backup.
        """
        found = self.view()
        sequences = [manifest.sequence for manifest in (*found.manifests, *self.backed_up())]
        return max(sequences, default=0) + len(found.unreadable) + 1

    def next_suffix(self, epoch: int, step: int, timestamp: datetime) -> int:
        """The suffix that tells a new id from all of the same epoch, step and second; 0, for none, if there are none.

        Larger than each, and not the first free one: retention may have freed an id that someone still goes by.
        """
        moment = (epoch, step, timestamp)
        same = [item for item in self.manifests() if (item.epoch, item.step, item.timestamp) == moment]
        suffixes = [CheckpointId.parse(item.checkpoint_id).suffix for item in same]
        return max(1, *suffixes) + 1 if suffixes else 0

    def was_used(self, checkpoint_id: str) -> bool:
        """Whether a deleted checkpoint of that id has a backup, from which it may come back."""
        return any(manifest.checkpoint_id == checkpoint_id for manifest in self.backed_up())

    def backed_up(self) -> list[Manifest]:
        """The backups, as far as their location answers."""
        try:
            return self._backups.manifests() if self._backups else []
        except CheckpointError:  # a backup location that is away must not keep anyone from saving
            return []

    def with_uid(self, uid: str) -> Manifest | None:
        """The checkpoint that is a copy of ``uid``, if there is one."""
        return next((manifest for manifest in self.manifests() if manifest.uid == uid), None)

    def with_idempotency_key(self, key: str | None) -> Manifest | None:
        """The whole checkpoint that an earlier save with this key made, if there is one."""
        for manifest in self.manifests() if key is not None else ():
            if manifest.idempotency_key == key and self._folder.is_complete(manifest):
                return manifest
        return None


def snapshot(manifests: Iterable[Manifest], experiment_name: str) -> bytes:
    """The content of ``checkpoint_metadata.json``: all manifests in one file, for people."""
    described = [
        manifest.describe().model_dump(mode="json", exclude={"is_best", "is_latest"}) for manifest in manifests
    ]
    content = {"schema_version": SCHEMA_VERSION, "experiment_name": experiment_name, "checkpoints": described}
    return json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8") + b"\n"
