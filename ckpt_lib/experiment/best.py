"""``BestWatch``: tells when another checkpoint has become the best of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.policies.ranking import ranked


class BestWatch:
    """Remembers which checkpoint is the best, and emits ``checkpoint.best_changed`` when it is another one.

    What other processes do is noticed at the next change of this one.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._best_id: str | None = None
        self._is_known = False

    def describe(self, manifest: Manifest) -> CheckpointMetadata:
        """Describe a checkpoint by what the last listing showed; the store is not asked."""
        return self._catalogue.describe(manifest, among=self._catalogue.last_manifests(manifest))

    def note_save(self, manifest: Manifest) -> None:
        """Look after a save, by what the last listing showed; the store is not asked."""
        known = self._catalogue.last_manifests(manifest)
        if not self._is_known:
            self._remember([item for item in known if item.uid != manifest.uid])
        self._compare(known)

    @contextmanager
    def look_after(self) -> Iterator[None]:
        """Look after a change that is no save, also after one that failed on the way."""
        if not self._is_known:
            with failures_logged("looking for the best checkpoint"):
                self._remember(self._catalogue.manifests())
        try:
            yield
        finally:
            if self._is_known:
                with failures_logged("looking for the best checkpoint"):
                    self._compare(self._catalogue.manifests())

    def _remember(self, manifests: Sequence[Manifest]) -> None:
        # By the record itself: to look is no question that a difference from the configuration would be told at.
        best = ranked(manifests, manifests[-1].monitor) if manifests else []
        self._best_id, self._is_known = best[0].checkpoint_id if best else None, True

    def _compare(self, manifests: Sequence[Manifest]) -> None:
        before = self._best_id
        self._remember(manifests)
        if self._best_id == before:
            return
        best = next((item for item in manifests if item.checkpoint_id == self._best_id), None)
        self._catalogue.experiment.events.emit(
            "checkpoint.best_changed",
            f"the best checkpoint is {self._best_id}" if best else "no checkpoint is the best any more",
            checkpoint=self._catalogue.describe(best, among=manifests) if best else None,
            before=before,
        )
