"""Pointers: small files that say which checkpoint an idempotency key, or the ``uid`` of a copy, stands for.

Manifests hold both too. So a pointer that is damaged costs no more than a look at all of them.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.manifest import Manifest, Record, new_token
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.errors import VersionConflictError
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
    deleted: bool = False
    """True when a person deleted it by name; see :mod:`ckpt_lib.experiment.deleted_by_name`."""
    revision: str = Field(default_factory=new_token)


class FoundPointer(NamedTuple):
    """The content and version of a pointer's file. A damaged pointer counts as none, but keeps its version."""

    pointer: Pointer | None
    version: Condition

    @property
    def is_damaged(self) -> bool:
        return self.pointer is None and self.version is not ABSENT


def read(experiment: Experiment, name: str) -> FoundPointer:
    """Read a pointer."""
    found = experiment.read_small(name, Record.MAX_BYTES)
    if found is None:
        return FoundPointer(None, ABSENT)
    with contextlib.suppress(ValidationError):
        pointer = Pointer.model_validate_json(found[0])
        if is_checkpoint_id(pointer.checkpoint_id):
            return FoundPointer(pointer, found[1].version)
    return FoundPointer(None, found[1].version)


def find_carrier(experiment: Experiment, name: str) -> Manifest | None:
    """Look in all manifests for the newest one that a pointer of this name may stand for; one that is live first."""
    view = experiment.index.view()
    carriers = (item for item in (*reversed(view.manifests), *reversed(view.deleted)) if name in _names(item))
    return next(carriers, None)


def _names(manifest: Manifest) -> set[str]:
    key = manifest.idempotency_key
    return {uid_name(manifest.uid), *(() if key is None else (key_name(key),))}


def put(experiment: Experiment, name: str, pointer: Pointer, if_version: Condition) -> FoundPointer:
    """Write a pointer under a condition, as :meth:`Experiment.put_small`."""
    entry = experiment.put_small(name, pointer.model_dump_json().encode(), if_version)
    return FoundPointer(pointer, entry.version)


def mend(experiment: Experiment, name: str) -> bool:
    """Write a damaged pointer anew, or remove it where no checkpoint carries its key; ``False`` if that cannot be."""
    found = read(experiment, name)
    if not found.is_damaged:
        return True
    with contextlib.suppress(VersionConflictError):  # somebody wrote it anew
        carrier = find_carrier(experiment, name)
        if carrier is None:
            return experiment.delete_key(name, found.version)
        put(experiment, name, Pointer(checkpoint_id=carrier.checkpoint_id, uid=carrier.uid), found.version)
    return True


def forget(experiment: Experiment, manifest: Manifest) -> None:
    """Take away what points to a checkpoint that is being purged, and mark its ``uid``: copies stay away."""
    if manifest.idempotency_key is not None:
        pointer, version = read(experiment, key_name(manifest.idempotency_key))
        if pointer and pointer.uid == manifest.uid:
            with contextlib.suppress(VersionConflictError):
                experiment.delete_key(key_name(manifest.idempotency_key), version)
    found = read(experiment, uid_name(manifest.uid))
    pointer = found.pointer
    if found.is_damaged:  # it meant this one: no two have one uid
        pointer = Pointer(checkpoint_id=manifest.checkpoint_id, uid=manifest.uid)
    if pointer and pointer.checkpoint_id == manifest.checkpoint_id and not pointer.gone:
        with contextlib.suppress(VersionConflictError):
            gone = pointer.model_copy(update={"gone": True, "revision": new_token()})
            put(experiment, uid_name(manifest.uid), gone, found.version)
