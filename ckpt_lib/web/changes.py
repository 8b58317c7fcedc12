"""What changes in the records of an experiment, whoever changes it, told from two listings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import IntegrityError, UnsupportedSchemaError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import manifest_entries
from ckpt_lib.store.base import Entry, Store

Condition = Literal["absent", "deleted", "stored", "damaged"]
ChangeKind = Literal[
    "checkpoint.saved",
    "checkpoint.edited",
    "checkpoint.damaged",
    "checkpoint.repaired",
    "checkpoint.deleted",
    "checkpoint.undeleted",
]


class Seen(NamedTuple):
    """The record of a checkpoint as it was when it was looked at."""

    version: str
    condition: Condition
    is_leaving: bool = False
    """Whether a deletion of it had begun, which may be given up yet."""


class Change(NamedTuple):
    """One checkpoint that is not as it was."""

    kind: ChangeKind
    checkpoint_id: str


def kind_of(before: Seen | None, now: Seen | None) -> ChangeKind | None:
    """Return what became of a checkpoint; ``None`` for what readers of the store do not see."""
    was = before.condition if before else "absent"
    is_now = now.condition if now else "absent"
    if is_now == "stored":
        if was == "stored":
            return None if now and now.is_leaving else "checkpoint.edited"
        named: dict[Condition, ChangeKind] = {"absent": "checkpoint.saved", "deleted": "checkpoint.undeleted"}
        return named.get(was, "checkpoint.repaired")
    if is_now == "damaged":
        return None if was == "damaged" else "checkpoint.damaged"
    return "checkpoint.deleted" if was in ("stored", "damaged") else None


class Watched:
    """The records of one experiment as they were when they were last looked at."""

    def __init__(self, config: CheckpointConfig, store: Store, name: str) -> None:
        self._experiment = Experiment(store, name, name, is_indexed=True, index_url=config.index_url)
        self._seen: dict[str, Seen] = {}
        self._folder_version: str | None = None

    def note_present(self) -> None:
        """Take what is there for known. Raises :class:`~ckpt_lib.errors.StoreError`."""
        version = self._experiment.store.folder_version(self._experiment.path)
        view = self._experiment.index.view()
        entries = manifest_entries(view.entries.values(), self._experiment.path)
        found: dict[str, Seen] = {name: Seen(entry.version, "absent") for name, entry in entries.items()}
        for error in view.unreadable:
            if error.checkpoint_id in found:
                found[error.checkpoint_id] = found[error.checkpoint_id]._replace(condition="damaged")
        for manifest in (*view.manifests, *view.deleted):
            if manifest.checkpoint_id in found:
                found[manifest.checkpoint_id] = _seen(manifest, found[manifest.checkpoint_id].version)
        self._seen, self._folder_version = found, version

    def changes(self, *, lists_anyway: bool) -> list[Change]:
        """Return what has changed since the last call, without listing a folder that says that nothing has.

        ``lists_anyway`` lists one that cannot say. Raises :class:`~ckpt_lib.errors.StoreError`, after which the next
        call returns the same changes.
        """
        version = self._experiment.store.folder_version(self._experiment.path)
        if version == self._folder_version and not (version is None and lists_anyway):
            return []
        entries = manifest_entries(self._experiment.store.list(self._experiment.path), self._experiment.path)
        now = self._looked_at(entries)
        found = _differences(self._seen, now)
        self._seen, self._folder_version = now, version
        return found

    def _looked_at(self, entries: Mapping[str, Entry]) -> dict[str, Seen]:
        """Return the records of a listing; those of known versions are not read again."""
        now = {}
        for checkpoint_id, entry in entries.items():
            known = self._seen.get(checkpoint_id)
            now[checkpoint_id] = known if known and known.version == entry.version else self._read(checkpoint_id, entry)
        return now

    def _read(self, checkpoint_id: str, entry: Entry) -> Seen:
        try:
            record = self._experiment.read(checkpoint_id).record
        except (IntegrityError, UnsupportedSchemaError):
            return Seen(entry.version, "damaged")
        return _seen(record, entry.version) if isinstance(record, Manifest) else Seen(entry.version, "absent")


def _seen(manifest: Manifest, version: str) -> Seen:
    if manifest.state == "deleted":
        return Seen(version, "deleted")
    if not manifest.is_visible:
        return Seen(version, "absent")
    return Seen(version, "damaged" if manifest.quarantined else "stored", is_leaving=manifest.state == "leaving")


def _differences(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> list[Change]:
    ids: Iterable[str] = sorted({*before, *now})
    kinds = ((name, kind_of(before.get(name), now.get(name))) for name in ids if before.get(name) != now.get(name))
    return [Change(kind, name) for name, kind in kinds if kind is not None]
