"""Why a checkpoint cannot be loaded: where it is, what is wrong with it, and which command helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ckpt_lib.core.damage import Damage
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.owners import is_proven_dead
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptManifestError,
    UnsupportedSchemaError,
    is_store_failure,
)
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.selectors import Selector
from ckpt_lib.maintenance.maintainer import Maintainer
from ckpt_lib.maintenance.quarantine import list_quarantined
from ckpt_lib.maintenance.validate import ValidationReport
from ckpt_lib.stream import Progress

CheckpointState = Literal[
    "sound",
    "damaged",
    "unloadable",
    "in quarantine",
    "deleted",
    "only a backup",
    "in fallback",
    "unfinished",
    "unknown",
]


class Diagnosis(BaseModel):
    """Where a checkpoint is, whether it can be loaded, and which command helps.

    ``sound``: it is there, and each byte is as it was saved. ``damaged``: bytes or its manifest differ.
    ``unloadable``: its bytes are as they were saved, and it cannot be loaded here without running code.
    ``unfinished``: it is being saved, or the process that did was killed. ``unknown``: nothing by that name is left.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    """The name that was asked about."""
    checkpoint_id: str | None
    state: CheckpointState
    message: str
    damages: tuple[Damage, ...] = ()
    commands: tuple[str, ...] = ()
    """The commands that help, the first one first."""

    @property
    def is_loadable(self) -> bool:
        return self.state == "sound"


def diagnose(maintainer: Maintainer, locations: Locations, name: str, progress: Progress | None = None) -> Diagnosis:
    """Find a checkpoint in the store, its trash, its quarantine, the backups and the fallback folder, and read it.

    Nothing is changed. Raises :class:`~ckpt_lib.errors.StoreError` if the store does not answer.
    """
    try:
        checkpoint_id = locations.catalogue.resolve(name).checkpoint_id
    except (CorruptManifestError, UnsupportedSchemaError) as error:
        checkpoint_id = error.checkpoint_id or name
    except CheckpointNotFoundError as error:
        return _elsewhere(locations, name, error)
    report = maintainer.validate_checkpoint(checkpoint_id, progress=progress)
    return _sound(locations, name, checkpoint_id) if report else _damaged(maintainer, name, report)


def _sound(locations: Locations, name: str, checkpoint_id: str) -> Diagnosis:
    manifest = locations.home.get(checkpoint_id)
    message = "it is intact and can be loaded"
    commands: tuple[str, ...] = (f"ckpt inspect {checkpoint_id} --tensors",)
    if manifest.thinned:
        message += ", but holds only its weights: no run resumes from it"
        commands = (f"ckpt thin --undo {checkpoint_id}", *commands)
    elif manifest.unhealthy:
        message += f", but a resume passes over it as unhealthy: {manifest.unhealthy}"
    else:
        message += (
            "; a load that fails all the same does not fit the model, and its error names the tensors that differ"
        )
    return Diagnosis(name=name, checkpoint_id=checkpoint_id, state="sound", message=message, commands=commands)


def _damaged(maintainer: Maintainer, name: str, report: ValidationReport) -> Diagnosis:
    checkpoint_id, commands = report.checkpoint_id, ["ckpt list"]
    if report.is_unloadable:
        return Diagnosis(
            name=name,
            checkpoint_id=checkpoint_id,
            state="unloadable",
            message=f"its bytes are as they were saved, but it cannot be loaded: {report.message}",
            damages=report.damages,
            commands=(f"ckpt inspect {checkpoint_id}",),
        )
    remedy: str | None = None
    message = report.message
    try:
        remedy = maintainer.remedy(report)
    except Exception as error:
        if not (isinstance(error, CheckpointError) or is_store_failure(error)):
            raise
        message += f"; whether a backup helps cannot be told: {error}"
    if remedy == "repair":
        message += "; its backup can repair it"
        commands = [f"ckpt repair {checkpoint_id}"]
    elif remedy == "quarantine":
        message += "; no backup can repair it"
        commands = [f"ckpt quarantine {checkpoint_id}", *commands]
    return Diagnosis(
        name=name,
        checkpoint_id=checkpoint_id,
        state="damaged",
        message=message,
        damages=report.damages,
        commands=tuple(commands),
    )


def _elsewhere(locations: Locations, name: str, error: CheckpointNotFoundError) -> Diagnosis:
    """Diagnose what the store does not show under that name."""
    for find in (_in_quarantine, _deleted, _backed_up, _stranded, _unfinished):
        if found := find(locations, name):
            return found
    hint = f" {error.hint}" if error.hint else ""
    commands = ("ckpt list", "ckpt trash", "ckpt list --backups")
    return Diagnosis(
        name=name, checkpoint_id=None, state="unknown", message=f"{error.message}.{hint}", commands=commands
    )


def _named(name: str, manifests: Sequence[Manifest]) -> Manifest | None:
    """Return the newest of some checkpoints that has the name as its tag, id or short id."""
    found = Selector.parse(name).named(manifests)
    return found[-1] if found else None


def _in_quarantine(locations: Locations, name: str) -> Diagnosis | None:
    manifest = _named(name, locations.home.index.view().quarantined)
    if manifest is None or manifest.quarantined is None:
        return None
    checkpoint_id = manifest.checkpoint_id
    report = next(item.report for item in list_quarantined(locations.home) if item.checkpoint_id == checkpoint_id)
    commands = (f"ckpt repair {checkpoint_id}", f"ckpt delete {checkpoint_id}")
    return Diagnosis(
        name=name,
        checkpoint_id=checkpoint_id,
        state="in quarantine",
        message=f"it was damaged and set aside: {report.message}",
        damages=report.damages,
        commands=commands,
    )


def _deleted(locations: Locations, name: str) -> Diagnosis | None:
    view = locations.home.index.view()
    manifest = _named(name, [item for item in view.deleted if view.is_complete(item)])
    if manifest is None:
        return None
    checkpoint_id = manifest.checkpoint_id
    return Diagnosis(
        name=name,
        checkpoint_id=checkpoint_id,
        state="deleted",
        message="it was deleted, and is still in the trash",
        commands=(f"ckpt undelete {checkpoint_id}",),
    )


def _backed_up(locations: Locations, name: str) -> Diagnosis | None:
    try:
        manifest = _named(name, locations.backups.index.view().usable)
    except Exception as error:
        if not is_store_failure(error):
            raise
        message = f"it is not in the store, and the backup location does not answer: {error}"
        return Diagnosis(name=name, checkpoint_id=None, state="unknown", message=message, commands=("ckpt doctor",))
    if manifest is None:
        return None
    checkpoint_id = manifest.checkpoint_id
    return Diagnosis(
        name=name,
        checkpoint_id=checkpoint_id,
        state="only a backup",
        message="it is not in the store, but has a backup",
        commands=(f"ckpt restore {checkpoint_id}",),
    )


def _stranded(locations: Locations, name: str) -> Diagnosis | None:
    view = locations.fallback.index.view_or_last() if locations.fallback else None
    manifest = _named(name, view.usable) if view else None
    if manifest is None:
        return None
    return Diagnosis(
        name=name,
        checkpoint_id=manifest.checkpoint_id,
        state="in fallback",
        message="it was saved in the fallback folder, because the store failed",
        commands=("ckpt reconcile",),
    )


def _unfinished(locations: Locations, name: str) -> Diagnosis | None:
    claims = locations.home.index.view().claims
    claim = next((item for item in claims if item.checkpoint_id == name and item.state == "saving"), None)
    if claim is None:
        return None
    if is_proven_dead(claim.owner):
        message, commands = f"{claim.owner} was killed while it saved it", ("ckpt doctor --fix", "ckpt list")
    else:
        message, commands = f"{claim.owner} is saving it", ("ckpt runs", "ckpt list")
    return Diagnosis(name=name, checkpoint_id=name, state="unfinished", message=message, commands=commands)
