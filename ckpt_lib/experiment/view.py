"""``View``: the checkpoints of a folder at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ckpt_lib.core.manifest import Claim, FileEntry, Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import CheckpointError
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.store.base import Entry


@dataclass(frozen=True)
class View:
    """A folder's checkpoints at one moment, oldest first, and what was beside them."""

    manifests: tuple[Manifest, ...]
    """Those that readers see: live ones, and those that may be about to leave."""
    deleted: tuple[Manifest, ...]
    """Deleted ones that may still be brought back."""
    purging: tuple[Manifest, ...]
    claims: tuple[Claim, ...]
    unreadable: tuple[CheckpointError, ...]
    entries: Mapping[str, Entry]
    """Every file and folder, by key."""
    below: Mapping[str, Entry]
    """The files in the folders of payloads, and those saved since the listing, by key."""
    path: str = ""
    """The folder."""
    usable: tuple[Manifest, ...] = ()
    """Those that readers are shown: not in quarantine."""
    whole: tuple[Manifest, ...] = ()
    """Those of ``usable`` whose files are all there, with the right sizes."""
    best: Manifest | None = None
    """The best of ``usable``, by the measure that the newest of them records."""

    @property
    def quarantined(self) -> tuple[Manifest, ...]:
        return tuple(item for item in self.manifests if item.quarantined)

    @property
    def valid(self) -> tuple[Manifest, ...]:
        """Those that others may rely on."""
        return tuple(item for item in self.manifests if item.is_valid)

    def monitor(self, otherwise: Monitor) -> Monitor:
        """Return what the newest records, if need be one in quarantine; ``otherwise`` where readers see none.

        All that becomes visible takes it over: it may be the newest, and whoever set the monitor did not see it.
        """
        newest = (self.usable or self.manifests)[-1:]
        return newest[0].monitor if newest else otherwise

    def is_complete(self, manifest: Manifest) -> bool:
        """Tell whether each payload file is there with the right size."""
        return all(self._holds(file) for file in manifest.files)

    def _holds(self, file: FileEntry) -> bool:
        key = _key_of(file, self.path)
        entry = self.below.get(key) or self.entries.get(key)
        return entry is not None and entry.size_bytes == file.size_bytes

    def with_changed(self, changed: Manifest) -> View:
        """Return this view with ``changed`` as it is now."""
        if self.usable[-1:] == (changed,):
            return self
        others = [item for item in self.manifests if item.checkpoint_id != changed.checkpoint_id]
        manifests = in_order([*others, changed] if changed.is_visible else others)
        return _with_answers(replace(self, manifests=tuple(manifests)))

    def with_saved(self, manifest: Manifest) -> View:
        """Return this view with one more checkpoint."""
        files = (Entry(_key_of(file, self.path), file.size_bytes) for file in manifest.files)
        manifests = (*self.manifests, manifest)
        later = replace(
            self,
            manifests=manifests,
            claims=tuple(claim for claim in self.claims if claim.checkpoint_id != manifest.checkpoint_id),
            below={**self.below, **{entry.key: entry for entry in files}},
            usable=(*self.usable, manifest),
            whole=(*self.whole, manifest),
        )
        newest = self.manifests[-1:]
        if manifest.quarantined or any(
            item.monitor != manifest.monitor or _position(item) > _position(manifest) for item in newest
        ):
            return _with_answers(replace(later, manifests=tuple(in_order(manifests))))
        return replace(later, best=best_of([*filter(None, [self.best]), manifest]))


def view_of(
    items: list[Manifest | Claim | CheckpointError], entries: Iterable[Entry], below: Iterable[Entry], path: str
) -> View:
    manifests = in_order(item for item in items if isinstance(item, Manifest))
    view = View(
        tuple(item for item in manifests if item.is_visible),
        tuple(item for item in manifests if item.state == "deleted"),
        tuple(item for item in manifests if item.state == "purging"),
        tuple(item for item in items if isinstance(item, Claim)),
        tuple(item for item in items if isinstance(item, CheckpointError)),
        {entry.key: entry for entry in entries},
        {entry.key: entry for entry in below},
        path,
    )
    return _with_answers(view)


def _with_answers(view: View) -> View:
    """Return ``view`` with what each save asks of it."""
    usable = tuple(item for item in view.manifests if item.quarantined is None)
    whole = tuple(item for item in usable if view.is_complete(item))
    return replace(view, usable=usable, whole=whole, best=best_of(usable))


def best_of(manifests: Sequence[Manifest]) -> Manifest | None:
    """Return the best by the measure that the newest, which is the last, records."""
    best = ranked(manifests, manifests[-1].monitor) if manifests else []
    return best[0] if best else None


def in_order(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Sort by sequence; where two saves did not see each other, by time and ``uid``."""
    return sorted(manifests, key=_position)


def _position(manifest: Manifest) -> tuple[int, datetime, str]:
    return manifest.sequence, manifest.timestamp, manifest.uid


def _key_of(file: FileEntry, path: str) -> str:
    return f"{path}/{file.name}" if path else file.name
