"""The doctor: everything that is not as it should be in an experiment and its backups, and what puts it right.

Looking changes nothing, but that the lock of a dead process goes when it is taken. A treatment is one step of
:mod:`ckpt_lib.experiment.commit`, which may be killed anywhere and runs beside a training: what a living process is at
work on, or holds, is left alone. Nothing is deleted but what a save or a deletion that did not come to its end left
behind. After a treatment, nothing is found that another would change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

from ckpt_lib.core.damage import Damage, missing_file
from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import CheckpointId, is_checkpoint_id
from ckpt_lib.core.wording import duration
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    CorruptManifestError,
    NotACheckpointError,
    StorePermissionError,
    UnsupportedSchemaError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index, View, snapshot
from ckpt_lib.experiment.layout import (
    BACKUPS_NAME,
    MANIFEST_SUFFIX,
    OWN_PREFIX,
    SNAPSHOT_NAME,
    CheckpointFolder,
    Mark,
    manifest_entries,
    marker_entries,
)
from ckpt_lib.formats.registry import PAYLOAD_SUFFIXES
from ckpt_lib.maintenance import quarantine, recover
from ckpt_lib.maintenance.findings import DoctorReport, Finding, Kind, Place, Treatment
from ckpt_lib.maintenance.recover import Orphan
from ckpt_lib.maintenance.validate import ValidationReport, unreadable_report, validate
from ckpt_lib.store import Entry, Leftover
from ckpt_lib.stream import Progress

_ROUNDS = 5
"""How often to look again: what one treatment uncovers, such as a payload whose marker was damaged, is another's."""
_MARGIN_SECONDS = 2.0
_MOMENT_SECONDS = 0.3
"""Longer than a living process takes to make a lease, or to end one."""


class _NotDoneError(CheckpointError):
    """A treatment that did not happen; nothing was changed."""


@dataclass(frozen=True)
class _Case:
    """A finding and its treatment, which returns what to say of it, or raises."""

    finding: Finding
    treat: Callable[[], str] | None = None


@dataclass(frozen=True)
class _Look:
    """A folder at a moment at which nobody was changing names in it."""

    folder: CheckpointFolder
    view: View
    leftovers: tuple[Leftover, ...]
    held: Mapping[str, str]
    now_seconds: float
    links: frozenset[str]

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self.view.entries


@dataclass
class Doctor:
    """Examines one experiment. ``back_up`` makes a backup, ``renew_snapshot`` writes ``checkpoint_metadata.json``.

    ``wanted_backups`` says which checkpoints should have a backup. With ``deep``, every byte is read.
    """

    folder: CheckpointFolder
    index: Index
    backups: CheckpointFolder
    backup_index: Index
    experiment_name: str
    monitor: Monitor
    trash_seconds: float
    has_snapshot: bool
    wanted_backups: Callable[[], Collection[str]]
    back_up: Callable[[str], object]
    renew_snapshot: Callable[[], object]
    deep: bool = False
    progress: Progress | None = None
    _read: dict[tuple[str, str], ValidationReport] = field(default_factory=dict)

    def diagnose(self) -> DoctorReport:
        """Look at everything and change nothing.

        Raises :class:`~ckpt_lib.errors.NotACheckpointError` where nothing is of this library, which is not healthy.
        """
        cases = self._cases()
        return DoctorReport(experiment_name=self.experiment_name, findings=tuple(case.finding for case in cases))

    def treat(self) -> DoctorReport:
        """Put right what can be, and say what is left. A treatment that fails stops no other one."""
        done: list[Treatment] = []
        tried: set[tuple[Kind, Place, str]] = set()
        cases = self._cases()
        for _ in range(_ROUNDS):
            due = [case for case in cases if case.treat and _key(case.finding) not in tried]
            if not due:
                break
            # The snapshot last: the others change what it should show.
            due = [case for case in due if case.finding.kind != "stale snapshot"] or due
            for case in due:
                tried.add(_key(case.finding))
                done.append(_treated(case))
            cases = self._cases()
        findings = tuple(case.finding for case in cases)
        return DoctorReport(experiment_name=self.experiment_name, findings=findings, done=tuple(done))

    # --- looking ---

    def _cases(self) -> list[_Case]:
        _require_ours(self.folder, self.backups)
        here = _look(self.folder, self.index)
        try:
            there = _look(self.backups, self.backup_index)
        except CheckpointError as error:
            return [*self._of_folder(here, None), self._case("backup location", "backups", "", error.message)]
        if SNAPSHOT_NAME in there.entries or BACKUPS_NAME in there.entries:
            message = (
                f"{self.backups.location()} is the folder of another run's checkpoints, which would be retired as "
                "backups: choose another backup_dir"
            )
            return [*self._of_folder(here, None), self._case("backup location", "backups", "", message)]
        return [
            *self._of_folder(here, there),
            *self._of_folder(there, here),
            *self._of_copies(here, there),
        ]

    def _of_folder(self, look: _Look, other: _Look | None) -> Iterator[_Case]:
        """What one folder shows; ``other`` is the one with the other copies, if that can be used."""
        place = self._place(look)
        for leftover in look.leftovers:
            yield self._of_leftover(look, leftover)
        explained = {SNAPSHOT_NAME, BACKUPS_NAME} if place == "checkpoints" else set()
        for mark in get_args(Mark):
            for checkpoint_id, entry in marker_entries(look.entries.values(), mark).items():
                explained |= {entry.name, *_payload_names(look, checkpoint_id, mark)}
                yield from _unless_gone(partial(self._of_marker, look, other, checkpoint_id, mark))
        for manifest in look.view.manifests:
            explained |= {manifest.checkpoint_id + MANIFEST_SUFFIX, manifest.payload.name}
            if not (report := self._validated(look, manifest)):
                yield from _unless_gone(partial(self._of_damaged, look, manifest, report))
        for error in look.view.unreadable:
            checkpoint_id = str(error.checkpoint_id)
            explained |= {checkpoint_id + MANIFEST_SUFFIX, *quarantine.payload_names(checkpoint_id, None)}
            yield self._of_unreadable(look, checkpoint_id, error)
        orphans = [name for name in look.entries.keys() - explained if _is_payload(look.entries[name])]
        for name in sorted(orphans, key=_moment, reverse=True):  # each is placed before the next one
            yield from _unless_gone(partial(self._of_orphan, look, other, name))
        for name in sorted(look.entries.keys() - explained - set(orphans)):
            if not name.startswith(OWN_PREFIX):
                what = "a folder" if look.entries[name].is_folder else "a file"
                yield self._case("unknown", place, name, f"{what} that nobody here wrote", entry=look.entries[name])
        for name in sorted(look.links):
            yield self._case("link", place, name, "a link or a device; it is never followed or changed")

    def _of_leftover(self, look: _Look, leftover: Leftover) -> _Case:
        kind: Kind = "stale lease" if leftover.over_in_seconds else "leftover"
        fix = "remove it"
        if leftover.over_in_seconds:
            fix = f"remove it when it has been watched for {duration(leftover.over_in_seconds)}"
        return self._case(
            kind,
            self._place(look),
            leftover.name,
            leftover.message,
            fix=fix,
            size_bytes=leftover.size_bytes,
            treat=partial(_sweep_patiently, look.folder, self.trash_seconds, leftover),
        )

    def _of_marker(self, look: _Look, other: _Look | None, checkpoint_id: str, mark: Mark) -> _Case:
        entry = look.entries[look.folder.marker_name(checkpoint_id, mark)]
        if checkpoint_id in manifest_entries(look.entries.values()):
            message = f"{entry.name} means nothing beside the manifest"
            return self._swept("leftover", look, entry.name, message, marker=entry.name)
        if mark == "quarantined":
            return self._of_quarantined(look, other, checkpoint_id)
        try:
            manifest = look.folder.read_marker(checkpoint_id, mark)
        except UnsupportedSchemaError as error:
            return self._case("newer version", self._place(look), entry.name, error.message)
        except CorruptManifestError as error:
            drop = partial(_drop_marker, look.folder, checkpoint_id, mark)
            fix = "remove it"
            return self._case("damaged marker", self._place(look), entry.name, error.message, fix=fix, treat=drop)
        payload = look.entries.get(manifest.payload.name)
        if mark == "saving":
            message = "a save that did not come to its end, and was not acknowledged"
            return self._swept("half save", look, checkpoint_id, message, marker=entry.name, payload=payload)
        return self._of_deleted(look, checkpoint_id, entry, payload)

    def _of_deleted(self, look: _Look, checkpoint_id: str, marker: Entry, payload: Entry | None) -> _Case:
        left_seconds = self.trash_seconds - (look.now_seconds - marker.modified_seconds)
        if left_seconds <= 0 and checkpoint_id not in look.held:
            message = "deleted, and its bytes are still there"
            return self._swept("half deletion", look, checkpoint_id, message, marker=marker.name, payload=payload)
        message = f"deleted; `ckpt undelete {checkpoint_id}` brings it back for another {duration(left_seconds)}"
        return self._case("deleted", self._place(look), checkpoint_id, message, entry=payload)

    def _swept(
        self, kind: Kind, look: _Look, name: str, message: str, *, marker: str, payload: Entry | None = None
    ) -> _Case:
        sweep = partial(_sweep, look.folder, self.trash_seconds, marker)
        return self._case(kind, self._place(look), name, message, fix="remove it", entry=payload, treat=sweep)

    def _of_quarantined(self, look: _Look, other: _Look | None, checkpoint_id: str) -> _Case:
        found = quarantine.read(look.folder, checkpoint_id, self.experiment_name)
        may_return = other is not None and self._is_whole_copy(other, checkpoint_id)
        may_return = may_return or self._is_whole_again(look, checkpoint_id)
        treat = partial(self._bring_back, *self._pair(look), checkpoint_id) if may_return else None
        return self._case(
            "quarantined",
            self._place(look),
            checkpoint_id,
            f"set aside: {found.report.message}",
            fix="bring it back" if treat else None,
            size_bytes=found.size_bytes,
            treat=treat,
        )

    def _of_damaged(self, look: _Look, manifest: Manifest, report: ValidationReport) -> _Case:
        look.folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        return self._of_damage(look, manifest.checkpoint_id, report)

    def _of_damage(self, look: _Look, checkpoint_id: str, report: ValidationReport) -> _Case:
        place = self._place(look)
        damaged = {damage.file for damage in report.damages}
        if damaged & look.links:
            message = f"{report.message}: a link is where it should be, which is never followed"
            return self._case("damaged", place, checkpoint_id, message)
        message, fix = report.message, "set it aside"
        if any(look.entries[name].is_folder for name in damaged & look.entries.keys()):
            message += ": a folder is where it should be, which stays as it is"
        elif place == "checkpoints":
            fix = "repair it from its backup, or set it aside"
        elif self._is_gone(checkpoint_id):
            message += "; its checkpoint is gone, so that nothing can repair it"
        else:
            fix = "repair it from its checkpoint, or set it aside"
        return self._case(
            "damaged",
            place,
            checkpoint_id,
            message,
            fix=fix,
            size_bytes=report.size_bytes,
            treat=partial(self._set_aside, *self._pair(look), checkpoint_id),
        )

    def _is_gone(self, checkpoint_id: str) -> bool:
        """Whether nothing of a checkpoint is left but its backup."""
        return checkpoint_id not in map(_id_in, (entry.name for entry in self.folder.store.entries(self.folder.path)))

    def _of_unreadable(self, look: _Look, checkpoint_id: str, error: CheckpointError) -> _Case:
        if isinstance(error, UnsupportedSchemaError):
            return self._case("newer version", self._place(look), checkpoint_id, error.message)
        if not isinstance(error, CorruptManifestError):
            return self._case("damaged", self._place(look), checkpoint_id, error.message)
        return self._of_damage(look, checkpoint_id, unreadable_report(error, checkpoint_id, self.experiment_name))

    def _of_orphan(self, look: _Look, other: _Look | None, name: str) -> _Case:
        entry = look.entries[name]
        orphan = Orphan(look.folder, name, entry.version)
        place = self._place(look)
        message, fix, treat = "a payload without a manifest", None, None
        twins = other.view.manifests if other else ()
        twin = next((item for item in twins if item.checkpoint_id == orphan.checkpoint_id), None)
        if twin is not None:
            if recover.is_proven(orphan, twin, self.progress):
                message += "; its other copy has it"
                fix, treat = "give it its manifest again", partial(_adopt_proven, orphan, twin)
            else:
                message += f", and not what its other copy is: `ckpt restore {orphan.checkpoint_id}` replaces it"
        elif place == "checkpoints":
            try:
                facts = recover.examine(orphan, self.experiment_name, self.monitor)
            except NotACheckpointError as error:
                message += f"; {error.message}"
                fix, treat = "set it aside", partial(self._set_orphan_aside, orphan, error.message)
            else:
                message += "; the checksums in it agree"
                fix, treat = "adopt it, without proof", partial(_adopt_unproven, orphan, self.index, *facts)
        return self._case("no manifest", place, name, message, fix=fix, entry=entry, treat=treat)

    def _of_copies(self, here: _Look, there: _Look) -> Iterator[_Case]:
        """What only shows when checkpoints and backups are compared."""
        checkpoints = {manifest.checkpoint_id: manifest for manifest in here.view.manifests}
        backups = {manifest.checkpoint_id: manifest for manifest in there.view.manifests}
        for checkpoint_id in sorted(checkpoints.keys() & backups.keys()):
            if checkpoints[checkpoint_id].uid != backups[checkpoint_id].uid:
                message = "its backup is of a different checkpoint with that id: choose another backup_dir"
                yield self._case("other checkpoint", "backups", checkpoint_id, message)
        unreadable = {str(error.checkpoint_id) for error in there.view.unreadable}
        for checkpoint_id in sorted(set(self.wanted_backups()) - backups.keys() - unreadable):
            if checkpoint_id in checkpoints and self._validated(here, checkpoints[checkpoint_id]):
                yield self._case(
                    "no backup",
                    "checkpoints",
                    checkpoint_id,
                    "it has no backup, and the configuration asks for one",
                    fix="back it up",
                    size_bytes=checkpoints[checkpoint_id].payload.size_bytes,
                    treat=partial(self._back_up, checkpoint_id),
                )
        for checkpoint_id in sorted(backups.keys() - set(map(_id_in, here.entries))):
            if not self._validated(there, backups[checkpoint_id]):
                continue  # told of as damaged: nothing can be restored from it
            yield self._case(
                "backup only",
                "backups",
                checkpoint_id,
                f"its checkpoint is gone: `ckpt restore {checkpoint_id}` brings it back",
                size_bytes=backups[checkpoint_id].payload.size_bytes,
            )
        if self.has_snapshot and (checkpoints or SNAPSHOT_NAME in here.entries):
            yield from self._of_snapshot(here)

    def _of_snapshot(self, look: _Look) -> Iterator[_Case]:
        wanted = snapshot(look.view.manifests, self.experiment_name)
        entry = look.entries.get(SNAPSHOT_NAME)
        if (
            entry is None
            or entry.size_bytes != len(wanted)
            or look.folder.read_derived(SNAPSHOT_NAME, len(wanted)) != wanted
        ):
            yield self._case(
                "stale snapshot",
                "checkpoints",
                SNAPSHOT_NAME,
                "it does not show what there is; nothing goes by it",
                fix="write it anew",
                treat=self._renew_snapshot,
            )

    def _case(
        self,
        kind: Kind,
        place: Place,
        name: str,
        message: str,
        *,
        fix: str | None = None,
        size_bytes: int = 0,
        entry: Entry | None = None,
        treat: Callable[[], str] | None = None,
    ) -> _Case:
        size_bytes = entry.size_bytes if entry is not None and not entry.is_folder else size_bytes
        finding = Finding(kind=kind, place=place, name=name, message=message, fix=fix, size_bytes=size_bytes)
        return _Case(finding, treat)

    def _pair(self, look: _Look) -> tuple[CheckpointFolder, CheckpointFolder]:
        """The folder that was looked at, and the one with the other copies."""
        return look.folder, self.backups if look.folder == self.folder else self.folder

    def _place(self, look: _Look) -> Place:
        return "checkpoints" if look.folder == self.folder else "backups"

    def _validated(self, look: _Look, manifest: Manifest) -> ValidationReport:
        """By its size or, when all bytes are to be read, by those; each version of a file is read once."""
        entry = look.entries.get(manifest.payload.name)
        intact = ValidationReport(checkpoint_id=manifest.checkpoint_id, experiment_name=self.experiment_name)
        key = (look.folder.payload_location(manifest), entry.version if entry else "")
        if look.view.is_complete(manifest):
            if not self.deep:
                return intact
            if key in self._read:
                return self._read[key]
        elif entry is None:
            damage = missing_file(manifest.payload.name)
            return intact.model_copy(update={"damages": (damage,)})
        report = self._read[key] = validate(look.folder, manifest, self.experiment_name, self.progress)
        return report

    def _is_whole_copy(self, look: _Look, checkpoint_id: str) -> bool:
        """Whether the copy in that folder verifies; asked only where something is damaged."""
        manifest = next((item for item in look.view.manifests if item.checkpoint_id == checkpoint_id), None)
        return manifest is not None and validate(look.folder, manifest, self.experiment_name, self.progress).is_valid

    def _is_whole_again(self, look: _Look, checkpoint_id: str) -> bool:
        manifest = next((item for item in look.view.quarantined if item.checkpoint_id == checkpoint_id), None)
        if manifest is None or not look.view.is_complete(manifest):
            return False
        return validate(look.folder, manifest, self.experiment_name, self.progress).is_valid

    # --- treating ---

    def _set_aside(self, folder: CheckpointFolder, other: CheckpointFolder, checkpoint_id: str) -> str:
        return quarantine.set_aside(folder, checkpoint_id, other, self.experiment_name, self.progress).message

    def _set_orphan_aside(self, orphan: Orphan, reason: str) -> str:
        damage = Damage(file=orphan.name, kind="manifest", message=f"there is no manifest; {reason}")
        report = ValidationReport(
            checkpoint_id=orphan.checkpoint_id, experiment_name=self.experiment_name, damages=(damage,)
        )
        if not quarantine.set_aside_orphan(orphan.folder, orphan.name, orphan.version, report):
            raise _changed()
        return "set aside"

    def _bring_back(self, folder: CheckpointFolder, other: CheckpointFolder, checkpoint_id: str) -> str:
        found = quarantine.bring_back(folder, checkpoint_id, other, self.experiment_name, self.progress)
        return f"brought back: {found.message}"

    def _back_up(self, checkpoint_id: str) -> str:
        try:
            self.back_up(checkpoint_id)
        except CorruptCheckpointError:  # which no backup was there to tell
            return self._set_aside(self.folder, self.backups, checkpoint_id)
        return "backed up"

    def _renew_snapshot(self) -> str:
        self.renew_snapshot()
        return "written anew"


def _unless_gone(make: Callable[[], _Case]) -> Iterator[_Case]:
    """A case, unless what it is about has been taken away since the folder was looked at."""
    try:
        case = make()
    except (CheckpointNotFoundError, FileNotFoundError):
        return
    yield case


def _key(finding: Finding) -> tuple[Kind, Place, str]:
    return finding.kind, finding.place, finding.name


def _treated(case: _Case) -> Treatment:
    assert case.treat is not None
    try:
        return Treatment(finding=case.finding, outcome=case.treat(), succeeded=True)
    except CheckpointError as error:
        return Treatment(finding=case.finding, outcome=error.message, succeeded=False)


def _require_ours(folder: CheckpointFolder, backups: CheckpointFolder) -> None:
    """Raise where neither folder has a file of this library, or only the other one could tell and cannot be read.

    A look would leave a lock there.
    """
    entries = folder.store.entries(folder.path)
    if any(map(_is_ours, entries)) or any(map(_is_ours, backups.store.entries(backups.path))):
        return
    raise NotACheckpointError(
        "there are no checkpoints, and nothing that a save or a deletion left",
        path=folder.location(),
        got=f"{len(entries)} other files and folders" if entries else "nothing",
        hint="`ckpt experiments` lists the experiments of a store.",
    )


def _is_ours(entry: Entry) -> bool:
    return entry.name == SNAPSHOT_NAME or entry.name.startswith(OWN_PREFIX) or is_checkpoint_id(_id_in(entry.name))


def _look(folder: CheckpointFolder, index: Index) -> _Look:
    """What is there while nobody changes names; of a folder that cannot be written to, what is there."""
    links = _links(folder.location())
    leftovers = _lasting_leftovers(folder)  # first: whoever takes the lock of a dead owner clears it
    view = index.view()  # reads what is new, so that little is left to be read under the lock
    if not view.entries:  # locking would create the folder
        return _Look(folder, view, leftovers, {}, 0.0, links)
    try:
        with folder.lock() as held:
            return _Look(folder, index.view(), leftovers, folder.held(), held.time_seconds, links)
    except StorePermissionError:
        return _Look(folder, index.view(), leftovers, folder.held(), 0.0, links)


def _lasting_leftovers(folder: CheckpointFolder) -> tuple[Leftover, ...]:
    """Those that stay for a moment: what a living process is making or ending now goes by another name after it."""
    found = folder.store.leftovers(folder.path)
    if all(leftover.over_in_seconds for leftover in found):  # those are watched anyway
        return tuple(found)
    time.sleep(_MOMENT_SECONDS)
    lasting = {leftover.name for leftover in folder.store.leftovers(folder.path)}
    return tuple(leftover for leftover in found if leftover.name in lasting)


def _links(location: str) -> frozenset[str]:
    """Links and devices in a folder of this machine, which stores do not show."""
    if not os.path.isdir(location):
        return frozenset()
    with os.scandir(location) as found:
        kinds = [(item.name, item.is_file(follow_symlinks=False), item.is_dir(follow_symlinks=False)) for item in found]
    return frozenset(name for name, is_file, is_folder in kinds if not (is_file or is_folder))


def _payload_names(look: _Look, checkpoint_id: str, mark: Mark) -> list[str]:
    """The payload that a marker speaks of; one that cannot be read speaks of none."""
    try:
        manifest = look.folder.read_marker(checkpoint_id, mark)
    except (CheckpointNotFoundError, CorruptManifestError, UnsupportedSchemaError) as error:
        is_known = mark == "quarantined" or isinstance(error, UnsupportedSchemaError)
        return quarantine.payload_names(checkpoint_id, None) if is_known else []
    return [manifest.payload.name]


def _is_payload(entry: Entry) -> bool:
    return not entry.is_folder and entry.name.endswith(PAYLOAD_SUFFIXES) and is_checkpoint_id(_id_in(entry.name))


def _moment(name: str) -> tuple[object, ...]:
    return recover.moment(CheckpointId.parse(_id_in(name)))


def _id_in(name: str) -> str:
    """The id that a file's name would have, be it a payload, a manifest or a marker."""
    return name.removeprefix(".").partition(".")[0]


def _sweep_patiently(folder: CheckpointFolder, trash_seconds: float, leftover: Leftover) -> str:
    """Sweep; first watch a lease that seems to be over for as long as it takes to be sure."""
    deadline = time.monotonic() + leftover.over_in_seconds + _MARGIN_SECONDS
    while leftover.over_in_seconds and time.monotonic() < deadline:
        found = next((item for item in folder.store.leftovers(folder.path) if item.name == leftover.name), None)
        if found is None or not found.over_in_seconds:
            break
        time.sleep(min(1.0, leftover.over_in_seconds / 10))
    return _sweep(folder, trash_seconds, leftover.name)


def _sweep(folder: CheckpointFolder, trash_seconds: float, name: str) -> str:
    """Sweep, and see that ``name`` is gone."""
    commit.sweep(folder, folder.store.entries(folder.path), grace_seconds=trash_seconds)
    if any(entry.name == name for entry in folder.store.entries(folder.path)):
        raise _NotDoneError("it is still there: somebody is at work on it, or holds it")
    return "removed"


def _drop_marker(folder: CheckpointFolder, checkpoint_id: str, mark: Mark) -> str:
    if not commit.drop_damaged_marker(folder, checkpoint_id, mark):
        raise _changed()
    return "removed"


def _adopt_proven(orphan: Orphan, manifest: Manifest) -> str:
    if not recover.adopt_proven(orphan, manifest):
        raise _changed()
    return "it has its manifest again"


def _adopt_unproven(orphan: Orphan, index: Index, facts: CheckpointFacts, entry: FileEntry) -> str:
    adopted = recover.adopt_unproven(orphan, index, facts, entry)
    if adopted is None:
        raise _changed()
    return f"adopted without proof, as number {adopted.sequence} in the order of saving"


def _changed() -> _NotDoneError:
    return _NotDoneError("somebody else changed it meanwhile")
