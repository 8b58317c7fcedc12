"""Many writes as one after another: what a store does that has no faster way."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_lib.errors import VersionConflictError
from ckpt_lib.store.base import Delete, Entry, Put, Store


def put_one_by_one(store: Store, puts: Sequence[Put]) -> list[Entry | VersionConflictError]:
    """Do :meth:`~ckpt_lib.store.base.Store.put_many` by :meth:`~ckpt_lib.store.base.Store.put`."""
    answers: list[Entry | VersionConflictError] = []
    for key, data, if_version in puts:
        try:
            answers.append(store.put(key, data, if_version=if_version))
        except VersionConflictError as error:
            answers.append(error)
    return answers


def delete_one_by_one(store: Store, deletes: Sequence[Delete]) -> list[VersionConflictError | None]:
    """Do :meth:`~ckpt_lib.store.base.Store.delete_many` by :meth:`~ckpt_lib.store.base.Store.delete`."""
    answers: list[VersionConflictError | None] = []
    for key, if_version in deletes:
        try:
            store.delete(key, if_version=if_version)
            answers.append(None)
        except VersionConflictError as error:
            answers.append(error)
    return answers
