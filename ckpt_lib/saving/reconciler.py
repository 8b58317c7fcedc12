"""``Reconciler``: when checkpoints move from the fallback to the primary folder, and what is done about them there."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

from ckpt_lib.core.logs import failures_logged
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.saving.fallback import Fallback, ReconcileReport
from ckpt_lib.saving.post_save import PostSave
from ckpt_lib.stream import Progress

logger = logging.getLogger("ckpt_lib")

_WHAT = "moving stranded checkpoints to the store"


class Reconciler:
    """Moves what is in the fallback folder to the ``primary`` one, one call at a time."""

    def __init__(
        self,
        fallback: Fallback,
        primary: CheckpointFolder,
        *,
        lineage: Lineage,
        known: KnownVersions,
        post_save: PostSave,
    ) -> None:
        self._fallback = fallback
        self._primary = primary
        self._lineage = lineage
        self._known = known
        self._post_save = post_save
        self._lock = threading.Lock()

    def reconcile(self, progress: Progress | None = None) -> ReconcileReport:
        """Move everything, then do for each what follows a save. Raises :class:`~ckpt_lib.errors.StoreError`."""
        with self._lock:
            report = self._fallback.reconcile(progress)
            self._lineage.remap({**report.already_home, **report.moved}, self._primary)
            self._fallback.sweep()
        for checkpoint_id in report.moved.values():
            with failures_logged(f"looking after {checkpoint_id}"), suppress(CheckpointNotFoundError):
                manifest = self._primary.read_manifest(checkpoint_id)
                self._known.remember(self._primary, manifest)
                self._post_save.run(manifest)
        return report

    def before_save(self) -> None:
        """Move what was saved without a look at the order of saving: it comes before anything newer."""
        with failures_logged(_WHAT):
            if self._fallback.has_unordered:
                self.reconcile()

    def after_save(self) -> None:
        """Move what can be moved, now that the store has taken a save."""
        with failures_logged(_WHAT):
            if self._fallback.has_work:
                self.reconcile()

    def before_load(self) -> None:
        """Move what can be moved, so that ``"latest"`` is what was saved last; warn of what stays."""
        with failures_logged(_WHAT):
            if self._fallback.has_work:
                self.reconcile()
            if left := self._fallback.manifests():
                logger.warning("%d checkpoints are still in %s", len(left), self._fallback.folder.location())
