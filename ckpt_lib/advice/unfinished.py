"""What lies in an experiment's folder and belongs to no checkpoint that is there: leftovers, the trash, lost files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from ckpt_lib.advice.results import Kind, Suggestion
from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import NotAStoreError
from ckpt_lib.experiment.claims import ABANDONED_AFTER_SECONDS, is_dead, is_over
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import FOLDER_SUFFIX, payload_owner
from ckpt_lib.experiment.sweep import is_leftover, is_named
from ckpt_lib.experiment.view import View


@dataclass
class Unfinished:
    """The suggestions, and what has to stay: its name, its bytes and the reason."""

    suggestions: list[Suggestion] = field(default_factory=list)
    kept: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, kind: Kind, name: str, why: str, size_bytes: int) -> None:
        self.suggestions.append(
            Suggestion(kind=kind, name=name, why=why, freed_bytes=size_bytes, certainty="certain", action="empty_trash")
        )


@dataclass(frozen=True)
class UnfinishedFinder:
    """Looks at one view of an experiment. Only records that are no checkpoints are read, and no payload is."""

    experiment: Experiment
    view: View
    trash_seconds: float

    def find(self) -> Unfinished:
        found = Unfinished()
        now = datetime.now(UTC)  # asking the store's clock would write a file
        self._add_claims(found, now)
        for manifest in self.view.purging:
            size_bytes = self.size_of(manifest.removable_names)
            found.add("leftover", manifest.checkpoint_id, "Its deletion did not come to its end.", size_bytes)
        self._add_deleted(found, now)
        for manifest in (*self.view.manifests, *self.view.deleted):
            self._add_next(found, manifest, now)
        self._add_files(found)
        return found

    def size_of(self, names: Iterable[str]) -> int:
        """Return the bytes that are there under these names, of which those that end with ``/`` mean all below."""
        return sum(self._bytes_at(name) for name in names)

    def _bytes_at(self, name: str) -> int:
        key = self.experiment.key(name)
        if name.endswith(FOLDER_SUFFIX):
            with suppress(NotAStoreError, FileNotFoundError):  # no folder, or none any more
                return sum(entry.size_bytes for entry in self.experiment.store.list(key[:-1], recursive=True))
            return 0
        entry = self.view.below.get(key) or self.view.entries.get(key)
        if entry is None and FOLDER_SUFFIX in name:  # the view does not look into each folder
            entry = self.experiment.store.stat(key)
        return entry.size_bytes if entry else 0

    def _add_claims(self, found: Unfinished, now: datetime) -> None:
        for claim in self.view.claims:
            if claim.state == "gone":
                continue
            current = self.experiment.read(claim.checkpoint_id)
            if not isinstance(current.record, Claim) or current.record.state == "gone":
                continue
            size_bytes = self.size_of(current.record.files)
            if current.record.state == "abandoned" or is_dead(current, now):
                why = "A save that did not come to its end, and was not acknowledged."
                found.add("leftover", claim.checkpoint_id, why, size_bytes)
            elif size_bytes:
                found.kept.append((claim.checkpoint_id, size_bytes, "being written"))

    def _add_deleted(self, found: Unfinished, now: datetime) -> None:
        """Add what is in the trash, which stays while no other checkpoint is sound."""
        is_last = not any(item.quarantined is None for item in self.view.whole)
        for manifest in self.view.deleted:
            size_bytes, name = self.size_of(_stored(manifest)), manifest.checkpoint_id
            if is_last:
                found.kept.append((name, size_bytes, "in the trash, and no sound checkpoint is left"))
                continue
            left = duration(self._left_seconds(manifest.deleted_at, now))
            found.add("trash", name, f"It was deleted, and can be brought back for another {left}.", size_bytes)
        for manifest in self.view.manifests:
            if manifest.obsolete:
                self._add_obsolete(found, manifest, is_last=is_last)

    def _add_obsolete(self, found: Unfinished, manifest: Manifest, *, is_last: bool) -> None:
        name = manifest.checkpoint_id
        size_bytes = self.size_of(file.name for item in manifest.obsolete for file in item.files)
        if is_last or not manifest.is_valid or manifest not in self.view.whole:
            found.kept.append((name, size_bytes, "what it held before it was thinned"))
        else:
            undone = "Its thinning was undone; a copy of its payload is left."
            lost = "It was thinned; what it lost can be brought back until the trash is emptied."
            found.add("trash", name, lost if manifest.thinned else undone, size_bytes)

    def _left_seconds(self, since: datetime | None, now: datetime) -> float:
        return ((since or now) + timedelta(seconds=self.trash_seconds) - now).total_seconds()

    def _add_next(self, found: Unfinished, manifest: Manifest, now: datetime) -> None:
        """Add what was written to take the place of a payload."""
        if manifest.next is None:
            return
        current = self.experiment.read(manifest.checkpoint_id)
        payload = current.record.next if isinstance(current.record, Manifest) else None
        if payload is None:
            return
        size_bytes, idle_seconds = self.size_of(payload.files), now.timestamp() - current.modified_seconds
        if payload.abandoned or is_over(payload.owner, payload.claim, idle_seconds, ABANDONED_AFTER_SECONDS):
            why = "A payload that was to take the place of this one was not finished."
            found.add("leftover", manifest.checkpoint_id, why, size_bytes)
        else:
            found.kept.append((manifest.checkpoint_id, size_bytes, "being written"))

    def _add_files(self, found: Unfinished) -> None:
        """Add the payload files that no record names."""
        records = self._records()
        unreadable = {str(error.checkpoint_id): error for error in self.view.unreadable}
        for key in sorted(self.view.entries):
            name = key[len(self.experiment.path) + 1 :] if self.experiment.path else key
            checkpoint_id = payload_owner(name)
            if checkpoint_id is None:
                continue
            if checkpoint_id in unreadable:
                reason = f"{unreadable[checkpoint_id].message}; `ckpt doctor` says what helps"
                found.kept.append((name, self._bytes_at(name), reason))
            elif checkpoint_id not in records:
                found.kept.append((name, self._bytes_at(name), "a payload without a manifest; see `ckpt doctor`"))
            elif is_leftover(records[checkpoint_id], name):
                found.add("leftover", name, "A payload that its manifest does not name.", self._bytes_at(name))
            elif not is_named(records[checkpoint_id], name):
                found.kept.append((name, self._bytes_at(name), "not written by a save; see `ckpt doctor`"))

    def _records(self) -> dict[str, Manifest | Claim]:
        view = self.view
        found: Iterator[Manifest | Claim] = iter((*view.manifests, *view.deleted, *view.purging, *view.claims))
        return {item.checkpoint_id: item for item in found}


def _stored(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the files that go with a checkpoint, without what is being written to take their place."""
    own = () if manifest.is_in_place else manifest.files
    stored = (file.name for files in (own, *(item.files for item in manifest.obsolete)) for file in files)
    return tuple(stored)
