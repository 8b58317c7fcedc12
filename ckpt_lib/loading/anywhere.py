"""Checkpoints from any location: a copy that is damaged or lost at home is brought back from its backup.

What is taken from the backups is verified while it is copied home, and loaded from there. Where nothing can be written
at home, on a rank that leaves that to rank 0, and where the files at home belong to another program, it is loaded from
the backup itself, which is verified like everything that is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ckpt_lib.core.logs import failures_logged, logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CorruptManifestError,
    IntegrityError,
    ProtectedCheckpointError,
    StoreError,
    StoreUnavailableError,
    is_store_failure,
)
from ckpt_lib.experiment import deleted_by_name
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.view import in_order
from ckpt_lib.formats import Payload
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.maintenance.validate import is_unreadable
from ckpt_lib.policies.ranking import ranked
from ckpt_lib.saving.ranks import follows

Load = Callable[[Experiment, Manifest], Payload]


@dataclass(frozen=True)
class HomeOrBackup:
    """Loads checkpoints of one experiment from home or, where that copy is damaged or lost, from their backups."""

    locations: Locations
    copies: Copies

    @property
    def is_follower(self) -> bool:
        """True on a rank that changes nothing in the store: rank 0 does."""
        return self.locations.config.rank_zero_saves and follows()

    def load_named(self, name: str, load: Load) -> Payload:
        """Load what ``name`` stands for: at home or, where home has none at all or not this id, among the backups.

        A name is looked for among the backups only where home has no checkpoint, so that it costs no listing of them.
        """

        def load_found(experiment: Experiment, manifest: Manifest) -> Payload:
            return self.load_at_home(load, manifest) if experiment is home else load(experiment, manifest)

        home = self.locations.home
        try:
            return self.locations.with_found(name, load_found)
        except (CheckpointNotFoundError, CorruptManifestError) as error:
            found = self._backup_named(name, error)
            if found is None:
                raise
        payload = self.load_backup(load, found)
        with failures_logged("looking among the backups for the best checkpoint"):
            self.bring_best_back(self.backups())
        return payload

    def load_at_home(self, load: Load, manifest: Manifest) -> Payload:
        """Load a checkpoint from home; one that is damaged there is repaired from its backup first, if it has one.

        Raises what ``load`` raised where the backup does not help.
        """
        home = self.locations.home
        try:
            return load(home, manifest)
        except (IntegrityError, StoreError) as error:
            if not isinstance(error, IntegrityError) and not is_unreadable(error):
                raise
            if (backup := self._backup_of(manifest)) is None:
                raise
            logger.warning("%s is damaged, and its backup is taken: %s", manifest.checkpoint_id, error.message)
            if self.is_follower:
                return load(self.locations.backups, backup)
            try:
                self.copies.repair(manifest.checkpoint_id, None)
            except (StoreError, ProtectedCheckpointError) as failure:
                _warn_of_home(manifest, failure)
                return load(self.locations.backups, backup)
            except CheckpointError as failure:
                raise error from failure
        return load(home, home.get(manifest.checkpoint_id))

    def load_backup(self, load: Load, backup: Manifest) -> Payload:
        """Bring a checkpoint back that is in the backups alone, and load it.

        Raises :class:`~ckpt_lib.errors.IntegrityError` when the backup is damaged, and
        :class:`~ckpt_lib.errors.StoreUnavailableError` where home is not the store that this process knows: its disk
        was unmounted, and is not empty. Killed on the way, call it again. Of two processes at once, one restores.
        """
        locations = self.locations
        locations.watch.check()
        logger.warning(
            "%s is not whole in %s, and is taken from its backup", backup.checkpoint_id, locations.home.location()
        )
        if self.is_follower:
            return load(locations.backups, backup)
        try:
            with locations.best.look_after():
                restored = self.copies.restore(backup.checkpoint_id, None)
        except (StoreError, CheckpointExistsError, ProtectedCheckpointError) as failure:
            _warn_of_home(backup, failure)
            return load(locations.backups, backup)
        with failures_logged("writing the identity of the store"):
            locations.watch.ensure()
        return load(locations.home, restored)

    def bring_best_back(self, backups: Sequence[Manifest]) -> None:
        """Bring the best checkpoint back if it is among the backups alone: then ``"best"`` stands for it again.

        Retention never deletes the best, so one that home has not was lost. Backups of other runs than those at home do
        not count, nor what was deleted by name. One that is damaged is logged, and the next best counts. Killed on the
        way, the next resume does it. Raises :class:`~ckpt_lib.errors.StoreError` and ``OSError``.
        """
        home = self.locations.catalogue.manifests()
        runs, there = {item.run_id for item in home}, {item.uid for item in home}
        lost = [item for item in backups if item.run_id in runs and item.uid not in there]
        if not lost or self.is_follower:
            return
        known = in_order([*home, *lost])
        for best in ranked(known, self.locations.monitor_record.of(known)):
            if best.uid in there:
                return
            if not self._may_be_lost(best.checkpoint_id) or self.is_deleted(best):
                continue
            logger.warning("%s, the best checkpoint, is only in the backups, and is brought back", best.checkpoint_id)
            try:
                with self.locations.best.look_after():
                    self.copies.restore(best.checkpoint_id, None)
                return
            except CheckpointError as failure:
                logger.warning("%s, the best checkpoint, is in the backups alone: %s", best.checkpoint_id, failure)
                if not isinstance(failure, IntegrityError):
                    return

    def backups(self) -> list[Manifest]:
        """Return the backups, oldest first. What is saved from now on comes after them, whether or not they come back.

        Raises :class:`~ckpt_lib.errors.StoreError` and ``OSError``.
        """
        found = self.locations.backup_catalogue.manifests()
        for manifest in found:
            self.locations.home.index.note(manifest.sequence)
        return found

    def has_whole_backup(self, manifest: Manifest) -> bool:
        """Tell whether the backup of a thinned checkpoint still holds everything, and can be asked for."""
        backup = self._backup_of(manifest)
        return backup is not None and not backup.thinned

    def is_deleted(self, backup: Manifest) -> bool:
        """Tell whether a person deleted the checkpoint of a backup by name: it does not come back by itself."""
        return any(
            deleted_by_name.is_marked(place, backup.uid) for place in (self.locations.home, self.locations.backups)
        )

    def _backup_of(self, manifest: Manifest) -> Manifest | None:
        """Return the backup of a checkpoint that is damaged at home, if it can be asked for and is the same one."""
        with suppress(CheckpointError, OSError):
            backup = self.locations.backups.get(manifest.checkpoint_id)
            return backup if backup.uid == manifest.uid and backup.quarantined is None else None
        return None

    def _backup_named(self, name: str, error: CheckpointError) -> Manifest | None:
        """Return the backup that ``name``, which home has not, stands for; ``None`` where there is none."""
        try:
            if not is_checkpoint_id(name):
                return self._backup_by_name(name)
            if self._may_be_lost(name):
                backup = self.locations.backups.get(name)
                return None if backup.quarantined or self.is_deleted(backup) else backup
        except (CheckpointNotFoundError, CorruptManifestError):
            pass
        except Exception as failure:
            if not is_store_failure(failure):
                raise
            if not self.locations.catalogue.view().usable:
                raise unreachable(self.locations, failure) from failure
            error.add_note(f"Its backups could not be looked at: {failure}")
        return None

    def _backup_by_name(self, name: str) -> Manifest | None:
        if self.locations.catalogue.view().usable:
            return None
        catalogue = self.locations.backup_catalogue
        found = self.backups()
        while (wanted := catalogue.named(name, found)) and self.is_deleted(wanted):
            found.remove(wanted)
        return wanted

    def _may_be_lost(self, checkpoint_id: str) -> bool:
        """Tell whether home has nothing of a checkpoint that was not put away there: in trash, or in quarantine."""
        try:
            return not isinstance(self.locations.home.read(checkpoint_id).record, Manifest)
        except CorruptManifestError:
            return True


def _warn_of_home(manifest: Manifest, failure: CheckpointError) -> None:
    logger.warning(
        "%s cannot be brought back to the store, and is loaded from its backup: %s", manifest.checkpoint_id, failure
    )


def unreachable(locations: Locations, failure: Exception) -> Exception:
    """Return the error for an experiment without checkpoints whose backups cannot be looked at."""
    problem = f"{locations.name!r} has no checkpoint, and its backups cannot be looked at"
    hint = "Try again when they can be: beginning from nothing would forget what they hold."
    if isinstance(failure, CheckpointError):
        failure.message, failure.hint = f"{problem}: {failure.message}", hint
        return failure
    return StoreUnavailableError(f"{problem}: {failure}", path=locations.backups.location(), hint=hint)
