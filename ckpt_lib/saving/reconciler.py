"""``Reconciler``: when checkpoints move from the fallback folder to their home, and what is done about them there."""

from __future__ import annotations

import threading
from contextlib import suppress

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import CheckpointNotFoundError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.saving.fallback import Fallback, ReconcileReport
from ckpt_lib.saving.post_save import PostSave
from ckpt_lib.stream import Progress


class Reconciler:
    """Moves what is in the fallback folder ``home``, one call at a time."""

    def __init__(
        self, fallback: Fallback, home: Experiment, *, lineage: Lineage, known: KnownVersions, post_save: PostSave
    ) -> None:
        self._fallback = fallback
        self._home = home
        self._lineage = lineage
        self._known = known
        self._post_save = post_save
        self._lock = threading.Lock()

    def reconcile(self, progress: Progress | None = None) -> ReconcileReport:
        """Move everything, then do for each what follows a save. Raises :class:`~ckpt_lib.errors.StoreError`."""
        with self._lock:
            report = self._fallback.reconcile(progress)
            self._lineage.remap({**report.already_home, **report.moved})
        for checkpoint_id in report.moved.values():
            with failures_logged(f"looking after {checkpoint_id}"), suppress(CheckpointNotFoundError):
                manifest = self._home.get(checkpoint_id)
                self._known.remember(self._home, manifest, is_loadable=True)
                self._post_save.locations.best.note_save(manifest)
                self._post_save.run(manifest)
        return report

    def before_save(self) -> None:
        """Move what can be moved: it comes before anything newer."""
        with failures_logged("moving stranded checkpoints to the store"):
            if self._fallback.has_work:
                self.reconcile()

    def before_load(self) -> None:
        """Move what can be moved, so that ``"latest"`` is what was saved last; warn of what stays."""
        self.before_save()
        with failures_logged("looking at the fallback folder"):
            if left := self._fallback.manifests():
                count, place = count_of(len(left), "checkpoint"), self._fallback.experiment.location()
                logger.warning("still in the fallback folder %s: %s", place, count)
