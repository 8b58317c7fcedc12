"""Adoption: a payload that lost its manifest gets one again.

The manifest of another copy is proof: SHA-256 says whether the bytes are those that were saved. Without any, the file
itself is asked. It is a zip archive with a CRC-32 of each record, and holds epoch, step, metrics and configuration; its
name holds the time. That is enough for a checkpoint, and enough to find every accident, but no proof: the new manifest
says so.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from ckpt_lib.core.facts import CheckpointFacts, GivenFacts
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.metadata import check_count
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import CheckpointError, NotACheckpointError, StoreError
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.formats import DEFAULT_FORMAT, format_named
from ckpt_lib.maintenance.validate import compare, is_unreadable
from ckpt_lib.stream import BLOCK_SIZE_BYTES, Progress, VerifiedFile
from ckpt_lib.stream.digests import StreamDigest

ADOPTED_TAG = "adopted"
_DESCRIPTION = (
    "Adopted: its manifest was lost. The checksums within the file agree, which finds accidents; that these are the "
    "bytes that were saved cannot be proven. Tags, pin and order of saving are lost or a guess."
)
_KEYS = {"model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "epoch", "step", "metrics", "config"}


@dataclass(frozen=True)
class Orphan:
    """A payload without a manifest, in this ``version``."""

    folder: CheckpointFolder
    name: str
    version: str

    @property
    def checkpoint_id(self) -> str:
        return self.name.partition(".")[0]


def is_proven(orphan: Orphan, manifest: Manifest, progress: Progress | None = None) -> bool:
    """Whether the manifest of another copy is this payload's."""
    is_named = manifest.payload.name == orphan.name
    return is_named and compare(orphan.folder, manifest, manifest.experiment_name, progress).is_valid


def adopt_proven(orphan: Orphan, manifest: Manifest) -> bool:
    """Give a payload the manifest of another copy, which :func:`is_proven`; whether it was still to be given one."""
    return commit.reference(orphan.folder, orphan.name, lambda: manifest, version=orphan.version) is not None


def examine(orphan: Orphan, experiment_name: str, monitor: Monitor) -> tuple[CheckpointFacts, FileEntry]:
    """The facts and digests of a payload that has no manifest anywhere; it is read to its end, and runs no code.

    Raises :class:`~ckpt_lib.errors.NotACheckpointError` when it is damaged, or nothing that this library saved.
    """
    try:
        with orphan.folder.hold(orphan.checkpoint_id, "being examined"):
            entry = _digest(orphan)
            _check_archive(orphan)
            return _facts(orphan, _read(orphan, entry), experiment_name, monitor), entry
    except CheckpointError as error:
        if isinstance(error, StoreError) and not is_unreadable(error):
            raise
        path = orphan.folder.location(orphan.name)
        raise NotACheckpointError(f"it cannot be adopted: {error.message}", path=path) from error


def adopt_unproven(orphan: Orphan, index: Index, facts: CheckpointFacts, entry: FileEntry) -> Manifest | None:
    """Make a payload a checkpoint, by what :func:`examine` said of it; ``None`` when it is one by now, or changed.

    It takes the place in the order of saving that its time tells, and is never newer than what was saved after it.
    """

    def make_manifest() -> Manifest:
        return Manifest(
            checkpoint_id=orphan.checkpoint_id,
            sequence=_sequence(index, CheckpointId.parse(orphan.checkpoint_id), entry.name),
            format=DEFAULT_FORMAT,
            files=(entry,),
            **facts.__dict__,
        )

    return commit.reference(orphan.folder, orphan.name, make_manifest, version=orphan.version)


def _open(orphan: Orphan) -> BinaryIO:
    return orphan.folder.store.open_read(orphan.folder.path_of(orphan.name))


def _digest(orphan: Orphan) -> FileEntry:
    digest = StreamDigest()
    with _open(orphan) as file:
        while block := file.read(BLOCK_SIZE_BYTES):
            digest.update(block)
    return FileEntry(name=orphan.name, **digest.finish().__dict__)


def _check_archive(orphan: Orphan) -> None:
    """Compare the checksum of every record. Compressed ones are none of ours, and might not end."""
    try:
        with _open(orphan) as file, zipfile.ZipFile(file) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise NotACheckpointError("it is compressed")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise NotACheckpointError(f"it is no whole archive ({error})") from error
    if damaged is not None:
        raise NotACheckpointError(f"its record {damaged} is damaged")


def _read(orphan: Orphan, entry: FileEntry) -> dict[str, Any]:
    """What it holds: of the very bytes that were digested."""
    with VerifiedFile(_open(orphan), entry) as file:
        payload = format_named(DEFAULT_FORMAT).read(file)
    if missing := _KEYS - payload.keys():
        raise NotACheckpointError(f"it holds no {', '.join(sorted(missing))}")
    return payload


def _facts(orphan: Orphan, payload: dict[str, Any], experiment_name: str, monitor: Monitor) -> CheckpointFacts:
    found = CheckpointId.parse(orphan.checkpoint_id)
    for name, expected in (("epoch", found.epoch), ("step", found.step)):
        if check_count(name, payload[name]) != expected:
            raise NotACheckpointError(f"it is of {name} {payload[name]}")
    given = GivenFacts(
        epoch=found.epoch,
        step=found.step,
        metrics=payload["metrics"],
        config=payload["config"],
        tags=[ADOPTED_TAG],
        description=_DESCRIPTION,
    )
    facts = given.checked(model_name="unknown", experiment_name=experiment_name, monitor=monitor, with_environment=True)
    return replace(facts, timestamp=found.timestamp, libraries={})


def _sequence(index: Index, adopted: CheckpointId, payload_name: str) -> int:
    """Just before what was saved next, which is where a lost manifest left its number free.

    Where no number is free it shares one with an earlier checkpoint, and their ids decide.
    """
    view = index.view()
    known = (*view.manifests, *view.deleted, *view.quarantined, *index.backed_up())
    later = [item.sequence for item in known if moment(CheckpointId.parse(item.checkpoint_id)) > moment(adopted)]
    if later:
        return max(1, min(later) - 1)
    suffix = payload_name.removeprefix(str(adopted))
    return index.next_place(adopted, suffix)[1]


def moment(found: CheckpointId) -> tuple[Any, ...]:
    """What orders ids by time."""
    return (found.timestamp, found.epoch, found.step, found.suffix)
