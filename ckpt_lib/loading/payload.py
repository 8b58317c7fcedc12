"""From a stored checkpoint to a verified payload."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, ConfigError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_payload import StoredPayload, errors_named, format_of
from ckpt_lib.formats import Payload, is_compressed
from ckpt_lib.maintenance.validate import check_parts
from ckpt_lib.state.naming import spellings_of_part
from ckpt_lib.stream.cache import PayloadCache


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

    A whole payload is verified to its last byte. Its tensors are views of the payload's memory, which stays with them;
    writing to them changes no file. With a ``cache``, the files of a whole payload that was verified are kept in it,
    and taken from it.

    Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, :class:`~ckpt_lib.errors.UnsafePayloadError`,
    :class:`~ckpt_lib.errors.ConfigError` for a key that stands for nothing, or
    :class:`~ckpt_lib.errors.CheckpointNotFoundError` when the checkpoint was deleted meanwhile.
    """
    is_whole = keys is None
    keep = is_whole and cache is not None and manifest.size_bytes <= cache.limit_bytes
    with errors_named(experiment, manifest, manifest.files):
        with StoredPayload(experiment, manifest.files, verify=verify, cache=cache, keep=keep) as source:
            read = partial(
                format_of(manifest).read, source, map_location=map_location, trust_pickle=trust_pickle, keys=keys
            )
            if is_whole and is_compressed(manifest.format) and not trust_pickle:
                payload = _read_compressed(source, read)
            else:
                if is_whole or trust_pickle:
                    source.require_all()
                payload = read()
        if is_whole and not trust_pickle:
            check_parts(payload, manifest)
    return payload


def _read_compressed(source: StoredPayload, read: Callable[[], Payload]) -> Payload:
    """Let the format verify what it decompresses, while the disk goes on, and verify the rest after it."""
    source.read_ahead()  # the structure comes first, and is at the end of the file
    try:
        payload = read()
    except CheckpointError:
        source.require_all()  # what is damaged is told before all else, and all of it
        raise
    source.require_all()
    return payload


def read_part(
    experiment: Experiment, manifest: Manifest, *, only: str | None, keys: Collection[str] | None, **options: Any
) -> Payload:
    """Read what ``keys`` name, or the part ``only``, as :func:`read_payload` does.

    The name of the part may leave out what a wrapper of the whole model has added.
    """
    if only is None:
        return read_payload(experiment, manifest, keys=keys, **options)
    unknown: ConfigError | None = None
    for name in spellings_of_part(only):
        try:
            return read_payload(experiment, manifest, keys=[name], **options)
        except ConfigError as error:
            unknown = unknown or error
    assert unknown is not None
    raise unknown
