"""The sweep: clears what dead processes left unfinished. Any number may run at once, beside anything else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import IntegrityError, UnsupportedSchemaError
from ckpt_lib.experiment.claims import ABANDONED_AFTER_SECONDS, GONE_FOR, abandon, is_dead, remove_files, remove_gone
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import FOLDER_SUFFIX, payload_owner, payload_suffix
from ckpt_lib.formats.registry import PAYLOAD_SUFFIXES

_CLAIMED = re.compile(r"\.[0-9a-f]{16}[./]")


@dataclass
class Swept:
    """What a sweep removed."""

    claims: list[str] = field(default_factory=list)
    """Ids of saves that were never finished."""
    files: list[str] = field(default_factory=list)
    """Names of files that the manifest of their id does not name."""


def sweep(experiment: Experiment, *, abandoned_after_seconds: float = ABANDONED_AFTER_SECONDS) -> Swept:
    """End the claims of dead processes, and remove files that no manifest names.

    A claim is dead when its owner is a process of this host that has ended, or when nobody has renewed it for
    ``abandoned_after_seconds`` by the store's clock. Killed on the way, the next sweep goes on.
    """
    swept = Swept()
    view = experiment.index.view()
    if view.claims:
        now = experiment.now()
        for claim in view.claims:
            if claim.state == "gone" and now - CheckpointId.parse(claim.checkpoint_id).timestamp < GONE_FOR:
                continue  # its key stays: there is nothing to look at
            if _end_claim(experiment, claim.checkpoint_id, now, abandoned_after_seconds):
                swept.claims.append(claim.checkpoint_id)
    named = {file.name for manifest in (*view.manifests, *view.deleted) for file in manifest.files}
    for key in view.entries:
        name = key[len(experiment.path) + 1 :] if experiment.path else key
        if name not in named and (checkpoint_id := payload_owner(name)):
            _sweep_payload(experiment, checkpoint_id, name, swept)
    return swept


def _end_claim(experiment: Experiment, checkpoint_id: str, now: datetime, abandoned_after_seconds: float) -> bool:
    found = experiment.read(checkpoint_id)
    claim = found.record
    if not isinstance(claim, Claim):
        return False
    if claim.state == "gone":
        remove_gone(experiment, found, now)
        return False
    if claim.state == "saving" and not is_dead(found, now, abandoned_after_seconds=abandoned_after_seconds):
        return False
    return abandon(experiment, found)


def _sweep_payload(experiment: Experiment, checkpoint_id: str, name: str, swept: Swept) -> None:
    """Remove a payload, or what is in its folder, that the record of its id does not name.

    The record is read after the file was listed: whoever writes a file has named it before.
    """
    names = _names_below(experiment, name) if name.endswith(FOLDER_SUFFIX) else [name]
    try:
        record = experiment.read(checkpoint_id).record
    except (IntegrityError, UnsupportedSchemaError):  # it may name anything
        return
    if record is None or not is_ours(record, name):  # without a record, an import may take it in
        return
    needless = [item for item in names if not is_named(record, item)]
    remove_files(experiment, needless)
    swept.files += needless


def is_ours(record: Manifest | Claim, name: str) -> bool:
    """Tell by its name whether a save of this id wrote a file. Notes that someone keeps beside it are not ours.

    A name with a claim in it is nobody else's. One without is if its suffix is that of a format.
    """
    suffix = name.removeprefix(record.checkpoint_id)
    known = {payload_suffix(file, record.checkpoint_id, record.claim) for file in _named_by(record)}
    return bool(_CLAIMED.match(suffix)) or suffix in known.union(PAYLOAD_SUFFIXES)


def _names_below(experiment: Experiment, name: str) -> list[str]:
    start = len(experiment.key(""))
    entries = experiment.store.list(experiment.key(name), recursive=True)
    return [entry.key[start + 1 if start else 0 :] for entry in entries]


def is_named(record: Manifest | Claim, name: str) -> bool:
    """Tell whether a record names a file, the folder it lies in or, if it is a folder, a file in it."""
    return any(
        item == name
        or (item.endswith(FOLDER_SUFFIX) and name.startswith(item))
        or (name.endswith(FOLDER_SUFFIX) and item.startswith(name))
        for item in _named_by(record)
    )


def _named_by(record: Manifest | Claim) -> Iterable[str]:
    return record.files if isinstance(record, Claim) else (file.name for file in record.files)
