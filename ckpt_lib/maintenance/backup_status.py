"""What is known of a checkpoint's backup: whether there is one, and whether it was read back since it was written.

That there is one is asked of the backup location. What was read back is noted beside the backups with the version of
the files then, so that files written anew count as not read. The note only informs: nothing goes by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ckpt_lib.core.logs import store_failures_logged
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, CorruptManifestError, is_store_failure
from ckpt_lib.experiment import noted_backups
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import payload_version
from ckpt_lib.experiment.layout import OWN_PREFIX
from ckpt_lib.experiment.locations import Locations

VERIFIED_NAME = f"{OWN_PREFIX}verified.json"
_MAX_BYTES = 2**26

BackupState = Literal["local only", "written", "verified", "damaged", "unknown"]


class BackupStatus(BaseModel):
    """The state of one checkpoint's backup.

    ``local only``: there is none. ``written``: hashed on the way, and not read back since. ``verified``: read back to
    its last byte since. ``damaged``: in quarantine, not readable, or without all of its files. ``unknown``: the backup
    location did not answer, or the configuration does not name it.
    """

    model_config = ConfigDict(frozen=True)

    checkpoint_id: str
    state: BackupState
    verified_at: AwareDatetime | None = None
    """When it was read back."""


class Verified(BaseModel):
    """The version of a payload's files when they were read to their end and found as they were saved."""

    version: str
    at: AwareDatetime


class _Note(BaseModel):
    schema_version: Literal[1] = 1
    verified: dict[str, Verified] = {}


def note_verified(backups: Experiment, found: Mapping[str, Verified | None]) -> None:
    """Note the outcome of reading some backups: by id, ``None`` for one that is not valid.

    Two who note at once may lose the other's outcome; those backups count as not read back then.
    """
    with store_failures_logged("noting which backups were read back"):
        earlier = _read(backups)
        merged = {name: item for name, item in {**earlier, **found}.items() if item is not None}
        if merged != earlier:
            note = _Note(verified=merged)
            backups.store.put(backups.key(VERIFIED_NAME), note.model_dump_json().encode(), durable=False)


def _read(backups: Experiment) -> dict[str, Verified]:
    found = backups.read_small(VERIFIED_NAME, _MAX_BYTES)
    try:
        return _Note.model_validate_json(found[0]).verified if found else {}
    except ValidationError:
        return {}


def backup_status(locations: Locations, checkpoint: Manifest) -> BackupStatus:
    """Return what is known of a checkpoint's backup; no payload is read."""
    try:
        state, verified_at = _status(locations.backups, checkpoint)
        if state == "local only" and noted_backups.elsewhere(locations):
            state = "unknown"
    except Exception as error:
        if not (isinstance(error, CheckpointError) or is_store_failure(error)):
            raise
        state, verified_at = "unknown", None
    return BackupStatus(checkpoint_id=checkpoint.checkpoint_id, state=state, verified_at=verified_at)


def _status(backups: Experiment, checkpoint: Manifest) -> tuple[BackupState, AwareDatetime | None]:
    try:
        backup = backups.read(checkpoint.checkpoint_id).record
    except CorruptManifestError:
        return "damaged", None
    if not isinstance(backup, Manifest) or not backup.is_visible or backup.uid != checkpoint.uid:
        return "local only", None
    if backup.quarantined or not backups.is_complete(backup):
        return "damaged", None
    verified = _read(backups).get(backup.checkpoint_id)
    if verified is None or verified.version != payload_version(backups, backup):
        return "written", None
    return "verified", verified.at
