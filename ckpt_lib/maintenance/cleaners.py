"""Cleaners: which policy and which protections a cleanup of checkpoints, or of backups, goes by."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptManifestError,
    ProtectedCheckpointError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.experiment import CheckpointSet, Experiment
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.maintenance import quarantine, transfer
from ckpt_lib.maintenance.cleanup import CleanupReport, clean
from ckpt_lib.maintenance.snapshot_file import SnapshotFile
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.policies.retention import KeepAtMost, RetentionPolicy

logger = logging.getLogger("ckpt_lib")


class Cleaner(Protocol):
    """Cleans up one folder."""

    @property
    def folder(self) -> CheckpointFolder: ...

    def clean_quickly(self) -> CleanupReport:
        """Clean up by the configured policy; read nothing that this process has seen to be intact."""


@dataclass(frozen=True)
class CheckpointCleaner:
    """Cleans up checkpoints, in the primary or in the fallback folder; what the run goes on from stays."""

    checkpoints: CheckpointSet
    config: CheckpointConfig
    policy: RetentionPolicy | None
    lineage: Lineage
    known: KnownVersions

    @property
    def folder(self) -> CheckpointFolder:
        return self.checkpoints.folder

    def clean_quickly(self) -> CleanupReport:
        return self.clean(known=self.known)

    def delete_surplus(self) -> None:
        """Clean up after a save, quickly where nothing can be too much."""
        view = self.checkpoints.index.view()
        if self.policy is None and len(view.manifests) <= self.config.max_checkpoints:
            # A plan would keep them all, and takes a while to say so.
            commit.sweep(self.folder, view.entries.values(), grace_seconds=self.config.trash_seconds)
        else:
            self.clean_quickly()

    def clean(
        self,
        policy: RetentionPolicy | None = None,
        *,
        known: KnownVersions | None = None,
        dry_run: bool = False,
        grace_seconds: float = 0.0,
    ) -> CleanupReport:
        """Clean up by ``policy``, or else by the configured one; see :func:`ckpt_lib.maintenance.cleanup.clean`."""
        monitor = self.checkpoints.catalogue.monitor()
        return clean(
            self.folder,
            self.checkpoints.index,
            policy or self.policy or at_most(self.config.max_checkpoints, monitor),
            monitor=monitor,
            protected=self.lineage.in_use,
            known=known,
            dry_run=dry_run,
            grace_seconds=grace_seconds,
            trash_seconds=self.config.trash_seconds,
        )

    def delete(self, name: str) -> str:
        """Delete one checkpoint and return its id. Raises :class:`ProtectedCheckpointError` when it is pinned."""
        resolved = self.checkpoints.catalogue.resolve(name).checkpoint_id
        deleted = commit.delete(self.folder, resolved, unless=_refuse_pinned, grace_seconds=self.config.trash_seconds)
        if deleted is None:
            raise CheckpointNotFoundError(f"{resolved} was deleted by someone else", checkpoint_id=resolved)
        return resolved


@dataclass(frozen=True)
class BackupCleaner:
    """Cleans up backups; those of damaged checkpoints stay."""

    experiment: Experiment
    known: KnownVersions

    @property
    def folder(self) -> CheckpointFolder:
        return self.experiment.backups.folder

    def clean_quickly(self) -> CleanupReport:
        return self.clean(known=self.known)

    def clean(
        self,
        policy: RetentionPolicy | None = None,
        *,
        known: KnownVersions | None = None,
        dry_run: bool = False,
        just_made: str | None = None,
    ) -> CleanupReport:
        """Clean up by ``policy``, or else by ``max_backups``, and keep the one that was ``just_made``."""
        monitor = self.experiment.primary.catalogue.monitor()
        protected = dict.fromkeys(self._damaged_checkpoints(), "its checkpoint is damaged")
        if just_made is not None:
            protected[just_made] = "made just now"
        return clean(
            self.folder,
            self.experiment.backups.index,
            policy or at_most(self.experiment.config.max_backups, monitor),
            monitor=monitor,
            protected=protected,
            known=known,
            dry_run=dry_run,
        )

    def _damaged_checkpoints(self) -> list[str]:
        view = self.experiment.primary.index.view()
        quarantined = quarantine.list_quarantined(self.experiment.primary.folder, self.experiment.name)
        return [
            *(str(error.checkpoint_id) for error in view.unreadable),
            *(item.checkpoint_id for item in view.manifests if not view.is_complete(item)),
            *(item.checkpoint_id for item in quarantined),
        ]

    def delete(self, name: str) -> int:
        """Delete one backup, sound or in quarantine, for good; return how many bytes that frees."""
        checkpoint_id = self.experiment.backups.id_of(name)
        if quarantine.is_quarantined(self.folder, checkpoint_id):
            return quarantine.remove(self.folder, checkpoint_id)
        try:
            deleted = commit.delete(self.folder, checkpoint_id, unless=_refuse_held(self.folder))
        except CorruptManifestError as error:
            error.hint = f"Set it aside first: `ckpt quarantine --backups {checkpoint_id}`."
            raise
        if deleted is None:
            raise transfer.no_backup(self.folder, checkpoint_id)
        return deleted.payload.size_bytes


def clean_all(
    checkpoints: CheckpointCleaner,
    backups: BackupCleaner,
    snapshot: SnapshotFile,
    policy: RetentionPolicy | None,
    *,
    dry_run: bool,
) -> CleanupReport:
    """Clean up the checkpoints by ``policy``, and then the backups, whose failure is reported and not raised."""
    if not checkpoints.folder.store.entries(checkpoints.folder.path):  # a mistyped name creates no experiment
        return checkpoints.clean(policy, dry_run=dry_run)
    try:
        report = checkpoints.clean(policy, dry_run=dry_run, grace_seconds=checkpoints.config.trash_seconds)
    finally:
        if not dry_run:
            snapshot.write()
    try:
        outcome: dict[str, Any] = {"backups": backups.clean(dry_run=dry_run)}
    except (CheckpointError, OSError) as error:  # what became of the checkpoints is to be told all the same
        logger.error("cleaning up the backups failed: %s", error)
        outcome = {"backups_error": str(error)}
    return report.model_copy(update=outcome)


def at_most(count: int, monitor: Monitor) -> KeepAtMost:
    """The policy that ``max_checkpoints`` and ``max_backups`` spell."""
    return KeepAtMost(count=count, metric=monitor.metric, mode=monitor.mode)


def _refuse_pinned(manifest: Manifest) -> CheckpointError | None:
    if not manifest.pinned:
        return None
    return ProtectedCheckpointError(
        "the checkpoint is pinned",
        checkpoint_id=manifest.checkpoint_id,
        hint=f"Unpin it first: `ckpt pin {manifest.checkpoint_id} --off`.",
    )


def _refuse_held(folder: CheckpointFolder) -> Callable[[Manifest], CheckpointError | None]:
    def check(manifest: Manifest) -> CheckpointError | None:
        reason = folder.held().get(manifest.checkpoint_id)
        return ProtectedCheckpointError(reason, checkpoint_id=manifest.checkpoint_id) if reason else None

    return check
