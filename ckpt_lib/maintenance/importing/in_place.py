"""Imports in place: the files of another program become a checkpoint where they lie, and stay as they are.

Only a manifest is written beside them. It names the files and holds their digests, so that from then on they are
validated, backed up and loaded like any other payload. They belong to the program that wrote them: nothing here
writes, renames or removes them. A deletion removes the records of the checkpoint alone, and its backup is never written
over the files. It is pinned: to retire it would free nothing.

The claim of such an import names no files: one that is killed leaves a claim, and a sweep of it removes nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import FileEntry, Foreign, Manifest, can_be_in_place, is_own_name, payload_sha256
from ckpt_lib.core.names import check_experiment_name
from ckpt_lib.core.wording import shown
from ckpt_lib.errors import (
    CheckpointExistsError,
    ConfigError,
    InvalidNameError,
    NotACheckpointError,
    NotAStoreError,
)
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.at_path import parent_and_name
from ckpt_lib.experiment.claims import WITHOUT_FILES
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import FOLDER_SUFFIX
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.experiment.stored_payload import StoredPayload
from ckpt_lib.foreign import ForeignCheckpoint, FoundFiles, materialise
from ckpt_lib.foreign.checksums import check_checksums
from ckpt_lib.foreign.format import NAME, SourceFiles
from ckpt_lib.foreign.opening import describe_checkpoint
from ckpt_lib.foreign.payloads import check_key_map, with_payload
from ckpt_lib.maintenance.importing.foreign_copies import ForeignImport, digest_of
from ckpt_lib.maintenance.importing.refusals import was_changed
from ckpt_lib.maintenance.importing.report import Imported
from ckpt_lib.store import Entry
from ckpt_lib.store.registry import scheme_of
from ckpt_lib.stream import VerifiedFile

_ORIGINAL = "It was imported in place, without a copy: {name} belongs to the program that wrote it."
_COPY = "Import a copy, without --in-place."


def import_in_place(task: ForeignImport, source: str) -> Imported:
    """Make a checkpoint of the file or folder ``source``, which lies in the folder of the experiment.

    Nothing but the records of the checkpoint is written. Raises :class:`~ckpt_lib.errors.ConfigError` for what lies
    elsewhere, :class:`~ckpt_lib.errors.InvalidNameError` for names that no manifest may hold,
    :class:`~ckpt_lib.errors.CheckpointExistsError` for files that are a checkpoint's already and have changed since,
    and otherwise what the import of a copy raises (:mod:`ckpt_lib.maintenance.importing.foreign_copies`). Killed on the
    way, call it again.
    """
    experiment, key_map = task.experiment, check_key_map(task.key_map)
    name = name_in(experiment, source)
    found_files = _find(experiment, name)
    title = _title_unread(experiment, name, found_files, key_map)
    entries = [_digest(task, file) for file in found_files]
    key = f"import in place of {name}: {payload_sha256({entry.part: entry.sha256 for entry in entries})}"
    if earlier := _owned(experiment, entries, key_map):
        return Imported(earlier, title, is_new=False)
    with StoredPayload(experiment, entries, verify=True) as stored:
        found = describe_checkpoint(_files(experiment, name, stored, found_files))
        facts, left_out = _facts_of(task, found, name)
        facts = replace(facts, idempotency_key=key)

    def note_files(sink: commit.Payload) -> None:
        if _find(experiment, name) != found_files:
            raise was_changed(experiment.location(name))
        sink.files += entries

    def change(manifest: Manifest) -> Manifest:
        return manifest.changed(foreign=Foreign(title=name, key_map=dict(key_map) if key_map else None), pinned=True)

    manifest = commit.save(experiment, facts, note_files, format_name=NAME, suffix=WITHOUT_FILES, change=change)
    if manifest.uid != facts.uid:  # another import was faster, or it was deleted and is back
        _require_same(experiment, manifest, entries, key_map)
    return Imported(manifest, title, is_new=manifest.uid == facts.uid, left_out=left_out)


def _facts_of(task: ForeignImport, found: ForeignCheckpoint, name: str) -> tuple[CheckpointFacts, tuple[str, ...]]:
    """Return what the manifest will say, and what of the checkpoint is not there."""
    unchecked = check_checksums(found.files)
    found = with_payload(found, check_key_map(task.key_map))
    facts = task.facts_of(found, _ORIGINAL.format(name=name), *unchecked)
    unhealthy = task.fault_of(materialise(found.payload), facts) if task.health_check else None
    return replace(facts, unhealthy=unhealthy), found.left_out


def name_in(experiment: Experiment, source: str) -> str:
    """Return the name of a file or folder in the folder of an experiment.

    Raises :class:`~ckpt_lib.errors.ConfigError`, with the store and the experiment to name, where it lies elsewhere.
    """
    parent, name = parent_and_name(source)
    place = experiment.location()
    is_here = parent == place or (scheme_of(source) == "file" and os.path.realpath(parent) == os.path.realpath(place))
    if is_here and not is_own_name(name):
        return name
    if is_here:
        raise InvalidNameError(f"{shown(name)} has a name that this library gives", path=source, hint=_COPY)
    store, folder = parent_and_name(parent)
    try:
        hint = f"Name that: --store {store} --experiment {check_experiment_name(folder)}. Or import a copy."
    except InvalidNameError:
        hint = f"The folder {shown(folder)} cannot be an experiment: rename it, or import a copy."
    raise ConfigError(
        "only what lies in the folder of the experiment can be imported in place",
        path=source,
        expected=f"a file or folder in {place}",
        hint=hint,
    )


def _find(experiment: Experiment, name: str) -> list[Entry]:
    """Return the files of a checkpoint as they are now. Raises unless they can be those of one."""
    key = experiment.key(name)
    if (found := experiment.store.stat(key)) is not None:
        files = [found]
    else:
        _refuse_links(experiment.location(name), experiment.location(name))
        files = []
        with suppress(NotAStoreError):  # a link
            files = [entry for entry in experiment.store.list(key, recursive=True) if not entry.is_folder]
    if not files:
        raise NotACheckpointError(
            "there is nothing at this path, or a link",
            path=experiment.location(name),
            hint="Files that are linked to are imported as a copy.",
        )
    names = [_name(experiment, entry) for entry in files]
    if not can_be_in_place(names):
        raise InvalidNameError(
            "a manifest cannot hold the names of these files",
            path=experiment.location(name),
            expected="letters, digits and . _ = + , @ - in the names of files below a folder",
            hint=_COPY,
        )
    return files


def _name(experiment: Experiment, entry: Entry) -> str:
    return entry.key[len(experiment.path) + 1 :] if experiment.path else entry.key


def _part(experiment: Experiment, entry: Entry) -> str:
    """Return the name of a file in the folder that is imported; empty for one that is imported itself."""
    return _name(experiment, entry).partition(FOLDER_SUFFIX)[2]


def _digest(task: ForeignImport, file: Entry) -> FileEntry:
    name = _name(task.experiment, file)
    with VerifiedFile(open_file(task.experiment, name), None) as opened:
        return digest_of(opened, name, task.progress)


def _title_unread(experiment: Experiment, name: str, files: list[Entry], key_map: Mapping[str, str] | None) -> str:
    """Return what it is, for a person. Raises for what cannot be loaded, before all of it is read."""
    keys = {_part(experiment, file): file for file in files}
    sizes = {part: file.size_bytes for part, file in keys.items()}
    place = experiment.location(name)
    with FoundFiles(
        place, sizes, lambda part: open_file(experiment, _name(experiment, keys[part])), title=name
    ) as read:
        found = describe_checkpoint(read)
        with_payload(found, key_map)
        return found.title


def _files(experiment: Experiment, name: str, stored: StoredPayload, files: list[Entry]) -> SourceFiles:
    times = {_part(experiment, file): file.modified_seconds for file in files}
    return SourceFiles(stored, name, path=experiment.location(name), modified_seconds=times)


def _owned(experiment: Experiment, entries: list[FileEntry], key_map: Mapping[str, str] | None) -> Manifest | None:
    """Return the checkpoint whose files these are already; ``None`` if there is none.

    Raises :class:`~ckpt_lib.errors.CheckpointExistsError` where one holds something else, or is in the trash.
    """
    names = {entry.name for entry in entries}
    view = experiment.index.view()
    for item in (*view.manifests, *view.deleted, *view.purging):
        is_gone = item.state == "deleted" and _digests(item.files) != _digests(entries)  # nothing brings that back
        if is_gone or names.isdisjoint(item.all_names):
            continue
        _require_same(experiment, item, entries, key_map)
        return item
    return None


def _digests(files: Iterable[FileEntry]) -> dict[str, str]:
    return {file.name: file.sha256 for file in files}


def _refuse_links(folder: str, path: str) -> None:
    """Raise for a folder of this machine that holds a link: what it leads to would be missing without a word."""
    for place, folders, files in os.walk(folder):
        for name in sorted((*folders, *files)):
            if os.path.islink(link := os.path.join(place, name)):
                raise NotACheckpointError(
                    f"{os.path.relpath(link, folder)} is a link, and links are never followed in place",
                    path=path,
                    hint=f"Nothing was imported. {_COPY} A copy holds what the link leads to.",
                )


def _require_same(
    experiment: Experiment, earlier: Manifest, entries: list[FileEntry], key_map: Mapping[str, str] | None
) -> None:
    """Raise unless what was imported before is what is to be imported."""
    if earlier.state == "purging":
        reason, hint = "the files are those of a checkpoint that is being removed", "Try again when they are gone."
    elif earlier.state == "deleted":
        reason = "the checkpoint was imported before, and is in the trash"
        hint = f"`ckpt undelete {earlier.checkpoint_id}` brings it back."
    elif _digests(earlier.files) != _digests(entries):
        reason = "the checkpoint was imported before, and its files have been changed since"
        hint = f"`ckpt delete {earlier.checkpoint_id}` removes its record alone: import it again then, or as a copy."
    elif earlier.quarantined is not None:
        reason, hint = "the checkpoint was imported before, and is in quarantine", "`ckpt repair` may bring it back."
    elif earlier.foreign is None or (earlier.foreign.key_map or None) != key_map:
        reason, hint = "the checkpoint was imported before, by another key_map", _COPY
    else:
        return
    raise CheckpointExistsError(
        reason,
        checkpoint_id=earlier.checkpoint_id,
        path=experiment.location(earlier.payload_name),
        hint=f"Nothing was imported, and nothing is changed. {hint}",
    )
