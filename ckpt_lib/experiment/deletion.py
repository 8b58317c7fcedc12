"""Deleting checkpoints, bringing them back, and removing their files for good.

A deletion relies on other checkpoints: the newest, the best. Two deletions may each rely on what the other removes. So
a victim is ``leaving`` first, for all to see. It goes only if what the deletion relies on is there then, and is not
leaving itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ckpt_lib.core.logs import logger
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    NotDurableError,
    ProtectedCheckpointError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
    UnsupportedSchemaError,
    VersionConflictError,
)
from ckpt_lib.experiment import claims, pointers
from ckpt_lib.experiment.edits import bring_back, edit, keep_one_valid, rewrite, rewrite_all
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.files import require_unchanged
from ckpt_lib.experiment.found import Found

_AT_ONCE = 64
"""How many are removed before the next look at what the deletion relies on."""
Check = Callable[[Manifest], CheckpointError | None]
"""Returns the error to raise instead of deleting the checkpoint of a manifest; ``None`` when it may be deleted."""


def refuse_pinned(manifest: Manifest) -> CheckpointError | None:
    """Return an error for a pinned checkpoint."""
    if not manifest.pinned:
        return None
    hint = "`ckpt pin --off` unpins it."
    if manifest.is_in_place:
        hint += f" It was imported in place: deleting it removes its record alone, and {manifest.payload_name} stays."
    return ProtectedCheckpointError("the checkpoint is pinned", checkpoint_id=manifest.checkpoint_id, hint=hint)


def refuse_in_use(manifest: Manifest, now: datetime) -> CheckpointError | None:
    """Return an error for a checkpoint that a run has just resumed from."""
    if manifest.in_use_until is None or manifest.in_use_until <= now:
        return None
    return ProtectedCheckpointError(
        f"a run has resumed from it: it is kept until {manifest.in_use_until:%Y-%m-%d %H:%M} UTC",
        checkpoint_id=manifest.checkpoint_id,
        hint="Try again after that: a run that is killed before its first save needs it again.",
    )


def deleted_by_others(checkpoint_id: str) -> CheckpointNotFoundError:
    """Return the error for a checkpoint that someone else was faster to delete."""
    return CheckpointNotFoundError(
        "someone else has deleted the checkpoint meanwhile",
        checkpoint_id=checkpoint_id,
        hint=f"`ckpt undelete {checkpoint_id}` may bring it back.",
    )


@dataclass
class Deletion:
    """The outcome of a deletion. A checkpoint that others had deleted already is in no field."""

    deleted: list[Manifest] = field(default_factory=list)
    freed: list[Manifest] = field(default_factory=list)
    """Those deleted for good whose files are gone."""
    refused: dict[str, CheckpointError] = field(default_factory=dict)


def delete_all(
    experiment: Experiment,
    checkpoint_ids: Iterable[str],
    *,
    relied_on: Sequence[str] = (),
    check: Check = refuse_pinned,
    for_good: bool = False,
) -> Deletion:
    """Delete checkpoints, unless one of those ``relied_on`` is not there, not valid, or about to be deleted.

    :func:`undelete` brings one back until :func:`purge` has removed its files; ``for_good`` removes them at once.
    ``check`` judges each manifest as it is when it is replaced, and what a run has resumed from stays for an hour.
    Killed on the way, each checkpoint is there or deleted. One whose files cannot be removed keeps no other one from
    going: it is logged, and left to the next purge.
    """
    outcome = Deletion()
    experiment.check_writable()
    now = experiment.now()
    for checkpoint_id in relied_on:
        _take_back(experiment, checkpoint_id)
    leaving = _leave(experiment, checkpoint_ids, check, now, outcome)
    if not leaving:
        return outcome
    if not _all_valid(experiment, relied_on):
        _stay(experiment, leaving, outcome)
    elif for_good and relied_on:
        _remove(experiment, leaving, relied_on, outcome)
    else:
        _hide(experiment, leaving, relied_on, now, outcome)
    return outcome


def _hide(
    experiment: Experiment, leaving: Sequence[Found], relied_on: Sequence[str], now: datetime, outcome: Deletion
) -> None:
    """Put checkpoints that are leaving into the trash."""
    deleted = _move(experiment, leaving, outcome, state="deleted", deleted_at=now)
    if not _all_valid(experiment, relied_on):
        _stay(experiment, deleted, outcome)
    else:
        outcome.deleted = [found.manifest for found in deleted]


def _remove(experiment: Experiment, leaving: Sequence[Found], relied_on: Sequence[str], outcome: Deletion) -> None:
    """Remove checkpoints that are leaving, while the first of those that the deletion relies on is valid."""
    for start in range(0, len(leaving), _AT_ONCE):
        if not _all_valid(experiment, relied_on[:1]):
            _stay(experiment, leaving[start:], outcome)
            return
        moved = _move(experiment, leaving[start : start + _AT_ONCE], outcome, state="purging")
        outcome.deleted += [found.manifest for found in moved]
        outcome.freed += finish_each_purge(experiment, moved, [])


def _move(experiment: Experiment, leaving: Sequence[Found], outcome: Deletion, **facts: object) -> list[Found]:
    """Change the state of checkpoints that are leaving; return those that were still the same."""
    moved = []
    for found, written in zip(leaving, rewrite_all(experiment, leaving, **facts), strict=True):
        if isinstance(written, Found):
            moved.append(written)
        elif isinstance(written, VersionConflictError):
            _refuse(experiment, found, "it was changed meanwhile", outcome)
        else:
            outcome.refused[found.manifest.checkpoint_id] = written
    return moved


def _take_back(experiment: Experiment, checkpoint_id: str) -> None:
    """Let a checkpoint stay that someone, dead or alive, wanted to delete: now others rely on it."""
    found = experiment.read(checkpoint_id)
    if isinstance(found.record, Manifest) and found.record.state == "leaving":
        rewrite(experiment, found, state="live")


def _leave(
    experiment: Experiment, checkpoint_ids: Iterable[str], check: Check, now: datetime, outcome: Deletion
) -> list[Found]:
    """Let all see that checkpoints are leaving; return those that are."""
    waiting, leaving = list(checkpoint_ids), list[Found]()
    for _ in range(ATTEMPTS):
        victims = [item for name in waiting if (item := _victim(experiment, name, check, now, outcome))]
        waiting = []
        for victim, written in zip(victims, rewrite_all(experiment, victims, state="leaving"), strict=True):
            if isinstance(written, Found):
                leaving.append(written)
            elif isinstance(written, VersionConflictError):
                waiting.append(victim.manifest.checkpoint_id)
            else:
                outcome.refused[victim.manifest.checkpoint_id] = written
        if not waiting:
            return leaving
    for checkpoint_id in waiting:
        outcome.refused[checkpoint_id] = too_busy(experiment, "the checkpoint", checkpoint_id)
    return leaving


def _victim(experiment: Experiment, checkpoint_id: str, check: Check, now: datetime, outcome: Deletion) -> Found | None:
    """Return what is to be deleted; ``None`` where it is not there, or may not be."""
    try:
        found = experiment.read(checkpoint_id)
    except (IntegrityError, UnsupportedSchemaError, StorePermissionError) as unread:  # it keeps no other one from going
        outcome.refused[checkpoint_id] = unread
        return None
    manifest = found.record
    if not (isinstance(manifest, Manifest) and manifest.is_visible):
        return None
    if error := refuse_in_use(manifest, now) or check(manifest):
        outcome.refused[checkpoint_id] = error
        return None
    return found


def _all_valid(experiment: Experiment, checkpoint_ids: Iterable[str]) -> bool:
    records = (experiment.read(checkpoint_id).record for checkpoint_id in checkpoint_ids)
    return all(isinstance(record, Manifest) and record.is_valid for record in records)


def _stay(experiment: Experiment, victims: Iterable[Found], outcome: Deletion) -> None:
    for found in victims:
        bring_back(experiment, found)
        _refuse(experiment, found, "a checkpoint that should stay in its place has gone meanwhile", outcome)


def _refuse(experiment: Experiment, found: Found, reason: str, outcome: Deletion) -> None:
    """Note why a checkpoint was not deleted here: it was kept, or somebody else was faster."""
    checkpoint_id = found.manifest.checkpoint_id
    record = experiment.read(checkpoint_id).record
    if isinstance(record, Manifest) and record.is_visible:
        error: CheckpointError = ProtectedCheckpointError(
            f"the checkpoint was kept: {reason}",
            checkpoint_id=checkpoint_id,
            hint="Look at it again, and delete it then.",
        )
    else:
        error = deleted_by_others(checkpoint_id)
    outcome.refused[checkpoint_id] = error


def undelete(experiment: Experiment, checkpoint_id: str, *, pin: bool = False) -> Manifest:
    """Bring a deleted checkpoint back and return its manifest; one that is there is left as it is, but for the pin.

    With ``pin`` it is pinned from the moment it is back. Raises
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when nothing of it is left, and
    :class:`~ckpt_lib.errors.CorruptCheckpointError` for one that was imported in place and whose program has changed or
    removed its files since.
    """
    for _ in range(ATTEMPTS):
        found = experiment.read(checkpoint_id)
        manifest = found.record
        if not isinstance(manifest, Manifest) or manifest.state == "purging":
            break
        if manifest.is_visible:
            is_done = manifest.state == "live" and (manifest.pinned or not pin)
            return manifest if is_done else edit(experiment, checkpoint_id, lambda item: _pinned(item, pin))
        if manifest.is_in_place:
            require_unchanged(experiment, manifest)
        elif not experiment.is_complete(manifest):
            break
        if moved := bring_back(experiment, found, pinned=manifest.pinned or pin):
            return moved.manifest
    raise CheckpointNotFoundError(
        f"nothing is left of {checkpoint_id} that could come back",
        path=experiment.location(),
        hint=f"A backup may still be there: `ckpt restore {checkpoint_id}`.",
    )


def _pinned(manifest: Manifest, pin: bool) -> Manifest:
    return manifest.changed(pinned=manifest.pinned or pin)


def purge(
    experiment: Experiment,
    *,
    grace_seconds: float,
    only: Callable[[Manifest], bool] = lambda _: True,
    asked: bool = False,
    is_enough: Callable[[], bool] | None = None,
    is_sound: Callable[[Manifest], bool] = lambda _: True,
) -> list[Manifest]:
    """Remove the files of checkpoints deleted at least ``grace_seconds`` ago, first deleted first; return them.

    None goes while no valid checkpoint is live whose bytes ``is_sound`` finds to be good: then the newest such one that
    was deleted comes back. A person may have ``asked`` for it all the same. ``only`` chooses among the deleted ones.
    Killed on the way, the next purge goes on. One whose files cannot be removed keeps no other one from going: it is
    logged, and raised in the end where a person asked.
    """
    view, now = experiment.index.view(), experiment.now()
    purged: list[Manifest] = []
    failed: list[CheckpointError] = []
    for manifest in view.purging:
        with _going_on(manifest, failed if only(manifest) else []):
            if _go_on(experiment, manifest):
                purged.append(manifest)
    due = [
        manifest
        for manifest in sorted(view.deleted, key=lambda item: (item.deleted_at or now, item.sequence))
        if only(manifest) and now - (manifest.deleted_at or now) >= timedelta(seconds=grace_seconds)
    ]
    relied_on: Manifest | None = None
    at_once = 1 if is_enough else _AT_ONCE
    for start in range(0, len(due), at_once):
        if is_enough and is_enough():
            break
        found = [item for manifest in due[start : start + at_once] if (item := _unchanged(experiment, manifest))]
        if not asked and (relied_on is None or not _all_valid(experiment, [relied_on.checkpoint_id])):
            relied_on = keep_one_valid(experiment, is_sound)
        if asked or relied_on:
            moved = rewrite_all(experiment, found, state="purging")
            failed += [
                item for item in moved if isinstance(item, StoreError) and not isinstance(item, VersionConflictError)
            ]
            purged += finish_each_purge(experiment, [item for item in moved if isinstance(item, Found)], failed)
    if asked and failed:
        raise failed[0]
    return purged


def _unchanged(experiment: Experiment, manifest: Manifest) -> Found | None:
    """Return a deleted checkpoint, unless it is back or was deleted anew: its grace period is another one then."""
    found = experiment.read(manifest.checkpoint_id)
    return found if found.record is not None and found.record.revision == manifest.revision else None


@contextmanager
def _going_on(manifest: Manifest, failed: list[CheckpointError]) -> Iterator[None]:
    """Log and note what keeps the files of one checkpoint from being removed; raise if the whole store is away."""
    try:
        yield
    except StoreUnavailableError:
        raise
    except CheckpointError as error:
        logger.error("removing the files of %s failed: %s", manifest.checkpoint_id, error)
        failed.append(error)


def _go_on(experiment: Experiment, manifest: Manifest) -> bool:
    """Finish the purge of one that someone began."""
    found = experiment.read(manifest.checkpoint_id)
    if not (isinstance(found.record, Manifest) and found.record.state == "purging"):
        return False
    return take_over_purge(experiment, found)


def take_over_purge(experiment: Experiment, found: Found) -> bool:
    """Finish a purge that someone else began; ``False`` when others did so meanwhile.

    Its record is written anew first. Whoever wrote it may have been killed before it was durable: after power loss the
    checkpoint would be back without its files.
    """
    durable = rewrite(experiment, found, state="purging")
    if durable is None:
        return False
    finish_purge(experiment, durable)
    return True


def finish_each_purge(
    experiment: Experiment, purging: Sequence[Found], failed: list[CheckpointError]
) -> list[Manifest]:
    """Finish purges as :func:`finish_purge` does; return those of which nothing is left, and log and note failures."""
    try:
        finish_purge(experiment, *purging)
        return [found.manifest for found in purging]
    except (NotDurableError, StoreUnavailableError):  # another attempt would prove nothing, or wait in vain
        raise
    except CheckpointError as error:
        logger.debug("removing the files of many checkpoints failed, now one by one: %s", error)
    finished = []
    for found in purging:  # one whose files cannot be removed keeps no other one from going
        with _going_on(found.manifest, failed):
            finish_purge(experiment, found)
            finished.append(found.manifest)
    return finished


def finish_purge(experiment: Experiment, *purging: Found) -> None:
    """Remove what is left of checkpoints whose records are ``purging``, durably so.

    Files that were imported in place stay: they belong to the program that wrote them.
    """
    for found in purging:
        pointers.forget(experiment, found.manifest)
    claims.remove_files(experiment, [name for found in purging for name in found.manifest.removable_names])
    claims.end(experiment, *purging)
