"""Idempotency keys: a save that is tried again finds the checkpoint that its first attempt made."""

from __future__ import annotations

import contextlib
import time

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.errors import CheckpointError, CheckpointExistsError, CorruptManifestError, VersionConflictError
from ckpt_lib.experiment import claims, pointers
from ckpt_lib.experiment.claims import HeldClaim, abandon, is_dead
from ckpt_lib.experiment.deletion import undelete
from ckpt_lib.experiment.experiment import ATTEMPTS, Experiment, too_busy
from ckpt_lib.experiment.found import NOTHING, Found
from ckpt_lib.experiment.layout import key_name
from ckpt_lib.store.base import ABSENT, Condition

_POLL_SECONDS = 0.5


def find(experiment: Experiment, idempotency_key: str) -> Manifest | None:
    """Return the checkpoint that an earlier save with this key made, if it is there and whole; nothing is changed."""
    record = _look(experiment, key_name(idempotency_key))[0].record
    if isinstance(record, Manifest) and _answers(experiment, record):
        experiment.index.note(record.sequence)  # what this process saves next comes after it
        return record
    return None


def _look(experiment: Experiment, name: str) -> tuple[Found, Condition]:
    """Return what a key stands for, and the version of its pointer.

    Where the pointer is damaged, or stands for nothing that can be read, a checkpoint may still carry the key.
    """
    pointer, version = pointers.read(experiment, name)
    if pointer is not None:
        with contextlib.suppress(CorruptManifestError):
            found = experiment.read(pointer.checkpoint_id)
            if found.record is not None and found.record.uid == pointer.uid:
                return found, version
    carrier = None if version is ABSENT else pointers.find_carrier(experiment, name)
    return experiment.read(carrier.checkpoint_id) if carrier else NOTHING, version


def _answers(experiment: Experiment, manifest: Manifest) -> bool:
    return manifest.is_visible and manifest.quarantined is None and experiment.is_complete(manifest)


def point_to(experiment: Experiment, manifest: Manifest) -> None:
    """Let the key of a checkpoint that was copied here stand for it, unless it stands for another one."""
    key = manifest.idempotency_key
    if key is None or find(experiment, key):
        return
    _, version = pointers.read(experiment, key_name(key))
    with contextlib.suppress(VersionConflictError):  # a save of the key was faster
        mine = pointers.Pointer(checkpoint_id=manifest.checkpoint_id, uid=manifest.uid)
        pointers.put(experiment, key_name(key), mine, version)


def take(held: HeldClaim, idempotency_key: str) -> Manifest | None:
    """Make the key stand for the claim, or return the checkpoint for which it stands already.

    Another save of the key that is under way is waited for, and given up if its process is dead. A deleted checkpoint
    comes back: it is what the key's save made. Raises :class:`~ckpt_lib.errors.CheckpointExistsError` if the other save
    takes too long.
    """
    experiment, name = held.experiment, key_name(idempotency_key)
    mine = pointers.Pointer(checkpoint_id=held.checkpoint_id, uid=held.claim.uid)
    attempts, deadline = 0, time.monotonic() + claims.PATIENCE_SECONDS
    while attempts < ATTEMPTS:
        found, version = _look(experiment, name)
        if earlier := _earlier(experiment, found):
            experiment.index.note(earlier.sequence)
            return earlier
        if _is_under_way(held, found):
            if time.monotonic() > deadline:
                raise _still_saving(experiment, found.claim.checkpoint_id)
            time.sleep(_POLL_SECONDS)
            held.renew()
            continue
        attempts += 1
        with contextlib.suppress(VersionConflictError):
            pointers.put(experiment, name, mine, version)
            return None
    raise too_busy(experiment, "the idempotency key")


def _still_saving(experiment: Experiment, checkpoint_id: str) -> CheckpointExistsError:
    return CheckpointExistsError(
        "another process is still saving with this idempotency key",
        checkpoint_id=checkpoint_id,
        path=experiment.location(),
        hint="Nothing was saved: try again when that save has ended.",
    )


def _earlier(experiment: Experiment, found: Found) -> Manifest | None:
    record = found.record
    if not isinstance(record, Manifest):
        return None
    if record.state == "deleted" and record.quarantined is None:
        with contextlib.suppress(CheckpointError):
            return undelete(experiment, record.checkpoint_id)
    return record if _answers(experiment, record) else None


def _is_under_way(held: HeldClaim, found: Found) -> bool:
    """Tell whether a living process is saving it; end the claim of a dead one."""
    record = found.record
    if not isinstance(record, Claim) or record.state != "saving" or record.claim == held.claim.claim:
        return False
    if not is_dead(found, held.experiment.now()):
        return True
    return not abandon(held.experiment, found)
