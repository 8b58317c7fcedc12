"""The save protocol: the only code that makes a checkpoint visible.

A save claims an id, and the claim names the files that will be written. It uploads them, hashing them on the way, and
then turns the claim into a live manifest: that one conditional write is the commit. A crash before it leaves a claim,
which a sweep ends together with its files; a crash after it leaves a whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import FileEntry, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import CorruptCheckpointError, StorageFullError, UnsupportedFormatError, VersionConflictError
from ckpt_lib.experiment import claims, keys
from ckpt_lib.experiment.claims import HeldClaim, claim_new, give_up
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import find_stored_damages
from ckpt_lib.store.base import Upload
from ckpt_lib.stream.digests import Buffer
from ckpt_lib.stream.mirror import Mirror
from ckpt_lib.stream.writer import HashingWriter

OVERHEAD_BYTES = 32 * 2**10
"""Room that a commit takes beside the payload: for its claim and its manifest."""


def lack_of_room(experiment: Experiment, size_bytes: int, purpose: str, *, hint: str) -> StorageFullError | None:
    """Return the error for a payload that does not fit into the store; ``None`` if it does, or nobody can tell.

    ``purpose`` says what the space would be for: ``"for the checkpoint"``.
    """
    free_bytes, needed_bytes = experiment.store.free_bytes(), size_bytes + OVERHEAD_BYTES
    if free_bytes is None or free_bytes >= needed_bytes:
        return None
    return StorageFullError(
        f"there is not enough space {purpose}",
        path=experiment.location(),
        expected=f"{needed_bytes} bytes",
        got=f"{free_bytes} bytes free",
        hint=hint,
    )


class Holder(Protocol):
    """Whose the files of a payload are: a claim, or the next payload of a checkpoint."""

    @property
    def experiment(self) -> Experiment: ...

    @property
    def checkpoint_id(self) -> str: ...

    def file_name(self, name: str) -> str:
        """Return the name of a payload file in the experiment, as :meth:`HeldClaim.file_name`."""

    def renew(self) -> None:
        """Show that the owner is alive, if it has been a while."""


class Payload:
    """The sink that a format writes the files of one checkpoint to.

    ``open()`` gives the one file of a payload, ``open(name)`` a file of one that is a folder. Each is hashed on the
    way, and durable when its context ends. With ``verify``, it is read back then. A ``mirror`` gets the bytes of the
    one file as well.
    """

    def __init__(self, held: Holder, *, verify: bool = False) -> None:
        self._held = held
        self._verify = verify
        self.files: list[FileEntry] = []
        self.mirror: Mirror | None = None

    @property
    def checkpoint_id(self) -> str:
        return self._held.checkpoint_id

    @contextmanager
    def open(self, name: str = "") -> Iterator[HashingWriter]:
        """Write one file.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError` if the store holds other bytes, and
        :class:`~ckpt_lib.errors.UnsupportedFormatError` for a name that is taken or none for a payload file.
        """
        full = self._held.file_name(name)
        if any(file.name == full for file in self.files):
            raise UnsupportedFormatError(f"the format wrote the file {name!r} twice")
        upload = self._held.experiment.store.open_write(self._held.experiment.key(full))
        try:
            with HashingWriter(_RenewingSink(self._held, upload), mirror=self.mirror) as stream:
                yield stream
                digests = stream.finish()
            size_bytes = upload.commit().size_bytes
        finally:
            upload.abort()
        self._check(FileEntry(name=full, **vars(digests), compression=stream.compression), size_bytes)

    def _check(self, file: FileEntry, size_bytes: int) -> None:
        if size_bytes != file.size_bytes:
            raise self._refusal(f"{file.name} has {size_bytes} bytes in the store, not {file.size_bytes}")
        if self._verify and (damages := find_stored_damages(self._held.experiment, file)):
            raise self._refusal("; ".join(damage.message for damage in damages))
        self.files.append(file)

    def _refusal(self, problem: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"the store does not give back what was written: {problem}",
            path=self._held.experiment.location(),
            hint="Nothing was saved. Save elsewhere, and have memory and disk tested.",
        )


class _RenewingSink:
    """An upload that renews its claim: a save may take longer than an abandoned claim is kept."""

    def __init__(self, held: Holder, upload: Upload) -> None:
        self._held = held
        self._upload = upload

    def write(self, data: Buffer, /) -> int:
        self._held.renew()
        return self._upload.write(data)


def save(
    experiment: Experiment,
    draft: CheckpointFacts,
    write: Callable[[Payload], object],
    *,
    format_name: str,
    suffix: str,
    verify: bool = False,
    change: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> Manifest:
    """Commit what ``write`` writes, and return its manifest; when this returns, the checkpoint survives a crash.

    ``change`` is given the manifest before it is committed. A save whose ``idempotency_key`` has been saved before
    writes nothing and returns the earlier manifest. Any error leaves no checkpoint, but for one:
    :class:`~ckpt_lib.errors.NotDurableError` from the commit itself. Then others see the checkpoint, and power loss may
    undo it. Raises :class:`~ckpt_lib.errors.VersionConflictError` when another process took this one for dead, and
    :class:`~ckpt_lib.errors.ConfigError` where the store cannot keep two writers apart and ``single_writer`` was not
    asked for.
    """
    if draft.idempotency_key is not None and (earlier := keys.find(experiment, draft.idempotency_key)):
        return earlier
    wanted = CheckpointId(draft.epoch, draft.step, draft.timestamp)
    held = claim_new(experiment, wanted, draft.uid, suffix)
    try:
        held.confirm()
        if draft.idempotency_key is not None and (earlier := keys.take(held, draft.idempotency_key)):
            give_up(held)
            return earlier
        payload = Payload(held, verify=verify)
        write(payload)
        if not payload.files:
            raise UnsupportedFormatError(f"the format {format_name!r} wrote no file")
        manifest = Manifest(
            checkpoint_id=held.checkpoint_id,
            claim=held.claim.claim,
            state="live",
            sequence=experiment.index.next_sequence(),
            format=format_name,
            files=tuple(payload.files),
            **vars(draft),
        )
        return commit(held, change(manifest))
    except BaseException as error:
        give_up(held, error)
        raise


def commit(held: HeldClaim, manifest: Manifest, *, take_monitor: bool = True) -> Manifest:
    """Make a claim's checkpoint visible. The caller gives the claim up after any error.

    With ``take_monitor`` it records the monitor of the newest, which may have been set during the upload. Raises
    :class:`~ckpt_lib.errors.VersionConflictError` when the claim was taken for dead.
    """
    if take_monitor and (view := held.experiment.index.affordable_view()):
        manifest = manifest.changed(monitor=manifest.monitor.changed_to(view.monitor(manifest.monitor)))
    try:
        found = held.experiment.put_record(
            manifest,
            held.found.version,
            is_mine=lambda found: isinstance(found, Manifest) and found.claim == manifest.claim,
        )
    except VersionConflictError as error:
        raise VersionConflictError(
            "another process took this save for dead and ended its claim",
            checkpoint_id=held.checkpoint_id,
            path=held.experiment.location(),
            hint="Nothing was saved: save again.",
        ) from error
    claims.note_committed(held)
    held.experiment.index.note_saved(manifest, str(found.version))
    return manifest
