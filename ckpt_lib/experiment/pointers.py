"""Pointers: small files that say which checkpoint an idempotency key, or the ``uid`` of a copy, stands for."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.manifest import Manifest, Record, new_token
from ckpt_lib.errors import CorruptManifestError, VersionConflictError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import key_name, uid_name
from ckpt_lib.store.base import ABSENT, Condition


class Pointer(BaseModel):
    """One checkpoint, by id and ``uid``: the id alone may be given to another one later."""

    model_config = ConfigDict(frozen=True, extra="allow")

    checkpoint_id: str
    uid: str
    gone: bool = False
    """True when it was purged: copies do not bring it back unless a person asks for it."""
    revision: str = Field(default_factory=new_token)


class FoundPointer(NamedTuple):
    """What a pointer's file holds, and in which version."""

    pointer: Pointer | None
    version: Condition


def read(experiment: Experiment, name: str) -> FoundPointer:
    """Read a pointer. Raises :class:`~ckpt_lib.errors.CorruptManifestError`."""
    found = experiment.read_small(name, Record.MAX_BYTES)
    if found is None:
        return FoundPointer(None, ABSENT)
    try:
        return FoundPointer(Pointer.model_validate_json(found[0]), found[1].version)
    except ValidationError as error:
        raise CorruptManifestError(
            "a pointer to a checkpoint is damaged", path=experiment.location(name), hint="Remove the file."
        ) from error


def put(experiment: Experiment, name: str, pointer: Pointer, if_version: Condition) -> FoundPointer:
    """Write a pointer under a condition, as :meth:`Experiment.put_small`."""
    entry = experiment.put_small(name, pointer.model_dump_json().encode(), if_version)
    return FoundPointer(pointer, entry.version)


def forget(experiment: Experiment, manifest: Manifest) -> None:
    """Take away what points to a checkpoint that is being purged, and mark its ``uid``: copies stay away."""
    if manifest.idempotency_key is not None:
        pointer, version = read(experiment, key_name(manifest.idempotency_key))
        if pointer and pointer.uid == manifest.uid:
            with contextlib.suppress(VersionConflictError):
                experiment.delete_key(key_name(manifest.idempotency_key), version)
    pointer, version = read(experiment, uid_name(manifest.uid))
    if pointer and pointer.checkpoint_id == manifest.checkpoint_id and not pointer.gone:
        with contextlib.suppress(VersionConflictError):
            gone = pointer.model_copy(update={"gone": True, "revision": new_token()})
            put(experiment, uid_name(manifest.uid), gone, version)
