"""From a stored checkpoint to a verified payload."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, BinaryIO

from ckpt_lib.core.damage import missing_file
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, CorruptCheckpointError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.formats import Payload, format_named
from ckpt_lib.maintenance.validate import check_parts
from ckpt_lib.stream import VerifiedFile
from ckpt_lib.stream.cache import CacheKey, PayloadCache


def read_payload(
    experiment: Experiment,
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
    :class:`~ckpt_lib.errors.ConfigError` for a key that stands for nothing, or
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted meanwhile.
    """
    try:
        with _open_payload(experiment, manifest, verify=verify, keys=keys, cache=cache) as file:
            stored = format_named(manifest.format)
            payload = stored.read(file, map_location=map_location, trust_pickle=trust_pickle, keys=keys)
        if keys is None and not trust_pickle:
            check_parts(payload, manifest)
        return payload
    except CheckpointError as error:
        error.checkpoint_id = manifest.checkpoint_id
        error.path = experiment.location(manifest.payload.name)
        raise


def _open_payload(
    experiment: Experiment,
    manifest: Manifest,
    *,
    verify: bool,
    keys: Collection[str] | None,
    cache: PayloadCache | None,
) -> VerifiedFile:
    entry = manifest.payload
    key = _cache_key(experiment, manifest) if cache and verify else None
    if cache and key and (kept := cache.open(key)):
        return VerifiedFile(kept, None)
    source = _open_source(experiment, manifest)
    if cache and key and keys is None and (admitted := cache.admit(key, source, entry)):
        return VerifiedFile(admitted, None)
    return VerifiedFile(source, entry if verify else None)


def _cache_key(experiment: Experiment, manifest: Manifest) -> CacheKey | None:
    file = manifest.payload
    found = experiment.store.stat(experiment.key(file.name))
    return (experiment.location(file.name), found.version, file.sha256) if found else None


def _open_source(experiment: Experiment, manifest: Manifest) -> BinaryIO:
    try:
        return open_file(experiment, manifest.payload.name)
    except FileNotFoundError as error:
        experiment.get(manifest.checkpoint_id)  # raises when it was deleted meanwhile, which is no damage
        damage = missing_file(manifest.payload.name)
        raise CorruptCheckpointError(
            damage.message, damages=[damage], hint=f"`ckpt restore {manifest.checkpoint_id}` restores a backup."
        ) from error
