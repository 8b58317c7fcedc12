"""``Maintainer``: what can be done for the stored checkpoints of one experiment, without a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.experiment.deletion import purge, undelete
from ckpt_lib.experiment.replacement import remove_obsolete
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.maintenance import deletions
from ckpt_lib.maintenance.added_metrics import Addition, add_metrics
from ckpt_lib.maintenance.cleaners import clean_all
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.maintenance.keeper import Keeper, check_policy
from ckpt_lib.maintenance.labels import Change, edit, relabeling, set_monitor, unpin
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.stream import Progress


class Maintainer(Keeper):
    """Deletes, thins and edits as well.

    It is the part of :class:`ckpt_lib.manager.CheckpointManager` that neither saves nor loads.
    """

    # --- deleting ---

    def delete_checkpoint(self, checkpoint_id: str) -> str:
        """Delete one checkpoint and return its id; its backup stays, and no run resumes from that.

        For ``trash_seconds``, :meth:`undelete_checkpoint` brings it back. Raises
        :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is pinned, or a run has just resumed from it.
        """
        with self._best.look_after(), self._snapshot.written_after():
            manifest = self._catalogue.resolve(checkpoint_id)
            with deletions.deleting(self._locations, manifest):
                return self._cleaner.delete(manifest.checkpoint_id)

    def undelete_checkpoint(self, checkpoint_id: str, *, pin: bool = False) -> CheckpointMetadata:
        """Bring a deleted checkpoint back as it was, its place in the order of saving included.

        ``checkpoint_id`` is an id: a checkpoint that is gone answers to nothing else. The rules of retention hold for
        it as before: with ``pin`` it comes back pinned, and no save of a run retires it again. Raises
        :class:`~ckpt_lib.errors.CheckpointNotFoundError` when its bytes have been removed.
        """
        with self._best.look_after(), self._snapshot.written_after():
            manifest = undelete(self._locations.home, str(CheckpointId.parse(checkpoint_id)), pin=pin)
            deletions.note_back(self._locations, manifest)
        return self._catalogue.describe(manifest)

    def list_deleted(self) -> list[CheckpointMetadata]:
        """The deleted checkpoints that can still be brought back, oldest first."""
        view = self._locations.home.index.view()
        return [manifest.describe() for manifest in view.deleted if view.is_complete(manifest)]

    def empty_trash(
        self, *, deleted_ids: Collection[str] | None = None, dropped_ids: Collection[str] | None = None
    ) -> list[str]:
        """Remove the bytes of everything deleted, and what others were thinned of, whatever ``trash_seconds`` says.

        A person who has looked at the trash decides about what was there: ``deleted_ids`` are the deleted checkpoints
        that may go, and ``dropped_ids`` those whose earlier bytes may. What has come into the trash since then stays.

        Returns the ids of the checkpoints that are gone for good. Leftovers of dead processes go as well.
        """
        home = self._locations.home
        sweep(home)
        purged = purge(home, grace_seconds=0.0, only=_is_among(deleted_ids), asked=True)
        is_sound = partial(self._known.verify, home)
        remove_obsolete(home, grace_seconds=0.0, only=_is_among(dropped_ids), is_sound=is_sound)
        return [manifest.checkpoint_id for manifest in purged]

    def delete_backup(self, checkpoint_id: str) -> int:
        """Delete the backup of a checkpoint, sound or in quarantine, for good; return how many bytes that frees.

        Its checkpoint stays. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is no such backup, and
        :class:`~ckpt_lib.errors.CorruptManifestError` when its manifest is damaged: repair it first.
        """
        return self._backup_cleaner.delete(checkpoint_id)

    def cleanup_checkpoints(
        self,
        *,
        policy: RetentionPolicy | None = None,
        dry_run: bool = False,
        verify: bool = True,
        fingerprint: str | None = None,
    ) -> CleanupReport:
        """Retire what the retention policy gives up, and remove what dead processes left behind.

        What stays while others go is read and verified first: a damaged checkpoint never counts as kept. For
        ``trash_seconds``, :meth:`undelete_checkpoint` brings back what went. Where the configuration gives
        ``max_backups``, backups beyond it go for good; the report's ``backups`` tells which. When only they cannot be
        cleaned up, nothing is raised: the report's ``backups_error`` says why. What the store raises when it fails on
        the way says which checkpoints are gone; batches deleted before stay deleted.

        Without ``verify``, only the newest and the best are read, as after a save. With the ``fingerprint`` of a report
        of a dry run, just what that report has shown is deleted and thinned: any other plan raises
        :class:`~ckpt_lib.errors.ProtectedCheckpointError`, and nothing is changed. A plan that differs for the backups
        alone is told by ``backups_error``.
        """
        check_policy(policy, "reasons")
        clean = partial(
            clean_all,
            self._cleaner,
            self._backup_cleaner,
            self._snapshot,
            policy,
            verify=verify,
            fingerprint=fingerprint,
        )
        if dry_run:
            return clean(dry_run=True)
        with self._best.look_after():
            return clean(dry_run=False)

    def cleanup_backups(
        self, *, policy: RetentionPolicy | None = None, dry_run: bool = False, fingerprint: str | None = None
    ) -> CleanupReport:
        """Retire the backups beyond ``max_backups``, or what ``policy`` gives up; their bytes are freed at once.

        Backups of damaged checkpoints stay, and so do those of checkpoints in quarantine. Each save that makes a backup
        does this by ``max_backups`` as well, and so do :meth:`cleanup_checkpoints` and :meth:`backup_checkpoint` if the
        configuration gives it. ``fingerprint`` is that of a plan, as in :meth:`cleanup_checkpoints`.
        """
        check_policy(policy, "reasons")
        return self._backup_cleaner.clean(policy, dry_run=dry_run, fingerprint=fingerprint)

    # --- thinning ---

    def thin_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """Keep the weights of a checkpoint, and what was saved beside them, and drop what only resuming needs.

        It loses the state of optimizer and scheduler, of random number generators and of the data; ``is_thinned`` of
        the metadata says so then. One that has nothing to drop stays as it is. Each byte is verified, and the weights
        are the same to the bit. For ``trash_seconds``, :meth:`unthin_checkpoint` brings the rest back; its backup stays
        as it is. Killed at any point, the checkpoint is whole: as it was, or thinned.

        Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is pinned, or a run has just resumed from it,
        :class:`~ckpt_lib.errors.CorruptCheckpointError` when it is damaged, and
        :class:`~ckpt_lib.errors.VersionConflictError` when another process is thinning it.
        """
        with self._snapshot.written_after():
            manifest = self._cleaner.thin(checkpoint_id)
        return self._catalogue.describe(manifest)

    def unthin_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """Bring back all that a thinned checkpoint held, while that is in the trash; its bytes are verified first.

        Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when it has been removed: :meth:`restore_checkpoint`
        brings it back from a backup that was not thinned. Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when
        it is damaged; then nothing is changed.
        """
        with self._snapshot.written_after():
            manifest = self._cleaner.unthin(self._catalogue.id_of(checkpoint_id))
        return self._catalogue.describe(manifest)

    def dropped_bytes(self) -> dict[str, int]:
        """Map ids to the bytes that wait in the trash because the checkpoint was thinned, or its thinning undone."""
        kept = ((item.checkpoint_id, item.obsolete) for item in self._locations.home.index.view().manifests)
        return {name: sum(earlier.size_bytes for earlier in payloads) for name, payloads in kept if payloads}

    def thin_backup(self, checkpoint_id: str) -> CheckpointMetadata:
        """Thin the backup of a checkpoint, as :meth:`thin_checkpoint` does the checkpoint, which stays as it is."""
        return self._locations.backup_catalogue.describe(self._backup_cleaner.thin(checkpoint_id))

    # --- editing ---

    def edit_checkpoint(
        self,
        checkpoint_id: str,
        *,
        add_tags: Collection[str] = (),
        remove_tags: Collection[str] = (),
        description: str | None = None,
        pinned: bool | None = None,
    ) -> CheckpointMetadata:
        """Change tags, description and pin of a saved checkpoint in one edit; the payload stays untouched."""
        return self._edit(checkpoint_id, relabeling(add_tags, remove_tags, description, pinned))

    def restore_checkpoint(
        self, checkpoint_id: str, *, pin: bool = False, progress: Progress | None = None
    ) -> CheckpointMetadata:
        """Put the backup of a checkpoint back in its place; its bytes are verified on the way.

        A checkpoint that is gone answers to its id. Where home has no checkpoint at all, ``"latest"``, ``"best"`` and
        tags stand for one of the backups, without those of what was deleted by name. The rules of retention hold for
        it: ``pin`` pins it as soon as it is back, so that no save of a run retires it. When there is no backup or it is
        damaged, the error says what else may help.
        """
        with self._best.look_after():
            manifest = self._copies.restore(checkpoint_id, progress)
        if pin:
            return self.pin_checkpoint(manifest.checkpoint_id)
        return self._catalogue.describe(manifest)

    def pin_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """Protect a checkpoint from retention and deletion."""
        return self._edit(checkpoint_id, lambda manifest: manifest.changed(pinned=True))

    def unpin_checkpoint(self, checkpoint_id: str) -> CheckpointMetadata:
        """Take that protection away; of one in quarantine as well, named by its id."""
        metadata = unpin(self._catalogue, checkpoint_id)
        self._snapshot.write()
        return metadata

    def _edit(self, checkpoint_id: str, change: Change) -> CheckpointMetadata:
        metadata = edit(self._catalogue, checkpoint_id, change)
        self._snapshot.write()
        return metadata

    def add_metrics(
        self, checkpoint_id: str, metrics: Mapping[str, Any], *, source: str, replace: bool = False
    ) -> CheckpointMetadata:
        """Add metrics that were measured after the save, and then look for the best checkpoint anew.

        ``source`` names what measured them, such as ``"eval/mnist-test"``; ``added_metrics`` of the result holds each
        value with its time and source. All are added at once or none, and the payload stays untouched. What a source
        has recorded already changes nothing, and emits the same events again; a value that somebody else has recorded
        gets an entry of this source, and stays. Another value raises
        :class:`~ckpt_lib.errors.MetricConflictError`, or takes its place with ``replace``; the earlier one stays in
        ``added_metrics``. The backup gets them too. If the process is killed on the way, the next call with the same
        metrics does what is left.
        Raises :class:`~ckpt_lib.errors.InvalidMetricError` and :class:`~ckpt_lib.errors.InvalidNameError`.
        """
        addition = Addition.of(metrics, source, replace=replace)
        manifest, is_changed = add_metrics(self._locations, checkpoint_id, addition)
        if is_changed:
            self._snapshot.write()
        return self._catalogue.describe(manifest)

    @property
    def monitor(self) -> Monitor:
        """The metric and mode that decide the best: those of the first save, or of the configuration before that."""
        return self._catalogue.monitor()

    @property
    def monitor_warning(self) -> str | None:
        """Why there is no best checkpoint, where none has recorded the monitored metric; else ``None``."""
        return self._catalogue.monitor_warning()

    def set_monitor(self, metric: str, mode: Mode) -> Monitor:
        """Change the recorded metric that decides which checkpoint is the best, for every later question and save.

        The manifests are rewritten, the newest first; a crash leaves the change made, since the newest holds the
        record. Raises :class:`~ckpt_lib.errors.UnknownMetricError` when no checkpoint has recorded ``metric``, and
        :class:`~ckpt_lib.errors.CheckpointNotFoundError` when there is none.
        """
        with self._best.look_after():
            monitor = set_monitor(self._locations, metric, mode)
        self._snapshot.write()
        return monitor


def _is_among(checkpoint_ids: Collection[str] | None) -> Callable[[Manifest], bool]:
    """Return what tells whether a checkpoint is one of these; of all if there are none to choose among."""
    return lambda manifest: checkpoint_ids is None or manifest.checkpoint_id in checkpoint_ids
