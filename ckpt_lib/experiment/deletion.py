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
    ProtectedCheckpointError,
    StoreUnavailableError,
)
from ckpt_lib.experiment import claims, pointers
from ckpt_lib.experiment.edits import bring_back, edit, keep_one_valid, rewrite
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.found import Found

Check = Callable[[Manifest], CheckpointError | None]
"""Returns the error to raise instead of deleting the checkpoint of a manifest; ``None`` when it may be deleted."""


def refuse_pinned(manifest: Manifest) -> CheckpointError | None:
    """Return an error for a pinned checkpoint."""
    if not manifest.pinned:
        return None
    return ProtectedCheckpointError(
        "the checkpoint is pinned", checkpoint_id=manifest.checkpoint_id, hint="`ckpt pin --off` unpins it."
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
    leaving = [found for item in checkpoint_ids if (found := _leave(experiment, item, check, now, outcome))]
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
    experiment: Experiment, leaving: Iterable[Found], relied_on: Sequence[str], now: datetime, outcome: Deletion
) -> None:
    """Put checkpoints that are leaving into the trash."""
    deleted = []
    for found in leaving:
        if moved := rewrite(experiment, found, state="deleted", deleted_at=now):
            deleted.append(moved)
        else:
            _refuse(experiment, found, "it was changed meanwhile", outcome)
    if not _all_valid(experiment, relied_on):
        _stay(experiment, deleted, outcome)
    else:
        outcome.deleted = [found.manifest for found in deleted]


def _remove(experiment: Experiment, leaving: Sequence[Found], relied_on: Sequence[str], outcome: Deletion) -> None:
    """Remove checkpoints that are leaving, while the first of those that the deletion relies on is valid."""
    for position, found in enumerate(leaving):
        if not _all_valid(experiment, relied_on[:1]):
            _stay(experiment, leaving[position:], outcome)
            return
        moved = rewrite(experiment, found, state="purging")
        if moved is None:
            _refuse(experiment, found, "it was changed meanwhile", outcome)
            continue
        outcome.deleted.append(moved.manifest)
        with _going_on(moved.manifest, []):
            finish_purge(experiment, moved)
            outcome.freed.append(moved.manifest)


def _take_back(experiment: Experiment, checkpoint_id: str) -> None:
    """Let a checkpoint stay that someone, dead or alive, wanted to delete: now others rely on it."""
    found = experiment.read(checkpoint_id)
    if isinstance(found.record, Manifest) and found.record.state == "leaving":
        rewrite(experiment, found, state="live")


def _leave(experiment: Experiment, checkpoint_id: str, check: Check, now: datetime, outcome: Deletion) -> Found | None:
    for _ in range(ATTEMPTS):
        found = experiment.read(checkpoint_id)
        manifest = found.record
        if not (isinstance(manifest, Manifest) and manifest.is_visible):
            return None
        if error := _in_use(manifest, now) or check(manifest):
            outcome.refused[checkpoint_id] = error
            return None
        if moved := rewrite(experiment, found, state="leaving"):
            return moved
    outcome.refused[checkpoint_id] = too_busy(experiment, "the checkpoint", checkpoint_id)
    return None


def _in_use(manifest: Manifest, now: datetime) -> CheckpointError | None:
    if manifest.in_use_until is None or manifest.in_use_until <= now:
        return None
    return ProtectedCheckpointError(
        f"a run has resumed from it: it is kept until {manifest.in_use_until:%Y-%m-%d %H:%M} UTC",
        checkpoint_id=manifest.checkpoint_id,
        hint="Delete it after that: a run that is killed before its first save needs it again.",
    )


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
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when nothing of it is left.
    """
    for _ in range(ATTEMPTS):
        found = experiment.read(checkpoint_id)
        manifest = found.record
        if not isinstance(manifest, Manifest) or manifest.state == "purging":
            break
        if manifest.is_visible:
            is_done = manifest.state == "live" and (manifest.pinned or not pin)
            return manifest if is_done else edit(experiment, checkpoint_id, lambda item: _pinned(item, pin))
        if not experiment.is_complete(manifest):
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
    is_enough: Callable[[], bool] = lambda: False,
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
    relied_on: Manifest | None = None
    for manifest in sorted(view.deleted, key=lambda item: (item.deleted_at or now, item.sequence)):
        if is_enough():
            break
        if not only(manifest) or now - (manifest.deleted_at or now) < timedelta(seconds=grace_seconds):
            continue
        found = experiment.read(manifest.checkpoint_id)
        if found.record is None or found.record.revision != manifest.revision:
            continue  # it is back, or was deleted anew: its grace period is another one
        if not asked and (relied_on is None or not _all_valid(experiment, [relied_on.checkpoint_id])):
            relied_on = keep_one_valid(experiment, is_sound)
        if (asked or relied_on) and (moved := rewrite(experiment, found, state="purging")):
            with _going_on(manifest, failed):
                finish_purge(experiment, moved)
                purged.append(manifest)
    if asked and failed:
        raise failed[0]
    return purged


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


def finish_purge(experiment: Experiment, found: Found) -> None:
    """Remove what is left of a checkpoint whose record is ``purging``, durably so."""
    manifest = found.manifest
    pointers.forget(experiment, manifest)
    claims.remove_files(experiment, [file.name for file in manifest.files])
    claims.end(experiment, found)
