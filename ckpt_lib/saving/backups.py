"""``Backups``: the backup of each save, before the save returns or while training goes on.

In the background one thread makes them, the newest first: that is the one which the loss of the disk would cost. What
it does not come to is no loss of its own, since the checkpoint is safe at home. It is named in the log, and made with
the next backup that succeeds, by this process or by another one.
"""

from __future__ import annotations

import random
import threading
import time

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import CheckpointNotFoundError, StoreUnavailableError
from ckpt_lib.experiment import noted_backups
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.twin import Twin
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.saving.worker import Background, Worker, flush_at_end

MAX_WAITING = 8
"""Backups that take longer than saves never catch up: of those that wait, the oldest is given up for a newer one."""
RETRY_DELAYS_SECONDS = (1.0, 5.0)
"""How long to wait, each give or take a half, before a backup location that did not answer is asked again."""
_chance = random.SystemRandom()


class Backups(Background):
    """Makes the backups of one experiment's saves, as ``backup_mode`` says."""

    comes_last = True  # what follows a background save puts its backup here

    def __init__(self, locations: Locations, copies: Copies) -> None:
        self._locations = locations
        self._copies = copies
        self._deadline_seconds = locations.config.backup_deadline_seconds
        super().__init__()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._worker = Worker("ckpt-backup", steps_back=True)
        self._waiting: list[Manifest] = []
        self._current: Manifest | None = None
        self._failure: Exception | None = None
        self._is_noted = False
        self._last_twin: Twin | None = None
        self._has_skipped = False
        self._is_behind = True  # an earlier process may have been

    def make(self, manifest: Manifest, twin: Twin | None = None, *, is_last: bool = False) -> None:
        """Back up what was just saved, now or in the background, unless its ``twin`` is a backup. Never raises.

        The last one is made in the background: :meth:`wait` ends at the deadline.
        """
        if not self._locations.config.backup_checkpoints:
            return
        with failures_logged(f"backing up {manifest.checkpoint_id}"):
            if self._locations.config.backup_mode == "blocking" and not is_last:
                self._make_at_once(manifest, twin)
                return
            flush_at_end()
            self._put(manifest)

    def _make_at_once(self, manifest: Manifest, twin: Twin | None) -> None:
        """Back up, unless the location hangs: whoever saves would wait for it without end."""
        is_made = twin is not None and twin.wait(self._deadline_seconds)
        self._last_twin = twin or self._last_twin
        if self._last_twin is not None and self._last_twin.hangs:
            logger.warning("the backup location does not answer: %s has no backup for now", manifest.checkpoint_id)
            self._has_skipped = True
            return
        self._back_up(manifest, is_made=is_made)
        if self._has_skipped:
            self._catch_up()
            self._has_skipped = False

    def wait(self) -> bool:
        """Return once all backups are made or given up; ``False``, and their ids are logged, after the deadline."""
        if self._worker.wait(self._deadline_seconds):
            return True
        logger.warning(
            "not backed up within %s: %s; the store has them, and the next backup that succeeds makes up for it",
            duration(self._deadline_seconds),
            ", ".join(manifest.checkpoint_id for manifest in self._under_way()),
        )
        return False

    def flush(self) -> None:
        """:meth:`wait`, and raise the last failure of a backup, once, if no later one has made up for it."""
        self.wait()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the last failure of a backup, once, if no later one has made up for it."""
        with self._lock:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _under_way(self) -> list[Manifest]:
        with self._lock:
            return [*filter(None, [self._current]), *reversed(self._waiting)]

    def _put(self, manifest: Manifest) -> None:
        with self._lock:
            self._waiting.append(manifest)
            given_up = self._waiting.pop(0) if len(self._waiting) > MAX_WAITING else None
            self._is_behind |= given_up is not None
        if given_up:
            logger.warning("backups take longer than saves: %s has none for now", given_up.checkpoint_id)
        self._worker.put(self._make_next)

    def _make_next(self) -> None:
        """Make the backup of the newest that waits, and what is missing besides when none waits any more."""
        with self._lock:
            if not self._waiting:
                return
            self._current = manifest = self._waiting.pop()
        try:
            self._try(manifest)
            self._catch_up()
        except Exception as error:
            logger.error("backing up %s failed: %s", self._current.checkpoint_id, error)
            with self._lock:
                self._failure, self._is_behind = error, True
        finally:
            self._current = None

    def _try(self, manifest: Manifest) -> None:
        """Make a backup; a location that does not answer is asked again."""
        for delay_seconds in RETRY_DELAYS_SECONDS:
            try:
                return self._back_up(manifest)
            except StoreUnavailableError as error:
                logger.warning("backing up %s is tried again: %s", manifest.checkpoint_id, error)
            time.sleep(delay_seconds * _chance.uniform(0.5, 1.5))
        return self._back_up(manifest)

    def _catch_up(self) -> None:
        """Make what this process, or one before it, did not come to; what is saved meanwhile comes first."""
        if not self._is_behind:
            return
        held = set(self._locations.backup_catalogue.ids())
        wanted = self._copies.wanted_backups() - held
        for manifest in reversed(self._locations.catalogue.manifests()):
            if self._waiting:
                return
            if manifest.checkpoint_id in wanted:
                self._current = manifest
                self._back_up(manifest)
        with self._lock:
            self._failure, self._is_behind = None, bool(self._waiting)

    def _back_up(self, manifest: Manifest, *, is_made: bool = False) -> None:
        if not self._is_noted:
            noted_backups.note(self._locations)
            self._is_noted = True
        try:
            if self._wants(manifest) and self._copies.back_up(
                self._locations.catalogue.resolve(manifest.checkpoint_id), is_made=is_made
            ):
                self._copies.cleaner.delete_surplus(manifest.checkpoint_id, manifest.monitor)
        except CheckpointNotFoundError:  # what someone has deleted by now needs no backup
            if is_made:
                self._copies.follow_marks()  # of the deletion, which found no backup yet

    def _wants(self, manifest: Manifest) -> bool:
        return not self._locations.config.backup_only_best or self._locations.best.describe(manifest).is_best
