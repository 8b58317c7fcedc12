"""Changes of a checkpoint's mutable facts: each is a conditional rewrite of its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from ckpt_lib.core.manifest import Manifest, Quarantine
from ckpt_lib.errors import StoreError, VersionConflictError
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.found import Found
from ckpt_lib.experiment.view import in_order

IN_USE_SECONDS = 3600.0
"""For how long a checkpoint is kept after a run has resumed from it."""


def edit(experiment: Experiment, checkpoint_id: str, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Rewrite a manifest; edits at once are all applied. ``change`` may be called again, with what others wrote.

    Nothing is written when ``change`` returns the manifest that it was given.

    One that was about to leave stays: whoever wanted it gone did not know of the edit. Raises
    :class:`~ckpt_lib.errors.CheckpointNotFoundError`, and what ``change`` does; then nothing has changed.
    """
    for _ in range(ATTEMPTS):
        found = experiment.read_visible(checkpoint_id)
        changed = change(found.manifest)
        if changed is found.manifest:
            return changed
        if written := _replace(experiment, found, changed.changed(state="live")):
            return written.manifest
    raise too_busy(experiment, "the checkpoint", checkpoint_id)


def rewrite(experiment: Experiment, found: Found, **facts: object) -> Found | None:
    """Change facts of a manifest as it was found; ``None``, and nothing is changed, when it is another one by now."""
    return _replace(experiment, found, found.manifest.changed(**facts))


def _replace(experiment: Experiment, found: Found, changed: Manifest) -> Found | None:
    try:
        written = experiment.put_record(changed, found.version)
    except VersionConflictError:
        return None
    experiment.index.note_rewritten(written)
    return written


def rewrite_all(experiment: Experiment, found: Iterable[Found], **facts: object) -> list[Found | StoreError]:
    """Change the same facts of some manifests; for each, what it is now or why not, as ``Experiment.put_records``."""
    written = experiment.put_records([(item.manifest.changed(**facts), item.version) for item in found])
    for item in written:
        if isinstance(item, Found):
            experiment.index.note_rewritten(item)
    return written


def bring_back(experiment: Experiment, found: Found, **facts: object) -> Found | None:
    """Make a deleted checkpoint live again; ``None``, and nothing is changed, when it is another one by now.

    The monitor may have been set meanwhile: it takes that of the newest or, where none is live, of the last deleted.
    """
    view = experiment.index.view()
    last = max(view.deleted, key=_time_of_deletion, default=found.manifest)
    monitor = found.manifest.monitor.changed_to(view.monitor(last.monitor))
    return rewrite(experiment, found, state="live", deleted_at=None, monitor=monitor, **facts)


def _time_of_deletion(manifest: Manifest) -> tuple[float, int]:
    return manifest.deleted_at.timestamp() if manifest.deleted_at else 0.0, manifest.sequence


def mark_in_use(experiment: Experiment, checkpoint_id: str) -> Manifest:
    """Keep a checkpoint from being deleted for a while: a run has resumed from it. Raises as :func:`edit`."""
    until = experiment.now() + timedelta(seconds=IN_USE_SECONDS)
    return edit(experiment, checkpoint_id, lambda manifest: manifest.changed(in_use_until=until))


def take_mark_back(experiment: Experiment, marked: Manifest, *, until: datetime | None) -> None:
    """Undo :func:`mark_in_use`, which returned ``marked``, unless another run has resumed from the checkpoint since.

    Before, it was in use ``until`` then. Raises as :func:`edit`.
    """

    def change(manifest: Manifest) -> Manifest:
        return manifest.changed(in_use_until=until) if manifest.in_use_until == marked.in_use_until else manifest

    edit(experiment, marked.checkpoint_id, change)


def quarantine(
    experiment: Experiment,
    found: Found,
    report: dict[str, Any],
    *,
    is_sound: Callable[[Manifest], bool] = lambda _: True,
) -> Manifest | None:
    """Set a checkpoint aside that was found damaged: readers pass over it, and nothing of it is removed.

    ``found`` is what :meth:`Experiment.read` gave before the payload was read. ``None``, and nothing is changed, when
    the manifest is another one by now. If no valid checkpoint is left, the newest that was deleted comes back; see
    :func:`keep_one_valid`.
    """
    aside = rewrite(experiment, found, quarantined=Quarantine(report=report, at=experiment.now()), state="live")
    if aside is None:
        return None
    keep_one_valid(experiment, is_sound)
    return aside.manifest


def release(experiment: Experiment, found: Found) -> Manifest | None:
    """Bring a checkpoint back from quarantine, which was found whole; ``None`` when it is another one by now."""
    released = rewrite(experiment, found, quarantined=None)
    return released.manifest if released else None


def keep_one_valid(experiment: Experiment, is_sound: Callable[[Manifest], bool] = lambda _: True) -> Manifest | None:
    """Return the newest valid checkpoint; where none is live, bring one back that was deleted or is about to leave.

    ``is_sound`` looks at the bytes of one whose record is valid. ``None`` when no sound one is left.
    """
    for _ in range(ATTEMPTS):
        view = experiment.index.view()
        if live := next(filter(is_sound, reversed(view.valid)), None):
            return live
        leaving = [item for item in view.manifests if item.state == "leaving"]
        candidates = in_order(item for item in (*leaving, *view.deleted) if item.quarantined is None)
        newest = next(filter(is_sound, reversed(candidates)), None)
        if newest is None:
            return None
        if back := _bring_back(experiment, newest.checkpoint_id):
            return back
    raise too_busy(experiment, "the checkpoints")


def _bring_back(experiment: Experiment, checkpoint_id: str) -> Manifest | None:
    found = experiment.read(checkpoint_id)
    manifest = found.record
    if isinstance(manifest, Manifest) and manifest.state in ("leaving", "deleted") and manifest.quarantined is None:
        back = bring_back(experiment, found)
        return back.manifest if back else None
    return None
