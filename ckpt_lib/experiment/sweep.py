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
from ckpt_lib.experiment.replacement import end_next_of_the_dead
from ckpt_lib.formats.registry import PAYLOAD_SUFFIXES

_CLAIMED = re.compile(r"\.[0-9a-f]{16}\.")


@dataclass
class Swept:
    """The claims and files that a sweep removed."""

    claims: list[str] = field(default_factory=list)
    """Ids of saves, and of checkpoints whose payload was to be replaced, that were never finished."""
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
    manifests = (*view.manifests, *view.deleted)
    for manifest in manifests:
        if manifest.next is not None and end_next_of_the_dead(
            experiment, manifest.checkpoint_id, abandoned_after_seconds
        ):
            swept.claims.append(manifest.checkpoint_id)
    named = {name for manifest in manifests for name in manifest.all_names}
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
    """Remove a payload that the record of its id does not name.

    The record is read after the file was listed: whoever writes a file has named it before.
    """
    try:
        record = experiment.read(checkpoint_id).record
    except (IntegrityError, UnsupportedSchemaError):  # it may name anything
        return
    if record is not None and is_leftover(record, name):  # without a record, an import may take it in
        remove_files(experiment, [name])
        swept.files.append(name)


def is_leftover(record: Manifest | Claim, name: str) -> bool:
    """Tell whether a save of this id wrote a file that its record does not name.

    Its name tells who wrote it. One with a claim in it is nobody else's; one without is ours if its suffix is that of
    a format. What is in a folder is not known by its name: people keep notes beside the files of a payload, and what a
    save wrote there goes with its claim or its manifest, which name it.
    """
    suffix = name.removeprefix(record.checkpoint_id)
    own = (file for file in _named_by(record) if file.startswith(record.checkpoint_id))
    known = {payload_suffix(file, record.checkpoint_id) for file in own}
    is_ours = bool(_CLAIMED.match(suffix)) or suffix in known.union(PAYLOAD_SUFFIXES)
    return is_ours and not name.endswith(FOLDER_SUFFIX) and not is_named(record, name)


def is_named(record: Manifest | Claim, name: str) -> bool:
    """Tell whether a record names a file, or a folder in which it names any."""
    return any(item == name or (name.endswith(FOLDER_SUFFIX) and item.startswith(name)) for item in _named_by(record))


def _named_by(record: Manifest | Claim) -> Iterable[str]:
    return record.files if isinstance(record, Claim) else record.all_names
