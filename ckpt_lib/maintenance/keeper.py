"""``Keeper``: what keeps the stored checkpoints of one experiment sound: checks, copies and quarantine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

from ckpt_lib.config import CheckpointConfig, is_max_backups_given
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.names import CheckpointId, check_experiment_name, check_run_id
from ckpt_lib.errors import ConfigError, CorruptCheckpointError, CorruptManifestError
from ckpt_lib.events import Listener
from ckpt_lib.experiment import noted_backups
from ckpt_lib.experiment.files import payload_version
from ckpt_lib.experiment.lineage import Lineage
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.maintenance import exports, quarantine
from ckpt_lib.maintenance.backup_status import BackupStatus, backup_status
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.maintenance.cleaners import BackupCleaner, CheckpointCleaner
from ckpt_lib.maintenance.doctor import Doctor
from ckpt_lib.maintenance.findings import DoctorReport
from ckpt_lib.maintenance.importing.report import Counted, ImportedItem, ImportReport
from ckpt_lib.maintenance.quarantine import QuarantinedCheckpoint, QuarantineReport
from ckpt_lib.maintenance.repair import Remedy, RepairReport, remedy
from ckpt_lib.maintenance.scrub import ScrubReport, scrub
from ckpt_lib.maintenance.snapshot_file import SnapshotFile
from ckpt_lib.maintenance.validate import KnownVersions, ValidationReport
from ckpt_lib.maintenance.validator import Validator, Verdicts
from ckpt_lib.policies.retention import RetentionPolicy
from ckpt_lib.stream import Progress


def check_policy(policy: Any, method: str) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` for a policy without its method."""
    if policy is not None and not callable(getattr(policy, method, None)):
        raise ConfigError(
            "this is no policy",
            expected=f"an object with a method {method}",
            got=type(policy).__name__,
            hint="ckpt_lib.policies.saving and ckpt_lib.policies.retention have them.",
        )


class Keeper:
    """Validates, copies, repairs and sets aside the stored checkpoints of one experiment.

    It is the part of :class:`ckpt_lib.manager.CheckpointManager` that deals with damage.
    """

    def __init__(
        self,
        config: CheckpointConfig | None,
        experiment_name: str,
        retention_policy: RetentionPolicy | None,
        run_id: str | None = None,
    ) -> None:
        self.config = config if config is not None else CheckpointConfig()
        if not isinstance(self.config, CheckpointConfig):
            raise ConfigError("config must be a CheckpointConfig", got=type(config).__name__)
        self.experiment_name = check_experiment_name(experiment_name)
        check_policy(retention_policy, "reasons")
        self.retention_policy = retention_policy
        self._locations = Locations(self.config, self.experiment_name)
        self._catalogue, self._best = self._locations.catalogue, self._locations.best
        self._known, self._lineage = KnownVersions(), Lineage(check_run_id(run_id))
        self._snapshot = SnapshotFile(self._locations)
        self._validator = Validator(self._locations, self._known, Verdicts(self._locations))
        self._cleaner = CheckpointCleaner(self._catalogue, self.config, retention_policy, self._lineage, self._known)
        self._backup_cleaner = BackupCleaner(self._locations, self._known)
        self._copies = Copies(self._locations, self._known, self._snapshot, self._backup_cleaner)

    def on_event(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with every event of this manager; return a function that stops it.

        See :mod:`ckpt_lib.events`, whose ``subscribe`` listens to all managers of this process. The listener is called
        on the thread of the event, and should be quick. Its errors are logged and fail nothing. A copy of the manager
        has no listeners.
        """
        return self._locations.events.subscribe(listener)

    # --- checking ---

    def validate_checkpoint(
        self, checkpoint_id: str = "latest", *, deep: bool = True, progress: Progress | None = None
    ) -> ValidationReport:
        """Read every byte of a checkpoint; the report is true when it is valid and says what is wrong and where.

        One that cannot be loaded without running code is damaged as well; its structure is read, and no code runs.
        By its SHA-256, or with ``deep=False`` by the digests of its chunks, which all processors share: these find
        every accident, in a fraction of the time. Damage is reported, not raised, with the names of the tensors it
        hits; a checkpoint that does not exist raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        return self._validator.validate(checkpoint_id, progress, deep=deep)

    def validate_all(self, *, deep: bool = True, progress: Progress | None = None) -> Iterator[ValidationReport]:
        """Validate every checkpoint, oldest first, those whose manifest cannot be read at the end."""
        return self._validator.validate_all(self._locations.home, progress, deep=deep)

    def validate_all_backups(
        self, *, deep: bool = True, progress: Progress | None = None
    ) -> Iterator[ValidationReport]:
        """Validate every backup, as :meth:`validate_all` does every checkpoint."""
        return self._validator.validate_all(self._locations.backups, progress, deep=deep)

    def validate_backup(
        self, checkpoint_id: str, *, deep: bool = True, progress: Progress | None = None
    ) -> ValidationReport:
        """Read every byte of a backup, as :meth:`validate_checkpoint` does of a checkpoint."""
        return self._validator.validate_backup(checkpoint_id, progress, deep=deep)

    def list_unreadable(self) -> list[ValidationReport]:
        """The checkpoints that :meth:`list_checkpoints` cannot show, because their manifest cannot be read."""
        return self._validator.unreadable(self._locations.home)

    def list_unreadable_backups(self) -> list[ValidationReport]:
        """The backups that :meth:`list_backups` cannot show, because their manifest cannot be read."""
        return self._validator.unreadable(self._locations.backups)

    def payload_version(self, checkpoint_id: str) -> str | None:
        """Return a text that changes when the payload file or its recorded digest does; ``None`` without the file.

        The file is not read. The outcome of a validation may be remembered by this text.
        """
        return payload_version(self._locations.home, self._catalogue.resolve(checkpoint_id))

    def scrub(
        self,
        *,
        max_bytes_per_second: float | None = None,
        restart: bool = False,
        progress: Progress | None = None,
    ) -> ScrubReport:
        """Read every byte of every checkpoint and backup, by all processors.

        See :func:`ckpt_lib.maintenance.scrub.scrub`. Killed or interrupted, the next call goes on where this one
        stopped; ``restart`` begins anew. All threads together read no faster than ``max_bytes_per_second``, and leave
        the page cache as they found it.
        """
        home, backups = self._locations.home, self._locations.backups
        report = scrub(home, backups, max_bytes_per_second=max_bytes_per_second, restart=restart, progress=progress)
        for experiment, found in ((home, report.checkpoints), (backups, report.backups)):
            for item in found:
                self._validator.verdicts.note(experiment, item)
        return report

    def doctor(self, *, fix: bool = False, deep: bool = False, progress: Progress | None = None) -> DoctorReport:
        """Check an experiment for leftovers, damage, missing backups and unknown files; with ``fix``, fix what can be.

        With ``deep``, every byte is read as well. Nothing is deleted but what a save or a deletion that did not come to
        its end left behind; what a living process is at work on is left alone. It may be killed at any point, and run
        again.
        """
        doctor = Doctor(self._locations, self._copies, deep=deep, progress=progress)
        if not fix:
            return doctor.check()
        with self._best.look_after():
            return doctor.fix()

    # --- copies ---

    def backup_checkpoint(
        self, checkpoint_id: str = "latest", *, verify_existing: bool = False, progress: Progress | None = None
    ) -> bool:
        """Make a verified copy in the backup location; ``False`` when there is one already.

        A copy that is there counts if its size is right, and so does the checkpoint then. ``verify_existing`` reads
        every byte of both, and replaces a damaged copy. Afterwards old backups are retired down to ``max_backups``, if
        the configuration gives it. Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when the checkpoint is found
        damaged, which is never copied.
        """
        manifest = self._catalogue.resolve(checkpoint_id)
        is_new = self._copies.back_up(manifest, progress, verify_existing=verify_existing)
        if is_new and is_max_backups_given(self.config):
            self._copies.cleaner.delete_surplus(manifest.checkpoint_id, self._locations.catalogue.monitor())
        return is_new

    def backup_ids(self) -> list[str]:
        """The id of every backup there is, oldest first, and then those whose manifest cannot be read."""
        return self._locations.backup_catalogue.ids()

    def list_backups(self) -> list[CheckpointMetadata]:
        """List the backups, oldest first; ``is_best`` and ``is_latest`` are among the backups."""
        return self._locations.backup_catalogue.describe_all()

    def get_backup(self, checkpoint_id: str) -> CheckpointMetadata:
        """The metadata of one backup; ``"latest"``, ``"best"`` and tags stand for one of the backups."""
        backups = self._locations.backup_catalogue
        return backups.describe(backups.resolve(checkpoint_id))

    @property
    def other_backup_dir(self) -> str | None:
        """Where runs of this experiment keep their backups, if this configuration names no ``backup_dir``."""
        return noted_backups.elsewhere(self._locations)

    def backup_status(self, checkpoint_id: str = "latest") -> BackupStatus:
        """Tell whether a checkpoint has a backup, and whether that was read back since it was written.

        No payload is read. A backup location that does not answer is no error: the state is ``"unknown"`` then, as it
        is where the runs have backups in a ``backup_dir`` that this configuration does not name.
        """
        return backup_status(self._locations, self._catalogue.resolve(checkpoint_id))

    def repair_checkpoint(self, checkpoint_id: str = "latest", *, progress: Progress | None = None) -> RepairReport:
        """Bring the damaged bytes of a checkpoint back from its backup.

        See :func:`ckpt_lib.maintenance.repair.repair`. The backup need not be whole: its chunks that are needed have to
        be. One that is in quarantine comes back if it verifies then.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` when these are damaged in both or there is no backup.
        """
        with self._best.look_after():
            return self._copies.repair(checkpoint_id, progress)

    def repair_backup(self, checkpoint_id: str, *, progress: Progress | None = None) -> RepairReport:
        """Bring the damaged bytes of a backup back from its checkpoint, as :meth:`repair_checkpoint` does the reverse.

        A backup that does not exist raises :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        return self._copies.repair_backup(checkpoint_id, progress)

    def remedy(
        self, report: ValidationReport, *, of_backup: bool = False, other: ValidationReport | None = None
    ) -> Remedy:
        """Return the advice for a checkpoint, or a backup, that a report tells to be damaged.

        ``"repair"`` where its other copy has what is missing, and else ``"quarantine"``. The other copy is read, unless
        its report is given as ``other``. Raises :class:`~ckpt_lib.errors.UnsupportedFormatError` for one whose bytes
        are sound, which can be loaded where its format is installed.
        """
        home, backups = self._locations.home, self._locations.backups
        if of_backup:
            return remedy(report, home, other)
        record = None
        with suppress(CorruptManifestError):
            record = home.read(report.checkpoint_id).record
        is_in_place = isinstance(record, Manifest) and record.is_in_place
        return remedy(report, backups, other, is_in_place=is_in_place)

    def export_checkpoint(
        self,
        checkpoint_id: str,
        destination: str | os.PathLike[str],
        *,
        format: str | None = None,  # noqa: A002
        dtype: Any = None,
        only: Literal["model"] | None = None,
        shard_size: int | str | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Copy a checkpoint and its manifest into another folder; return the path of the payload there.

        Plain ``torch.load`` reads that file; :meth:`import_checkpoint` of any experiment takes it back. A
        ``destination`` that ends with ``.pt``, ``.pth`` or ``.ckpt`` becomes that file, without a manifest, unless it
        is an existing folder. Anything else is a folder; ``.safetensors`` is refused without a slash behind it.

        With ``format``, ``dtype``, ``only`` or ``shard_size``, it is converted for another program instead, as
        :func:`ckpt_lib.convert_checkpoint` does; ``.ckpt`` stands for a file of torch then, too. What the format cannot
        hold is logged as a warning.
        """
        found = self._catalogue.resolve(checkpoint_id)
        wanted = {"format": format, "dtype": dtype, "only": only, "shard_size": shard_size}
        given = {name: value for name, value in wanted.items() if value is not None}
        try:
            if given:
                from ckpt_lib.maintenance import conversion  # which loads torch

                return conversion.export(self._locations.home, found, destination, progress=progress, **given)
            return exports.export(self._locations.home, found, destination, progress)
        except CorruptCheckpointError as error:
            error.hint = error.hint or (
                f"`ckpt repair {found.checkpoint_id}` brings the bytes back from a backup; "
                "`ckpt list` shows older checkpoints."
            )
            raise

    def import_checkpoint(
        self,
        source: str | os.PathLike[str],
        *,
        key_map: Mapping[str, str] | None = None,
        in_place: bool = False,
        progress: Progress | None = None,
        told: Callable[[ImportedItem], object] | None = None,
    ) -> str:
        """Take in a checkpoint as the newest of this experiment; return its id here.

        ``source`` is an export, a payload of this library without its manifest, or the file or folder of a checkpoint
        of another program. That is saved anew as the configuration says, with its states under our keys; ``key_map``
        says which they are where its names do not tell, such as ``{"net": "model"}``. Its description says what was
        left out. With ``in_place`` nothing is copied: a manifest is written beside the files, which must lie in this
        experiment's folder. They stay their program's: nothing here ever writes, renames or removes them.

        Importing it again returns the same checkpoint. ``told`` is given what became of it: whether it is new, and what
        was left out. Raises :class:`~ckpt_lib.errors.UnsafePayloadError`,
        :class:`~ckpt_lib.errors.CorruptCheckpointError` or :class:`~ckpt_lib.errors.NotACheckpointError` for one that
        cannot be loaded without running code, is damaged, or is none, and :class:`~ckpt_lib.errors.ConfigError` for one
        that lies elsewhere or a ``key_map`` that does not fit; nothing is written then.
        """
        with self._best.look_after():
            imported = self._copies.import_from(source, key_map=key_map, in_place=in_place, progress=progress)
        if told:
            told(imported.item())
        return imported.manifest.checkpoint_id

    def import_checkpoints(
        self,
        folder: str | os.PathLike[str],
        *,
        key_map: Mapping[str, str] | None = None,
        in_place: bool = False,
        progress: Progress | None = None,
        counted: Counted | None = None,
    ) -> ImportReport:
        """Take in every checkpoint in a folder and below, in the order of their steps, epochs or times.

        Each is imported as by :meth:`import_checkpoint`, and one that was imported before is skipped. The report says
        of each thing found what became of it, and why; one that cannot be imported keeps no other from it. ``counted``
        is told how many of how many are done. Raises :class:`~ckpt_lib.errors.NotACheckpointError` where there is no
        folder, or one of too many files.
        """
        with self._best.look_after():
            return self._copies.import_tree(
                folder, key_map=key_map, in_place=in_place, progress=progress, counted=counted
            )

    # --- quarantine ---

    def quarantine_checkpoint(self, checkpoint_id: str, *, progress: Progress | None = None) -> QuarantineReport:
        """Set a damaged checkpoint aside, with the report, unless its backup can repair it, which is then done instead.

        It is not listed and not loaded any more, and no retention rule counts it; its payload stays where it is.
        :meth:`repair_checkpoint` brings it back. Raises :class:`~ckpt_lib.errors.ProtectedCheckpointError` when it is
        intact.
        """
        with self._best.look_after():
            return self._copies.quarantine(checkpoint_id, progress)

    def quarantine_backup(self, checkpoint_id: str, *, progress: Progress | None = None) -> QuarantineReport:
        """Set a damaged backup aside, as :meth:`quarantine_checkpoint` does of a checkpoint.

        It is repaired instead when its checkpoint can. :meth:`backup_checkpoint` replaces it, :meth:`repair_backup`
        brings it back and :meth:`delete_backup` removes it.
        """
        return self._copies.quarantine_backup(checkpoint_id, progress)

    def list_quarantined(self) -> list[QuarantinedCheckpoint]:
        """The checkpoints that were set aside, each with the report that says why."""
        return quarantine.list_quarantined(self._locations.home)

    def list_quarantined_backups(self) -> list[QuarantinedCheckpoint]:
        """The backups that were set aside, as :meth:`list_quarantined` does the checkpoints."""
        return quarantine.list_quarantined(self._locations.backups, is_backup=True)

    def delete_quarantined(self, checkpoint_id: str) -> int:
        """Remove what is left of a checkpoint in quarantine, for good; return how many bytes that frees.

        Its backup stays. Raises
        :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint is not in quarantine.
        """
        return self._copies.delete_quarantined(str(CheckpointId.parse(checkpoint_id)))
