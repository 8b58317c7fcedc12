"""Another payload in the place of a checkpoint's, and how the old one goes.

The manifest names the files of the ``next`` payload before they are written. When they are whole, one conditional
rewrite makes them the checkpoint's ``files``, and the old ones ``obsolete``. So the manifest names a whole payload at
any time, and each file that a crash leaves is named or swept. What is obsolete can be switched back to until its
removal has begun, which the manifest says first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import MAX_OBSOLETE, FileEntry, Manifest, NextPayload, ObsoletePayload, Thinned, new_token
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ProtectedCheckpointError,
    StorageFullError,
    StoreUnavailableError,
    VersionConflictError,
)
from ckpt_lib.experiment import claims
from ckpt_lib.experiment.claims import ABANDONED_AFTER_SECONDS, file_name_below, is_over, remove_files
from ckpt_lib.experiment.edits import edit, rewrite
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.files import refuse_original
from ckpt_lib.experiment.found import Found
from ckpt_lib.experiment.layout import payload_name

Check = Callable[[Manifest], CheckpointError | None]
"""Returns the error to raise instead of replacing the payload of a manifest; ``None`` when it may be replaced."""


@dataclass
class HeldNext:
    """The next payload of a checkpoint, which this process writes. Its files are nobody else's, now and ever after."""

    experiment: Experiment
    checkpoint_id: str
    payload: NextPayload
    renewed_at: float

    def file_name(self, name: str) -> str:
        """Return the name of a payload file, as :meth:`~ckpt_lib.experiment.claims.HeldClaim.file_name`."""
        return file_name_below(self.payload.files[0], name, self.checkpoint_id)

    def renew(self) -> None:
        """Show that the owner is alive, if it has been a while.

        Raises :class:`~ckpt_lib.errors.VersionConflictError` when it was taken for dead.
        """
        if time.monotonic() - self.renewed_at < claims.RENEW_AFTER_SECONDS:
            return
        found = self.experiment.read_visible(self.checkpoint_id)
        if not self.is_next_of(found.manifest):
            raise self.taken_for_dead()
        rewrite(self.experiment, found)  # whoever was faster has renewed it as well
        self.renewed_at = time.monotonic()

    def is_next_of(self, manifest: Manifest) -> bool:
        """Tell whether the manifest still waits for this payload."""
        return manifest.next is not None and manifest.next.claim == self.payload.claim and not manifest.next.abandoned

    def taken_for_dead(self) -> VersionConflictError:
        """Return the error of one for which others did not wait any longer."""
        return VersionConflictError(
            "another process took this one for dead and gave up the payload that it wrote",
            checkpoint_id=self.checkpoint_id,
            path=self.experiment.location(),
            hint="The checkpoint is as it was: try again.",
        )


def replace_payload(
    experiment: Experiment,
    source: Manifest,
    suffix: str,
    write: Callable[[HeldNext], Sequence[FileEntry]],
    *,
    thinned: Thinned | None,
    check: Check = lambda _: None,
) -> Manifest:
    """Put what ``write`` writes in the place of the payload of ``source``; return the manifest then.

    ``check`` judges the manifest each time that it is replaced. The old payload is obsolete from then on:
    :func:`switch_back` brings it back until :func:`remove_obsolete` has removed it. Raises what ``check`` returns and
    ``write`` raises, :class:`~ckpt_lib.errors.ProtectedCheckpointError` for one that was imported in place,
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted, and
    :class:`~ckpt_lib.errors.VersionConflictError` when another process replaces its payload. After any error, and when
    it is killed at any point, the checkpoint has the old payload or the new one, whole; the next sweep clears the rest.
    """

    def may_replace(manifest: Manifest) -> CheckpointError | None:
        return check(manifest) or (None if manifest.has_files_of(source) else _replaced(experiment, manifest))

    held = _name_next(experiment, source.checkpoint_id, suffix, may_replace)
    try:
        files = tuple(write(held))
        changed = _switch(held, files, thinned, may_replace)
    except BaseException as error:
        _give_up(held, error)
        raise
    claims.note_ended(held.payload.claim)
    return changed


def _name_next(experiment: Experiment, checkpoint_id: str, suffix: str, check: Check) -> HeldNext:
    """Name the files that are to take the place of a checkpoint's, before any of them is written."""
    experiment.check_writable()
    for _ in range(ATTEMPTS):
        found = experiment.read_visible(checkpoint_id)
        manifest = found.manifest
        refuse_original(experiment, manifest)
        if error := check(manifest) or _without_room(manifest):
            raise error
        if manifest.next is not None:
            if not _is_next_over(experiment, found, ABANDONED_AFTER_SECONDS):
                raise _under_way(experiment, manifest)
            _end_next(experiment, found)
            continue
        token = new_token()
        name = payload_name(checkpoint_id, suffix, token)
        payload = NextPayload(claim=token, owner=Owner.current(), files=(name,))
        claims.note_begun(token)
        held = HeldNext(experiment, checkpoint_id, payload, time.monotonic())
        try:
            if rewrite(experiment, found, next=payload, state="live"):
                return held
        except BaseException as error:  # it may have been named all the same
            _give_up(held, error)
            raise
        claims.note_ended(token)
    raise too_busy(experiment, "the checkpoint", checkpoint_id)


def _switch(held: HeldNext, files: tuple[FileEntry, ...], thinned: Thinned | None, check: Check) -> Manifest:
    """Make the files that were written those of the checkpoint: one conditional rewrite.

    A quarantine ends: it was about the other files.
    """
    since = held.experiment.now()

    def change(manifest: Manifest) -> Manifest:
        if manifest.files == files:  # an answer was lost, and others have edited it since
            return manifest
        if not held.is_next_of(manifest):
            raise held.taken_for_dead()
        if error := check(manifest):
            raise error
        old = ObsoletePayload(files=manifest.files, since=since, thinned=manifest.thinned)
        obsolete = (*manifest.obsolete, old)
        return manifest.changed(files=files, thinned=thinned, next=None, obsolete=obsolete, quarantined=None)

    return edit(held.experiment, held.checkpoint_id, change)


def switch_back(experiment: Experiment, checkpoint_id: str, earlier: ObsoletePayload) -> Manifest:
    """Make an obsolete payload that is whole that of its checkpoint again; the present one is obsolete from then on.

    A quarantine ends: it was about the other files. Raises :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the
    checkpoint was deleted, or the removal of the payload has begun. Killed on the way, it has one of the two.
    """
    since = experiment.now()

    def change(manifest: Manifest) -> Manifest:
        if manifest.files == earlier.files:
            return manifest
        if earlier not in manifest.obsolete:
            raise CheckpointNotFoundError(
                "the earlier payload of the checkpoint has been removed meanwhile",
                checkpoint_id=checkpoint_id,
                path=experiment.location(),
                hint=f"A backup may still hold it: `ckpt restore {checkpoint_id}`.",
            )
        present = ObsoletePayload(files=manifest.files, since=since, thinned=manifest.thinned)
        others = tuple(item for item in manifest.obsolete if item.files != earlier.files)
        return manifest.changed(
            files=earlier.files, thinned=earlier.thinned, obsolete=(*others, present), quarantined=None
        )

    return edit(experiment, checkpoint_id, change)


# --- what nothing comes of ---


def _give_up(held: HeldNext, reason: BaseException) -> None:
    """End a payload that nothing came of, unless the switch to it has happened; never raises an error of the library.

    Where the ``reason`` is a full store, no switch is under way, and the files go first: the rest needs their room.
    """
    claims.note_ended(held.payload.claim)
    with contextlib.suppress(CheckpointError, OSError):
        found = held.experiment.read(held.checkpoint_id)
        record = found.record
        if isinstance(record, Manifest) and record.next and record.next.claim == held.payload.claim:
            if isinstance(reason, StorageFullError):
                remove_files(held.experiment, held.payload.files)
            _end_next(held.experiment, found)
        elif not (isinstance(record, Manifest) and _holds(record, held.payload)):
            remove_files(held.experiment, held.payload.files)


def _holds(manifest: Manifest, payload: NextPayload) -> bool:
    """Tell whether the manifest names what was written: the switch to it has happened."""
    return any(name.startswith(payload.files[0]) for name in manifest.all_names)


def end_next_of_the_dead(experiment: Experiment, checkpoint_id: str, abandoned_after_seconds: float) -> bool:
    """Clear the next payload of a checkpoint if its owner is dead or did not renew it for so long."""
    found = experiment.read(checkpoint_id)
    is_waiting = isinstance(found.record, Manifest) and found.record.state != "purging" and found.record.next
    if not is_waiting or not _is_next_over(experiment, found, abandoned_after_seconds):
        return False
    return _end_next(experiment, found)


def _is_next_over(experiment: Experiment, found: Found, abandoned_after_seconds: float) -> bool:
    payload = found.manifest.next
    assert payload is not None
    if payload.abandoned:
        return True
    idle_seconds = experiment.now().timestamp() - found.modified_seconds
    return is_over(payload.owner, payload.claim, idle_seconds, abandoned_after_seconds)


def _end_next(experiment: Experiment, found: Found) -> bool:
    """End a next payload: the manifest says so first, then its files go, then its name; ``False`` when it went on.

    Killed on the way, the next sweep goes on.
    """
    payload = found.manifest.next
    assert payload is not None
    if not payload.abandoned:
        marked = rewrite(experiment, found, next=payload.model_copy(update={"abandoned": True}))
        if marked is None:
            return False
        found = marked
    remove_files(experiment, payload.files)
    return rewrite(experiment, found, next=None) is not None


# --- what is obsolete ---


def remove_obsolete(
    experiment: Experiment,
    *,
    grace_seconds: float,
    only: Callable[[Manifest], bool] = lambda _: True,
    is_sound: Callable[[Manifest], bool] = lambda _: True,
    is_enough: Callable[[], bool] = lambda: False,
) -> list[ObsoletePayload]:
    """Remove payloads in whose place another one came at least ``grace_seconds`` ago; return them.

    None goes while ``is_sound`` does not find what took its place to be good: it may be needed. ``only`` chooses among
    the checkpoints. Killed on the way, the next call goes on. One whose files cannot be removed is logged, and keeps no
    other one from going.
    """
    waiting = [item for item in experiment.index.view().valid if item.obsolete and only(item)]
    if not waiting:
        return []
    until = experiment.now() - timedelta(seconds=grace_seconds)
    removed: list[ObsoletePayload] = []
    for manifest in waiting:
        if is_enough():
            break
        try:
            removed += _remove_of(experiment, manifest.checkpoint_id, until, is_sound)
        except StoreUnavailableError:
            raise
        except CheckpointError as error:
            logger.error("removing an earlier payload of %s failed: %s", manifest.checkpoint_id, error)
    return removed


def _remove_of(
    experiment: Experiment, checkpoint_id: str, until: datetime, is_sound: Callable[[Manifest], bool]
) -> list[ObsoletePayload]:
    for _ in range(ATTEMPTS):
        found = experiment.read(checkpoint_id)
        manifest = found.record
        if not (isinstance(manifest, Manifest) and manifest.is_valid):
            return []
        doomed = [item for item in manifest.obsolete if item.removing or item.since <= until]
        if doomed and not is_sound(manifest):
            logger.error("an earlier payload of %s is kept: the present one is damaged", checkpoint_id)
            doomed = [item for item in doomed if item.removing]
        if not doomed:
            return []
        going = [item.model_copy(update={"removing": True}) for item in doomed]
        others = [item for item in manifest.obsolete if item not in doomed]
        # Written anew where another process has begun: it may have been killed before its record was durable.
        marked = rewrite(experiment, found, obsolete=(*others, *going))
        if marked is None:
            continue
        remove_files(experiment, [file.name for item in doomed for file in item.files])
        rewrite(experiment, marked, obsolete=tuple(others))  # else the next one does it
        return doomed
    raise too_busy(experiment, "the checkpoint", checkpoint_id)


# --- refusals ---


def _without_room(manifest: Manifest) -> CheckpointError | None:
    if len(manifest.obsolete) < MAX_OBSOLETE:
        return None
    return ProtectedCheckpointError(
        f"{len(manifest.obsolete)} earlier payloads of the checkpoint wait in the trash",
        checkpoint_id=manifest.checkpoint_id,
        expected=f"fewer than {MAX_OBSOLETE}",
        hint="`ckpt trash --empty` removes them.",
    )


def _under_way(experiment: Experiment, manifest: Manifest) -> VersionConflictError:
    assert manifest.next is not None
    return VersionConflictError(
        f"{manifest.next.owner} is writing another payload for the checkpoint",
        checkpoint_id=manifest.checkpoint_id,
        path=experiment.location(),
        hint="Nothing was changed: try again when that has ended.",
    )


def _replaced(experiment: Experiment, manifest: Manifest) -> VersionConflictError:
    return VersionConflictError(
        "another process has replaced the payload of the checkpoint meanwhile",
        checkpoint_id=manifest.checkpoint_id,
        path=experiment.location(),
        hint="Look at it again, and try again then.",
    )
