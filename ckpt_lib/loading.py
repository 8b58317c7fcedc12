"""From a stored checkpoint to a verified payload, and from an experiment to the newest one that can be resumed from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from ckpt_lib.core.damage import missing_file
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    IntegrityError,
    NoValidCheckpointError,
    StoreError,
)
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.experiment.query import ATTEMPTS
from ckpt_lib.formats import Payload, format_named
from ckpt_lib.maintenance.validate import UNLOADABLE, check_parts, is_unreadable
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.cache import CacheKey, PayloadCache

logger = logging.getLogger("ckpt_lib")


def read_payload(
    folder: CheckpointFolder,
    manifest: Manifest,
    *,
    verify: bool,
    map_location: Any = "cpu",
    trust_pickle: bool = False,
    keys: Collection[str] | None = None,
    cache: PayloadCache | None = None,
) -> Payload:
    """Read a payload, or what ``keys`` name of it; with ``verify``, no byte is looked at before it was verified.

    Its tensors are views of the payload's memory, which stays with them; writing to them changes no file. With a
    ``cache``, a whole payload that was verified is kept in it, and taken from it.

    Raises :class:`CorruptCheckpointError`, :class:`~ckpt_lib.errors.UnsafePayloadError`,
    :class:`~ckpt_lib.errors.ConfigError` for a key that stands for nothing, or :class:`CheckpointNotFoundError` when
    the checkpoint was deleted meanwhile.
    """
    try:
        with (
            folder.hold(manifest.checkpoint_id, "being read"),
            _open_payload(folder, manifest, verify=verify, keys=keys, cache=cache) as file,
        ):
            stored = format_named(manifest.format)
            payload = stored.read(file, map_location=map_location, trust_pickle=trust_pickle, keys=keys)
        if keys is None and not trust_pickle:
            check_parts(payload, manifest)
        return payload
    except CheckpointError as error:
        error.checkpoint_id = manifest.checkpoint_id
        error.path = folder.payload_location(manifest)
        raise


def _open_payload(
    folder: CheckpointFolder,
    manifest: Manifest,
    *,
    verify: bool,
    keys: Collection[str] | None,
    cache: PayloadCache | None,
) -> VerifiedFile:
    entry = manifest.payload
    key = _cache_key(folder, manifest) if cache and verify else None
    if cache and key and (kept := cache.open(key)):
        return VerifiedFile(kept, None)
    source = _open_source(folder, manifest)
    if cache and key and keys is None and (admitted := cache.admit(key, source, entry)):
        return VerifiedFile(admitted, None)
    return VerifiedFile(source, entry if verify else None)


def _cache_key(folder: CheckpointFolder, manifest: Manifest) -> CacheKey | None:
    found = folder.payload_entry(manifest)
    return (folder.payload_location(manifest), found.version, manifest.payload.sha256) if found else None


def _open_source(folder: CheckpointFolder, manifest: Manifest) -> BinaryIO:
    try:
        return folder.store.open_read(folder.payload_path(manifest))
    except FileNotFoundError as error:
        folder.read_manifest(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        damage = missing_file(manifest.payload.name)
        raise CorruptCheckpointError(
            damage.message, damages=[damage], hint="`ckpt restore` brings back a backup."
        ) from error


class Series(Protocol):
    """What has to be known of an experiment to resume it; an index knows it."""

    def manifests(self) -> list[Manifest]: ...

    def unreadable(self) -> list[CheckpointError]: ...

    def backed_up(self) -> list[Manifest]: ...

    def set_aside(self) -> list[str]: ...


def load_newest(series: Series, load: Callable[[Manifest], Payload], experiment_name: str) -> Payload | None:
    """``load`` the newest checkpoint that is valid and healthy; ``None`` when the experiment has none, and no backups.

    The returned dict's ``passed_over`` lists the others, which are also logged. Raises
    :class:`NoValidCheckpointError` when there are backups alone, or checkpoints of which every one is damaged, cannot
    be loaded without running code, or is unhealthy.
    """
    for _ in range(ATTEMPTS):
        passed_over = [_passed_over(str(error.checkpoint_id), error.message) for error in series.unreadable()]
        unhealthy_id, retired = None, False
        for manifest in reversed(series.manifests()):
            if manifest.unhealthy:
                unhealthy_id = unhealthy_id or manifest.checkpoint_id
                passed_over.append(_passed_over(manifest.checkpoint_id, f"unhealthy: {manifest.unhealthy}"))
                continue
            try:
                payload = load(manifest)
            except CheckpointNotFoundError:  # since it was listed; whoever did that has newer ones
                retired = True
            except (*UNLOADABLE, IntegrityError, StoreError) as error:
                if isinstance(error, StoreError) and not is_unreadable(error):
                    raise
                passed_over.append(_passed_over(manifest.checkpoint_id, error.message))
            else:
                _warn_of(passed_over)
                if not manifest.epoch_finished:
                    logger.warning(
                        "%s was saved in the middle of epoch %d: train it again from its start, range(resumed"
                        '["next_epoch"], ...)',
                        manifest.checkpoint_id,
                        manifest.epoch,
                    )
                next_epoch = manifest.epoch + manifest.epoch_finished
                return {**payload, "passed_over": passed_over, "next_epoch": next_epoch}
        if not retired:
            break
    if not passed_over:
        _refuse_to_forget(series, experiment_name)
        return None
    reasons = "; ".join(f"{item['checkpoint_id']}: {item['reason']}" for item in passed_over)
    raise NoValidCheckpointError(
        f"none of {count_of(len(passed_over), 'checkpoint')} of {experiment_name!r} can be resumed from: {reasons}",
        hint=f"{_taken_on_purpose(unhealthy_id)}`ckpt restore` brings back backups. "
        "To begin again, choose another experiment name.",
    )


def _refuse_to_forget(series: Series, experiment_name: str) -> None:
    if set_aside := series.set_aside():
        raise NoValidCheckpointError(
            f"{experiment_name!r} has no checkpoint, but {len(set_aside)} that were found damaged and set aside",
            hint="`ckpt quarantine` shows them, `ckpt repair` brings one back when there is a backup of it. "
            "To begin again, choose another experiment name.",
        )
    if backups := series.backed_up():
        raise NoValidCheckpointError(
            f"{experiment_name!r} has no checkpoint, but {count_of(len(backups), 'backup')} of what it had",
            hint=f"`ckpt restore {backups[-1].checkpoint_id}` brings back the newest. "
            "To begin again, choose another experiment name.",
        )


def _taken_on_purpose(unhealthy_id: str | None) -> str:
    return f"load_checkpoint({unhealthy_id!r}) takes the newest unhealthy one all the same. " if unhealthy_id else ""


def _passed_over(checkpoint_id: str, reason: str) -> dict[str, str]:
    return {"checkpoint_id": checkpoint_id, "reason": reason}


def _warn_of(passed_over: Sequence[Mapping[str, str]]) -> None:
    for item in passed_over:
        logger.warning("passed over %s while resuming: %s", item["checkpoint_id"], item["reason"])
