"""What a person was shown before a job, and its fingerprint: the job does that, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import ProtectedCheckpointError
from ckpt_lib.maintenance.findings import DoctorReport
from ckpt_lib.maintenance.thin import full_payload_of
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.web.managers import home_of


def fingerprint_of(facts: Iterable[Sequence[object]]) -> str:
    """Return a text that differs where any of the facts does, in whatever order they are."""
    return hashlib.sha256("\n".join(sorted(json.dumps(list(fact)) for fact in facts)).encode()).hexdigest()


def require_shown(shown: str | None, now: str, what: str) -> None:
    """Raise :class:`~ckpt_lib.errors.ProtectedCheckpointError` if ``what`` has changed since it was shown.

    ``shown`` is its fingerprint then; ``None`` where nothing was shown.
    """
    if shown not in (None, now):
        raise ProtectedCheckpointError(
            f"{what} has changed since it was shown, so nothing was done", hint="Look at it again, and then decide."
        )


@dataclass(frozen=True)
class Deleted:
    """A deleted checkpoint, or what one that is there was thinned of."""

    checkpoint: CheckpointMetadata
    size_bytes: int
    since: datetime | None
    """When it was deleted or thinned."""
    goes_at: datetime | None
    """When a cleanup removes it for good."""
    is_part: bool = False
    """Whether its checkpoint is there."""
    comes_back: bool = True
    """False for what an undone thinning has left."""

    @property
    def key(self) -> tuple[str, str, bool]:
        """What no other deletion or thinning has."""
        return self.checkpoint.checkpoint_id, str(self.since), self.is_part


@dataclass(frozen=True)
class Trash:
    """What the trash of an experiment holds, the last deleted first."""

    items: tuple[Deleted, ...]
    fingerprint: str

    @property
    def size_bytes(self) -> int:
        """The bytes that emptying it frees."""
        return sum(item.size_bytes for item in self.items)


def trash_of(manager: CheckpointManager) -> Trash:
    """Return what :meth:`~ckpt_lib.CheckpointManager.empty_trash` removes now, as far as it can be brought back."""
    home, kept = home_of(manager), timedelta(seconds=manager.config.trash_seconds)
    ids = [*(item.checkpoint_id for item in manager.list_deleted()), *manager.dropped_bytes()]
    found = (home.read(checkpoint_id).record for checkpoint_id in dict.fromkeys(ids))
    items = [item for record in found if isinstance(record, Manifest) for item in _lost(record, kept)]
    facts = [(*item.key, item.size_bytes) for item in items]
    return Trash(tuple(sorted(items, key=lambda item: str(item.since), reverse=True)), fingerprint_of(facts))


def _lost(manifest: Manifest, kept: timedelta) -> Iterator[Deleted]:
    """Yield the checkpoint if it was deleted, or else what it was thinned of."""
    if manifest.state == "deleted":
        since = manifest.deleted_at
        yield Deleted(manifest.describe(), manifest.removable_bytes, since, since and since + kept)
        return
    full = full_payload_of(manifest) if manifest.thinned else None
    for payload in manifest.obsolete:
        yield Deleted(
            checkpoint=manifest.describe(),
            size_bytes=payload.size_bytes,
            since=payload.since,
            goes_at=payload.since + kept,
            is_part=True,
            comes_back=payload == full,
        )


def findings_fingerprint(report: DoctorReport) -> str:
    """Return the fingerprint of what a doctor would do about its findings."""
    return fingerprint_of((item.place, item.name, item.kind, item.action) for item in report.findings if item.action)
