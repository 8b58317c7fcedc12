"""``BestWatch``: tells when another checkpoint has become the best of an experiment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.experiment.view import View, best_of


class BestWatch:
    """Remembers which checkpoint is the best, and emits ``checkpoint.best_changed`` when it is another one.

    What other processes do is noticed at the next change of this one.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._best_id: str | None = None
        self._is_known = False

    def describe(self, manifest: Manifest) -> CheckpointMetadata:
        """Describe a checkpoint by what the last listing showed, and as the best only by a new one."""
        return _described(manifest, self._view_with(manifest))

    def tell_of_save(self, manifest: Manifest) -> None:
        """Tell that a checkpoint was saved, and then whether another one is the best now."""
        view = self._view_with(manifest)
        self._catalogue.experiment.events.emit(
            "checkpoint.saved", f"saved {manifest.checkpoint_id}", checkpoint=_described(manifest, view)
        )
        self._note(manifest, view)

    def note_save(self, manifest: Manifest) -> None:
        """Look after a save as :meth:`tell_of_save`, and tell only of the best."""
        self._note(manifest, self._view_with(manifest))

    def _view_with(self, manifest: Manifest) -> View:
        """Return the last listing, with ``manifest`` as it is now; a newer one where there would be a best to tell of.

        What others have saved since the last one may be better; where listing takes longer than a moment, that is
        noticed later. A best that is gone or changed is noticed at once.
        """
        index = self._catalogue.experiment.index
        view = index.last_with(manifest)
        best_id = view.best.checkpoint_id if view.best else None
        if best_id == manifest.checkpoint_id or (self._is_known and best_id != self._best_id):
            return index.newer_view() or view
        if view.best and not index.is_unchanged(view.best):
            return index.view_or_last() or view
        return view

    def _note(self, manifest: Manifest, view: View) -> None:
        if not self._is_known:
            self._remember(best_of([item for item in view.usable if item.uid != manifest.uid]))
        self._compare(view)

    @contextmanager
    def look_after(self) -> Iterator[None]:
        """Look after a change that is no save, also after one that failed on the way."""
        if not self._is_known:
            with failures_logged("looking for the best checkpoint"):
                self._remember(self._catalogue.view().best)
        try:
            yield
        finally:
            if self._is_known:
                with failures_logged("looking for the best checkpoint"):
                    self._compare(self._catalogue.view())

    def note_addition(self, manifest: Manifest, before: Manifest, key: str) -> None:
        """Emit ``checkpoint.best_changed`` if metrics that were added to a checkpoint have changed the best.

        ``before`` is its manifest without them. Called again, this emits the event again, with the same ``key``, unless
        another checkpoint is the best by now: that has an event of its own.
        """
        view = self._catalogue.view()
        best_before = best_of([before if item.uid == before.uid else item for item in view.usable])
        self._remember(view.best)
        before_id, best_id = (item.checkpoint_id if item else None for item in (best_before, view.best))
        if before_id != best_id and manifest.checkpoint_id in (before_id, best_id):
            self._emit(view, before_id, key)

    def _remember(self, best: Manifest | None) -> None:
        self._best_id, self._is_known = best.checkpoint_id if best else None, True

    def _compare(self, view: View) -> None:
        before = self._best_id
        self._remember(view.best)
        if self._best_id != before:
            self._emit(view, before)

    def _emit(self, view: View, before: str | None, key: str | None = None) -> None:
        best = view.best
        self._catalogue.experiment.events.emit(
            "checkpoint.best_changed",
            f"the best checkpoint is {best.checkpoint_id}" if best else "no checkpoint is the best any more",
            checkpoint=_described(best, view) if best else None,
            key=key,
            before=before,
        )


def _described(manifest: Manifest, view: View) -> CheckpointMetadata:
    return manifest.describe(
        is_best=view.best is not None and view.best.checkpoint_id == manifest.checkpoint_id,
        is_latest=any(item.checkpoint_id == manifest.checkpoint_id for item in view.usable[-1:]),
    )
