"""Where the backups of an experiment lie: a note beside its checkpoints, for programs whose configuration does not say.

A run is given ``backup_dir``; a command that is typed later is often not, and would find no backup. Whoever can write
to the folder can write the note. So it is shown, as visible text, and never opened.
"""

from __future__ import annotations

from contextlib import suppress

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckpt_lib.core.logs import store_failures_logged
from ckpt_lib.core.manifest import new_token
from ckpt_lib.core.wording import visible
from ckpt_lib.errors import ConfigError, VersionConflictError
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import BACKUPS_NOTE_NAME
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.store import location
from ckpt_lib.store.base import ABSENT, Condition

_MAX_BYTES = 10_000


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")

    backup_dir: str = Field(min_length=1)
    revision: str = Field(default_factory=new_token)


def note(locations: Locations) -> None:
    """Note where this configuration has its backups, unless that is the default.

    Of two configurations, the last one counts. A failure is logged: a backup is worth more than the note.
    """
    if not locations.config.backup_dir:
        return
    wanted = location(locations.backups.store)
    with store_failures_logged("noting where the backups are"):
        found, version = _read(locations.home)
        if found is None or found.backup_dir != wanted:
            data = _Note(backup_dir=wanted).model_dump_json().encode()
            with suppress(VersionConflictError):  # another run has noted its own
                locations.home.put_small(BACKUPS_NOTE_NAME, data, version)


def elsewhere(locations: Locations) -> str | None:
    """Return where runs have their backups, if this configuration names no ``backup_dir``, and they do."""
    if locations.config.backup_dir:
        return None
    found, _ = _read(locations.home)
    return visible(found.backup_dir) if found else None


def require_known(locations: Locations) -> None:
    """Raise :class:`~ckpt_lib.errors.ConfigError` if runs have backups that this configuration does not name."""
    if place := elsewhere(locations):
        raise ConfigError(
            f"the backups of {locations.name!r} lie elsewhere, and are not told of the deletion: they would bring the "
            "checkpoint back",
            path=locations.home.location(BACKUPS_NOTE_NAME),
            expected=f"backup_dir, for backups in {place}",
            got="no backup_dir",
            hint="Set backup_dir, or the environment variable CKPT_BACKUP_DIR, as for the training. "
            "If these backups are given up, remove the file that names them.",
        )


def _read(home: Experiment) -> tuple[_Note | None, Condition]:
    found = home.read_small(BACKUPS_NOTE_NAME, _MAX_BYTES)
    if found is None:
        return None, ABSENT
    with suppress(ValidationError):
        return _Note.model_validate_json(found[0]), found[1].version
    return None, found[1].version
