"""The names that files of ours have in an experiment's folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Final

from ckpt_lib.core.manifest import is_payload_name
from ckpt_lib.core.names import is_checkpoint_id
from ckpt_lib.store.base import Entry

BACKUPS_NAME: Final = "backups"
SNAPSHOT_NAME: Final = "checkpoint_metadata.json"
MANIFEST_SUFFIX: Final = ".json"
OWN_PREFIX: Final = ".ckpt-"
"""Begins the names of what stores and this library keep for themselves."""
CLOCK_NAME: Final = f"{OWN_PREFIX}clock"
"""Written to learn the time by the store's own clock."""
BACKUPS_NOTE_NAME: Final = f"{OWN_PREFIX}backups.json"
"""Says where the backups are, if not below."""
UIDS_FOLDER: Final = "uids"
FOLDER_SUFFIX: Final = "/"
"""Takes the place of a suffix where a format writes several files into a folder."""

_NO_SUFFIX = ".bin"
"""The suffix of the copies of a file whose own name has none that a payload may have."""
_CLAIM = re.compile(r"^\.[0-9a-f]{16}(?=[./])")


def manifest_name(checkpoint_id: str) -> str:
    return checkpoint_id + MANIFEST_SUFFIX


def payload_name(checkpoint_id: str, suffix: str, claim: str = "") -> str:
    """Return the name of a payload: ``X.pt``, or ``X.<claim>.pt``; ``X/`` or ``X.<claim>/`` for a folder."""
    return f"{checkpoint_id}.{claim}{suffix}" if claim else f"{checkpoint_id}{suffix}"


def payload_suffix(name: str, checkpoint_id: str) -> str:
    """Return the suffix of a payload file's name, without a claim; ``"/"`` where it lies in a folder.

    A file of another program, whose name does not begin with the id, has the suffix that its copies get.
    """
    if not name.startswith(checkpoint_id):
        if FOLDER_SUFFIX in name:
            return FOLDER_SUFFIX
        suffix = name[name.rfind(".") :] if "." in name else ""
        return suffix if is_payload_name(checkpoint_id + suffix, checkpoint_id) else _NO_SUFFIX
    rest = _CLAIM.sub("", name.removeprefix(checkpoint_id), count=1)
    return FOLDER_SUFFIX if rest.startswith(FOLDER_SUFFIX) else rest


def key_name(idempotency_key: str) -> str:
    """Return the name of the pointer that an idempotency key stands for."""
    return f"keys/{hashlib.sha256(idempotency_key.encode()).hexdigest()}.json"


def uid_name(uid: str) -> str:
    """Return the name of the pointer to the copy of a checkpoint."""
    return f"{UIDS_FOLDER}/{uid}{MANIFEST_SUFFIX}"


def manifest_entries(entries: Iterable[Entry], path: str) -> dict[str, Entry]:
    """Return id to entry of every manifest in a listing of the folder ``path``, by name alone."""
    found = ((_name(entry, path), entry) for entry in entries)
    named = ((name.removesuffix(MANIFEST_SUFFIX), entry) for name, entry in found if name.endswith(MANIFEST_SUFFIX))
    return {checkpoint_id: entry for checkpoint_id, entry in named if is_checkpoint_id(checkpoint_id)}


def payload_owner(name: str) -> str | None:
    """Return the id whose save may have written ``name``; ``None`` for what is not ours."""
    checkpoint_id = name.partition(FOLDER_SUFFIX)[0].partition(".")[0]
    is_ours = is_checkpoint_id(checkpoint_id) and is_payload_name(name, checkpoint_id, is_file=False)
    return checkpoint_id if is_ours else None


def _name(entry: Entry, path: str) -> str:
    return entry.key[len(path) + 1 :] if path else entry.key
