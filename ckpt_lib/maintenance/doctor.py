"""The doctor: everything that is not as it should be in an experiment and its backups, and the command that fixes it.

A check changes nothing. A fix is what the command does that the finding names: a sweep, a repair or a backup. It may be
killed anywhere and runs beside a training. Nothing is deleted but what a save or a deletion that did not come to its
end left behind.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    NotACheckpointError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment import deleted_by_name, pointers
from ckpt_lib.experiment.claims import ABANDONED_AFTER_SECONDS, is_dead, is_over
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.index import snapshot
from ckpt_lib.experiment.layout import (
    BACKUPS_NAME,
    FOLDER_SUFFIX,
    MANIFEST_SUFFIX,
    OWN_PREFIX,
    SNAPSHOT_NAME,
    payload_owner,
)
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.sweep import is_leftover, is_named, sweep
from ckpt_lib.experiment.view import View
from ckpt_lib.maintenance.both_copies import Copies
from ckpt_lib.maintenance.cleanup import expire
from ckpt_lib.maintenance.findings import Action, DoctorReport, Finding, Kind, Place, Treatment
from ckpt_lib.maintenance.quarantine import list_quarantined
from ckpt_lib.maintenance.repair import Remedy, remedy
from ckpt_lib.maintenance.validate import ValidationReport, validate
from ckpt_lib.store import Entry, location
from ckpt_lib.stream import Progress

_OWN_FOLDERS = {"keys/", "uids/"}
_KINDS_IN_ORDER: tuple[Kind, ...] = (
    *("half save", "half deletion", "leftover", "damaged", "quarantined", "damaged pointer", "no backup"),
)
"""In which they are fixed: a repair before a backup, and the snapshot of all that at the end."""


@dataclass(frozen=True)
class _Side:
    """One of the two places, as it was found."""

    place: Place
    experiment: Experiment
    view: View

    def entries(self) -> dict[str, Entry]:
        """Return what lies there, by its name."""
        start = len(self.experiment.path) + 1 if self.experiment.path else 0
        return {key[start:]: entry for key, entry in self.view.entries.items()}

    def has_ours(self) -> bool:
        """Tell whether any file here is of this library."""
        return any(payload_owner(name) or _is_own_file(name, self.place) for name in self.entries())

    def records(self) -> dict[str, Manifest | Claim]:
        view = self.view
        manifests = {item.checkpoint_id: item for item in (*view.manifests, *view.deleted, *view.purging)}
        return {**manifests, **{claim.checkpoint_id: claim for claim in view.claims}}

    def manifests(self) -> dict[str, Manifest]:
        return {manifest.checkpoint_id: manifest for manifest in self.view.manifests}

    def unreadable_ids(self) -> set[str]:
        return {str(error.checkpoint_id) for error in self.view.unreadable}

    def finding(
        self, kind: Kind, name: str, message: str, *, action: Action | None = None, size_bytes: int = 0
    ) -> Finding:
        return Finding(
            kind=kind,
            place=self.place,
            name=name,
            message=message,
            fix=self._command(action, name) if action else None,
            action=action,
            size_bytes=size_bytes,
        )

    def _command(self, action: Action, name: str) -> str:
        """Return what to type, which for a repair or a quarantine says which of the copies is meant."""
        option = "--backups " if self.place == "backups" else ""
        commands: dict[Action, str] = {
            "sweep": "ckpt cleanup",
            "repair": f"ckpt repair {option}{name}",
            "quarantine": f"ckpt quarantine {option}{name}",
            "back up": f"ckpt backup {name}",
            "write snapshot": "ckpt doctor --fix",
            "mend pointer": "ckpt doctor --fix",
        }
        return commands[action]


@dataclass(frozen=True)
class Doctor:
    """Examines one experiment. With ``deep``, every byte is read."""

    locations: Locations
    copies: Copies
    deep: bool = False
    progress: Progress | None = None

    def check(self) -> DoctorReport:
        """Look at everything and change nothing.

        Raises :class:`~ckpt_lib.errors.NotACheckpointError` where nothing is of this library, which is not healthy.
        """
        return DoctorReport(experiment_name=self.locations.name, findings=tuple(self._findings()))

    def fix(self) -> DoctorReport:
        """Do what the findings of a check name, and say what is left. A fix that fails stops no other one."""
        due = [finding for finding in self.check().findings if finding.action]
        due.sort(key=lambda finding: (*_KINDS_IN_ORDER, finding.kind).index(finding.kind))
        done = tuple(self._fixed(finding) for finding in due)
        return self.check().model_copy(update={"done": done})

    # --- looking ---

    def _findings(self) -> Iterator[Finding]:
        home = _Side("checkpoints", self.locations.home, self.locations.home.index.view())
        try:
            backups = _Side("backups", self.locations.backups, self.locations.backups.index.view())
        except CheckpointError as error:
            if not home.has_ours():  # only the backups could tell what there was
                raise
            yield from self._of_side(home, None)
            yield Finding(kind="backup location", place="backups", name="", message=error.message)
            return
        _require_ours(home, backups)
        if {SNAPSHOT_NAME, BACKUPS_NAME + FOLDER_SUFFIX} & backups.entries().keys():
            yield from self._of_side(home, None)
            message = (
                f"{self.locations.backups.location()} is the folder of another run's checkpoints, which would be "
                "retired as backups: choose another backup_dir"
            )
            yield backups.finding("backup location", "", message)
            return
        yield from self._of_side(home, backups)
        of_backups = list(self._of_side(backups, home))
        yield from of_backups
        yield from self._of_copies(home, backups, {item.name for item in of_backups if item.kind == "damaged"})
        yield from self._of_snapshot(home)

    def _of_side(self, side: _Side, other: _Side | None) -> Iterator[Finding]:
        """Say what one place shows; ``other`` has the other copies, if that can be used."""
        yield from self._of_records(side)
        yield from self._of_damage(side, other)
        yield from self._of_quarantine(side, other)
        yield from _of_files(side, other)
        yield from _of_pointers(side)
        for name in sorted(_links(location(side.experiment.store, side.experiment.path))):
            yield side.finding("link", name, "a link or a device; it is never followed or changed")

    def _of_records(self, side: _Side) -> Iterator[Finding]:
        """Say what saves and deletions left that did not come to their end, and what is in the trash."""
        now = datetime.now(UTC)  # asking the store's clock would write a file; a fix asks it before it ends a claim
        for claim in side.view.claims:
            found = side.experiment.read(claim.checkpoint_id)
            if isinstance(found.record, Claim) and found.record.state != "gone" and is_dead(found, now):
                message = "a save that did not come to its end, and was not acknowledged"
                yield side.finding("half save", claim.checkpoint_id, message, action="sweep")
        for manifest in side.view.purging:
            message = "deleted for good, and some of its bytes are still there"
            yield side.finding("half deletion", manifest.checkpoint_id, message, action="sweep")
        for manifest in side.view.deleted:
            yield from self._of_deleted(side, manifest, now)
        for manifest in (*side.view.manifests, *side.view.deleted):
            yield from _of_next(side, manifest, now)
        for manifest in side.view.valid:
            yield from self._of_obsolete(side, manifest, now)

    def _of_deleted(self, side: _Side, manifest: Manifest, now: datetime) -> Iterator[Finding]:
        checkpoint_id, size_bytes = manifest.checkpoint_id, manifest.removable_bytes
        trash = timedelta(seconds=self.locations.config.trash_seconds)
        left_seconds = ((manifest.deleted_at or now) + trash - now).total_seconds()
        if left_seconds <= 0 and side.view.valid:
            message = "deleted, and its bytes are still there"
            yield side.finding("half deletion", checkpoint_id, message, action="sweep", size_bytes=size_bytes)
        elif side.place == "checkpoints":
            limit = f"for another {duration(left_seconds)}" if left_seconds > 0 else "as long as no other one is left"
            message = f"deleted; `ckpt undelete {checkpoint_id}` brings it back {limit}"
            yield side.finding("deleted", checkpoint_id, message, size_bytes=size_bytes)

    def _of_obsolete(self, side: _Side, manifest: Manifest, now: datetime) -> Iterator[Finding]:
        """Say what is left of the payloads in whose place others came."""
        checkpoint_id, trash = manifest.checkpoint_id, timedelta(seconds=self.locations.config.trash_seconds)
        for item in manifest.obsolete:
            left_seconds = (item.since + trash - now).total_seconds()
            if left_seconds <= 0 or item.removing:
                message = "another payload has taken its place, and its bytes are still there"
                yield side.finding("half deletion", checkpoint_id, message, action="sweep", size_bytes=item.size_bytes)
            elif manifest.thinned and item.thinned is None and side.place == "checkpoints":
                undo = (
                    f"`ckpt thin --undo {checkpoint_id}` brings back what it lost for another {duration(left_seconds)}"
                )
                yield side.finding("thinned", checkpoint_id, f"thinned; {undo}", size_bytes=item.size_bytes)

    def _of_damage(self, side: _Side, other: _Side | None) -> Iterator[Finding]:
        for manifest in side.view.usable:
            try:
                report = self._validated(side, manifest)
            except CheckpointNotFoundError:  # deleted meanwhile, which is no damage
                continue
            if not report:
                yield self._damaged(side, other, manifest, report)
        copied = other.records() if other else {}
        for error in side.view.unreadable:
            checkpoint_id = str(error.checkpoint_id)
            if isinstance(error, UnsupportedSchemaError):
                yield side.finding("newer version", checkpoint_id, error.message)
            elif isinstance(error, CorruptManifestError) and isinstance(copied.get(checkpoint_id), Manifest):
                yield side.finding("damaged", checkpoint_id, error.message, action="repair")
            else:
                yield side.finding(
                    "damaged", checkpoint_id, f"{error.message}; there is no other copy to repair it from"
                )

    @staticmethod
    def _damaged(side: _Side, other: _Side | None, manifest: Manifest, report: ValidationReport) -> Finding:
        checkpoint_id, size_bytes = manifest.checkpoint_id, manifest.size_bytes
        if report.has_unknown_format:
            return side.finding("unknown format", checkpoint_id, report.message, size_bytes=size_bytes)
        links = _links(location(side.experiment.store, side.experiment.path))
        if links.intersection(damage.file for damage in report.damages):
            message = f"{report.message}: a link is where it should be, which is never followed"
            return side.finding("damaged", checkpoint_id, message, size_bytes=size_bytes)
        action = _remedy(report, manifest, other)
        outlook = "its other copy can repair it" if action == "repair" else "no other copy can repair it"
        if manifest.is_in_place:
            outlook = f"{manifest.payload_name} belongs to the program that wrote it, and stays as it is"
        message = f"{report.message}; {outlook}"
        return side.finding("damaged", checkpoint_id, message, action=action, size_bytes=size_bytes)

    def _of_quarantine(self, side: _Side, other: _Side | None) -> Iterator[Finding]:
        for item in list_quarantined(side.experiment):
            sides = (side,) if item.checkpoint.original else (side, other)
            copies = [found for found in sides if found and item.checkpoint_id in found.manifests()]
            can_return = any(self._is_whole(found, item.checkpoint_id) for found in copies)
            action: Action | None = "repair" if can_return else None
            message = f"set aside: {item.report.message}"
            yield side.finding("quarantined", item.checkpoint_id, message, action=action, size_bytes=item.size_bytes)

    def _is_whole(self, side: _Side, checkpoint_id: str) -> bool:
        """Read a copy and tell whether it verifies; asked only where something is damaged."""
        manifest = side.manifests()[checkpoint_id]
        return side.experiment.is_complete(manifest) and validate(side.experiment, manifest, self.progress).is_valid

    def _of_copies(self, home: _Side, backups: _Side, damaged: Container[str]) -> Iterator[Finding]:
        """Say what only shows when checkpoints and backups, of which some are ``damaged``, are compared."""
        records, copied = home.records(), backups.manifests()
        for checkpoint_id, manifest in copied.items():
            original = records.get(checkpoint_id)
            is_gone = (original is None or isinstance(original, Claim)) and checkpoint_id not in damaged
            if original is not None and original.uid != manifest.uid:
                message = "its backup is of a different checkpoint with that id: choose another backup_dir"
                yield backups.finding("other checkpoint", checkpoint_id, message)
            elif is_gone and checkpoint_id not in home.unreadable_ids() and self._is_usable(backups, manifest):
                message = f"its checkpoint is gone: `ckpt restore {checkpoint_id}` brings it back"
                if deleted_by_name.is_deleted(home.experiment, backups.experiment, manifest):
                    message = f"its checkpoint was deleted by name: `ckpt delete --backups {checkpoint_id}` frees it"
                size_bytes = manifest.size_bytes
                yield backups.finding("backup only", checkpoint_id, message, size_bytes=size_bytes)
            elif isinstance(original, Manifest) and manifest.thinned and not original.thinned:
                message = (
                    f"it was thinned and holds less than its checkpoint: `ckpt delete --backups {checkpoint_id}` and "
                    f"`ckpt backup {checkpoint_id}` make a full one"
                )
                yield backups.finding("thinned", checkpoint_id, message, size_bytes=manifest.size_bytes)
        wanted = self.copies.wanted_backups() - copied.keys() - backups.unreadable_ids()
        for manifest in home.view.usable:
            if manifest.checkpoint_id in wanted and self._is_usable(home, manifest):
                message = "it has no backup, and the configuration asks for one"
                yield home.finding(
                    "no backup", manifest.checkpoint_id, message, action="back up", size_bytes=manifest.size_bytes
                )

    def _is_usable(self, side: _Side, manifest: Manifest) -> bool:
        return manifest.quarantined is None and side.experiment.is_complete(manifest)

    def _of_snapshot(self, home: _Side) -> Iterator[Finding]:
        is_there = SNAPSHOT_NAME in home.entries()
        if not self.locations.config.save_metadata or not (is_there or home.view.usable):
            return
        wanted = snapshot(home.view.usable, self.locations.name)
        found = home.experiment.read_small(SNAPSHOT_NAME, len(wanted) + 1)
        if found is None or found[0] != wanted:
            message = "it does not show what there is; nothing goes by it"
            yield home.finding("stale snapshot", SNAPSHOT_NAME, message, action="write snapshot")

    def _validated(self, side: _Side, manifest: Manifest) -> ValidationReport:
        """Validate by size or, when all bytes are to be read, by those."""
        experiment = side.experiment
        if not self.deep and experiment.is_complete(manifest):
            return ValidationReport(checkpoint_id=manifest.checkpoint_id, experiment_name=experiment.name)
        report = validate(experiment, manifest, self.progress)
        if not report:
            experiment.check_current(manifest)  # raises when it was deleted meanwhile
        return report

    # --- fixing ---

    def _fixed(self, finding: Finding) -> Treatment:
        try:
            return Treatment(finding=finding, outcome=self._fix(finding), succeeded=True)
        except CheckpointError as error:
            return Treatment(finding=finding, outcome=error.message, succeeded=False)

    def _fix(self, finding: Finding) -> str:
        """Do what the finding's command does, and say what came of it."""
        is_backup, name = finding.place == "backups", finding.name
        match finding.action:
            case "sweep":
                return self._sweep(self.locations.backups if is_backup else self.locations.home)
            case "back up":
                return self._back_up(name)
            case "write snapshot":
                self.copies.snapshot.write()
                return "written anew"
            case "mend pointer":
                return self._mend_pointer(self.locations.backups if is_backup else self.locations.home, name)
            case "repair":
                repair = self.copies.repair_backup if is_backup else self.copies.repair
                return repair(name, self.progress).message
            case _:
                set_aside = self.copies.quarantine_backup if is_backup else self.copies.quarantine
                return set_aside(name, self.progress).message

    def _mend_pointer(self, experiment: Experiment, name: str) -> str:
        return "mended" if pointers.mend(experiment, name) else "left: this store removes nothing under a condition"

    def _back_up(self, checkpoint_id: str) -> str:
        try:
            self.copies.back_up(self.locations.home.get(checkpoint_id), self.progress)
        except CorruptCheckpointError:  # which no backup was there to tell
            return self.copies.quarantine(checkpoint_id, self.progress).message
        return "backed up"

    def _sweep(self, experiment: Experiment) -> str:
        sweep(experiment)
        expire(experiment, self.locations.config.trash_seconds, self.copies.known)
        return "removed"


def _of_next(side: _Side, manifest: Manifest, now: datetime) -> Iterator[Finding]:
    """Say what a dead process wrote to take the place of a payload."""
    if manifest.next is None:
        return
    found = side.experiment.read(manifest.checkpoint_id)
    payload = found.record.next if isinstance(found.record, Manifest) else None
    idle_seconds = now.timestamp() - found.modified_seconds
    if payload and (payload.abandoned or is_over(payload.owner, payload.claim, idle_seconds, ABANDONED_AFTER_SECONDS)):
        message = "a payload that was to take the place of this one was not finished"
        yield side.finding("half save", manifest.checkpoint_id, message, action="sweep")


def _remedy(report: ValidationReport, manifest: Manifest, other: _Side | None) -> Remedy:
    """Return what helps a damaged copy; its other one is read, as far as there is one that can be."""
    twin = other.records().get(manifest.checkpoint_id) if other else None
    if other is None or (twin is not None and twin.uid != manifest.uid):
        return "quarantine"
    try:
        return remedy(report, other.experiment, is_in_place=manifest.is_in_place)
    except CheckpointError:  # a quarantine tries a repair first, and says what is in the way
        return "quarantine"


def _of_files(side: _Side, other: _Side | None) -> Iterator[Finding]:
    """Say which files no record names."""
    records, unreadable, copied = side.records(), side.unreadable_ids(), other.manifests() if other else {}
    manifests = (record for record in records.values() if isinstance(record, Manifest))
    in_place = {manifest.payload_name for manifest in manifests if manifest.is_in_place}
    for name, entry in sorted(side.entries().items()):
        checkpoint_id = payload_owner(name)
        if checkpoint_id is None:
            if not (_is_own_file(name, side.place) or name.removesuffix(FOLDER_SUFFIX) in in_place):
                yield side.finding("unknown", name, _unknown(entry), size_bytes=entry.size_bytes)
        elif checkpoint_id in unreadable:
            continue
        elif checkpoint_id not in records:
            path = location(side.experiment.store, entry.key)
            message = f"a payload without a manifest: `ckpt import {path}` takes it in"
            if side.place == "checkpoints" and checkpoint_id in copied:
                message = f"a payload without a manifest: `ckpt restore {checkpoint_id}` brings back its backup"
            yield side.finding("no manifest", name, message, size_bytes=entry.size_bytes)
        elif is_leftover(records[checkpoint_id], name):
            message = "a payload that its manifest does not name"
            yield side.finding("leftover", name, message, action="sweep", size_bytes=entry.size_bytes)
        elif not is_named(records[checkpoint_id], name):
            yield side.finding("unknown", name, _unknown(entry), size_bytes=entry.size_bytes)


def _unknown(entry: Entry) -> str:
    return "a folder that holds nothing of a checkpoint here" if entry.is_folder else "a file that nobody here wrote"


def _of_pointers(side: _Side) -> Iterator[Finding]:
    experiment = side.experiment
    for folder in sorted(_OWN_FOLDERS & side.entries().keys()):
        for entry in experiment.store.list(experiment.key(folder)):
            name = folder + entry.key.rpartition("/")[2]
            if not entry.is_folder and name.endswith(MANIFEST_SUFFIX) and pointers.read(experiment, name).is_damaged:
                message = "it cannot be read, so what it stands for is looked for among all checkpoints"
                yield side.finding("damaged pointer", name, message, action="mend pointer", size_bytes=entry.size_bytes)


def _is_own_file(name: str, place: Place) -> bool:
    """Tell whether a name is that of a file of this library which is no payload."""
    is_manifest = name.endswith(MANIFEST_SUFFIX) and is_checkpoint_id(name.removesuffix(MANIFEST_SUFFIX))
    is_of_home = place == "checkpoints" and name in (SNAPSHOT_NAME, BACKUPS_NAME + FOLDER_SUFFIX)
    return is_manifest or is_of_home or name in _OWN_FOLDERS or name.startswith(OWN_PREFIX)


def _require_ours(home: _Side, backups: _Side) -> None:
    """Raise where neither place has a file of this library."""
    if home.has_ours() or backups.has_ours():
        return
    count = len(home.entries())
    raise NotACheckpointError(
        "there are no checkpoints, and nothing that a save or a deletion left",
        path=home.experiment.location(),
        got=f"{count} other files and folders" if count else "nothing",
        hint="`ckpt experiments` lists the experiments of a store.",
    )


def _links(path: str) -> frozenset[str]:
    """Return links and devices in a folder of this machine, which stores do not show."""
    if not os.path.isdir(path):
        return frozenset()
    with os.scandir(path) as found:
        kinds = [(item.name, item.is_file(follow_symlinks=False), item.is_dir(follow_symlinks=False)) for item in found]
    return frozenset(name for name, is_file, is_folder in kinds if not (is_file or is_folder))
