"""Cleaners: which policy and which protections a cleanup of checkpoints, or of backups, goes by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ckpt_lib.config import CheckpointConfig, is_max_backups_given
from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptManifestError,
    IntegrityError,
    ProtectedCheckpointError,
    StoreError,
    StoreUnavailableError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment.deletion import delete_all, deleted_by_others
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.experiment.locations import Locations, check_apart
from ckpt_lib.experiment.query import Catalogue
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.maintenance.cleanup import CleanupReport, clean, expire, tell_of_deletion
from ckpt_lib.maintenance.quarantine import delete_for_good
from ckpt_lib.maintenance.snapshot_file import SnapshotFile
from ckpt_lib.maintenance.thinner import Thinner
from ckpt_lib.maintenance.transfer import no_backup
from ckpt_lib.maintenance.validate import KnownVersions
from ckpt_lib.policies.retention import KeepAtMost, RetentionPolicy

_SECONDS_BETWEEN_SWEEPS = 600.0


class Cleaner(Protocol):
    """Cleans up one experiment."""

    @property
    def experiment(self) -> Experiment: ...

    @property
    def known(self) -> KnownVersions:
        """The file versions that this process has seen to be intact."""

    def clean_quickly(self) -> CleanupReport:
        """Clean up by the configured policy; read nothing that this process has seen to be intact."""


class PeriodicSweep:
    """Removes leftovers and what has expired, now and then: each time lists the folder."""

    def __init__(self, experiment: Experiment, trash_seconds: float, known: KnownVersions) -> None:
        self._experiment = experiment
        self._known = known
        self._trash_seconds = trash_seconds
        self._due = -math.inf

    def do_if_due(self) -> None:
        if time.monotonic() > self._due:
            sweep(self._experiment)
            expire(self._experiment, self._trash_seconds, self._known)
            self._due = time.monotonic() + _SECONDS_BETWEEN_SWEEPS


class SpreadCleanup:
    """Lets saves go by without a cleanup where hundreds of checkpoints are kept: a hundredth as many as that.

    A cleanup looks at all of them. Spread over so many saves, it costs each save the same.
    """

    def __init__(self) -> None:
        self._saves_left = 0

    def after_save(self, kept: int, clean: Callable[[], object]) -> None:
        """Clean up if that is due. ``kept`` is how many checkpoints the cleanup keeps."""
        self._saves_left = min(self._saves_left, kept // 100) - 1
        if self._saves_left < 0:
            clean()
            self._saves_left = kept // 100


@dataclass
class CheckpointCleaner:
    """Cleans up checkpoints, at home or in the fallback location; what the run goes on from stays."""

    catalogue: Catalogue
    config: CheckpointConfig
    policy: RetentionPolicy | None
    lineage: Lineage
    known: KnownVersions

    def __post_init__(self) -> None:
        self._periodic_sweep = PeriodicSweep(self.experiment, self.config.trash_seconds, self.known)
        self._spread = SpreadCleanup()
        self._thinner = Thinner(self.config.thin_after)

    @property
    def experiment(self) -> Experiment:
        return self.catalogue.experiment

    def clean_quickly(self) -> CleanupReport:
        return self.clean(known=self.known)

    def delete_surplus(self) -> None:
        """Clean up after a save, quickly where nothing can be too much."""
        view = self.experiment.index.affordable_view()
        if self.policy is not None:
            self.clean_quickly()
        elif view is None or len(view.usable) > self.config.max_checkpoints or self._thinner.has_work(view):
            self._spread.after_save(self.config.max_checkpoints, self.clean_quickly)
        else:  # a plan would keep them all, and takes a while to say so
            self._periodic_sweep.do_if_due()

    def clean(
        self,
        policy: RetentionPolicy | None = None,
        *,
        known: KnownVersions | None = None,
        dry_run: bool = False,
        grace_seconds: float = 0.0,
        fingerprint: str | None = None,
    ) -> CleanupReport:
        """Clean up by ``policy``, or else by the configured one; see :func:`ckpt_lib.maintenance.cleanup.clean`."""
        monitor = self.catalogue.monitor()
        return clean(
            self.experiment,
            policy or self.policy or at_most(self.config.max_checkpoints, monitor),
            monitor=monitor,
            protected=self.lineage.in_use,
            known=known,
            dry_run=dry_run,
            grace_seconds=grace_seconds,
            trash_seconds=self.config.trash_seconds,
            thinner=self._thinner,
            fingerprint=fingerprint,
        )

    def thin(self, name: str) -> Manifest:
        """Thin one checkpoint and return its manifest; see :func:`ckpt_lib.maintenance.thin.thin`."""
        manifest = self._thinner.thin(self.experiment, self.catalogue.resolve(name).checkpoint_id, self.known)
        expire(self.experiment, self.config.trash_seconds, self.known)
        return manifest

    def unthin(self, checkpoint_id: str) -> Manifest:
        """Bring back what one checkpoint lost; see :func:`ckpt_lib.maintenance.thin.unthin`."""
        return self._thinner.unthin(self.experiment, checkpoint_id, self.known)

    def delete(self, name: str) -> str:
        """Delete one checkpoint and return its id.

        Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is pinned, a run has just resumed from it, or
        its trash is emptied meanwhile and no other checkpoint is sound.
        """
        resolved = self.catalogue.resolve(name).checkpoint_id
        outcome = delete_all(self.experiment, [resolved])
        if error := outcome.refused.get(resolved):
            raise error
        if not outcome.deleted:
            raise deleted_by_others(resolved)
        tell_of_deletion(self.experiment.events, outcome.deleted)
        expire(self.experiment, self.config.trash_seconds, self.known)
        record = self.experiment.read(resolved).record
        if isinstance(record, Manifest) and record.is_visible:
            raise ProtectedCheckpointError(
                "the checkpoint was kept: all others are damaged",
                checkpoint_id=resolved,
                hint="`ckpt doctor` shows the damage; delete this checkpoint once another one is sound.",
            )
        return resolved


@dataclass
class BackupCleaner:
    """Cleans up backups; those of damaged checkpoints stay."""

    locations: Locations
    known: KnownVersions

    def __post_init__(self) -> None:
        self._periodic_sweep = PeriodicSweep(self.experiment, self.locations.config.trash_seconds, self.known)
        self._spread = SpreadCleanup()

    @property
    def experiment(self) -> Experiment:
        return self.locations.backups

    def clean_quickly(self) -> CleanupReport:
        return self.clean(known=self.known)

    def delete_surplus(self, just_made: str, monitor: Monitor) -> None:
        """Clean up after a backup, quickly where nothing can be too much. ``monitor`` is the experiment's."""
        view = self.experiment.index.affordable_view()
        if view is None or len(view.usable) > self.locations.config.max_backups:
            clean = partial(self.clean, known=self.known, just_made=just_made, monitor=monitor)
            self._spread.after_save(self.locations.config.max_backups, clean)
        else:
            self._periodic_sweep.do_if_due()

    def clean(
        self,
        policy: RetentionPolicy | None = None,
        *,
        monitor: Monitor | None = None,
        known: KnownVersions | None = None,
        dry_run: bool = False,
        just_made: str | None = None,
        fingerprint: str | None = None,
    ) -> CleanupReport:
        """Clean up by ``policy``, or else by ``max_backups``, and keep the one that was ``just_made``."""
        if not dry_run:
            self._check_apart()
        monitor = monitor or self.locations.catalogue.monitor()
        return clean(
            self.experiment,
            policy or at_most(self.locations.config.max_backups, monitor),
            monitor=monitor,
            protected={just_made: "made just now"} if just_made else None,
            protects=self._of_damaged_checkpoints,
            known=known,
            dry_run=dry_run,
            trash_seconds=self.locations.config.trash_seconds,
            fingerprint=fingerprint,
        )

    def _check_apart(self) -> None:
        """Raise :class:`~ckpt_lib.errors.ConfigError` if what are to be backups are the checkpoints themselves."""
        if self.experiment.index.view().manifests:  # else nothing is lost, and there may be no folder
            check_apart("checkpoints", self.locations.home, "backup_dir", self.experiment)

    def _of_damaged_checkpoints(self, checkpoint_ids: Collection[str]) -> dict[str, str]:
        """Return those whose checkpoint may need its backup, with the reason to keep it."""
        damaged = [item for item in checkpoint_ids if _is_damaged(self.locations.home, item)]
        return dict.fromkeys(damaged, "its checkpoint is damaged")

    def thin(self, name: str) -> Manifest:
        """Thin one backup; a pin does not keep it: that of a backup is its checkpoint's."""
        self._check_apart()
        checkpoint_id = self.locations.backup_catalogue.id_of(name)
        try:
            manifest = Thinner().thin(self.experiment, checkpoint_id, self.known, lambda _: None)
        except CheckpointNotFoundError as error:
            raise no_backup(self.experiment, checkpoint_id) from error
        expire(self.experiment, self.locations.config.trash_seconds, self.known)
        return manifest

    def delete(self, name: str) -> int:
        """Delete one backup, sound or in quarantine, for good; return how many bytes that frees."""
        self._check_apart()
        checkpoint_id = self.locations.backup_catalogue.id_of(name)
        try:
            return delete_for_good(self.experiment, checkpoint_id)
        except CorruptManifestError as error:
            error.hint = f"Repair it first: `ckpt repair --backups {checkpoint_id}`."
            raise
        except CheckpointNotFoundError as error:
            raise no_backup(self.experiment, checkpoint_id) from error


def _is_damaged(home: Experiment, checkpoint_id: str) -> bool:
    """Tell whether a checkpoint's record cannot be read, or it is in quarantine, or lacks files."""
    try:
        record = home.read(checkpoint_id).record
    except StoreUnavailableError:
        raise
    except (IntegrityError, UnsupportedSchemaError, StoreError):
        return True
    if not isinstance(record, Manifest) or not record.is_visible:
        return False
    return record.quarantined is not None or not home.is_complete(record)


def clean_all(
    checkpoints: CheckpointCleaner,
    backups: BackupCleaner,
    snapshot: SnapshotFile,
    policy: RetentionPolicy | None,
    *,
    dry_run: bool,
    verify: bool = True,
    fingerprint: str | None = None,
) -> CleanupReport:
    """Clean up the checkpoints by ``policy``, and the backups where ``max_backups`` is given.

    The default would be none of the training's choosing, and no backup comes back. A failure of their cleanup is
    reported and not raised. Without ``verify``, only the newest and the best are read. ``fingerprint`` is that of the
    report on the plan that is to be carried out.
    """
    if not checkpoints.experiment.index.view().entries:  # a mistyped name creates no experiment
        return checkpoints.clean(policy, dry_run=dry_run)
    of_checkpoints, dot, of_backups = (fingerprint or "").partition(".")
    try:
        report = checkpoints.clean(
            policy,
            known=None if verify else checkpoints.known,
            dry_run=dry_run,
            grace_seconds=checkpoints.config.trash_seconds,
            fingerprint=of_checkpoints if fingerprint is not None else None,
        )
    finally:
        if not dry_run:
            snapshot.write()
    if not is_max_backups_given(checkpoints.config):
        return report
    try:
        known = None if verify else backups.known
        outcome: dict[str, Any] = {
            "backups": backups.clean(known=known, dry_run=dry_run, fingerprint=of_backups if dot else None)
        }
    except (CheckpointError, OSError) as error:  # what became of the checkpoints is to be told all the same
        logger.error("cleaning up the backups failed: %s", error)
        outcome = {"backups_error": str(error)}
    return report.model_copy(update=outcome)


def at_most(count: int, monitor: Monitor) -> KeepAtMost:
    """Return the policy that ``max_checkpoints`` and ``max_backups`` spell."""
    return KeepAtMost(count=count, metric=monitor.metric, mode=monitor.mode)
