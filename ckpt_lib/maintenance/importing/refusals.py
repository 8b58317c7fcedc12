"""The errors of imports that have more than one reason to occur."""

from __future__ import annotations

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import ConfigError, CorruptCheckpointError, NotACheckpointError
from ckpt_lib.experiment.at_path import CHECKPOINTS
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.stored_file import open_file
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.store import location


def not_a_checkpoint(
    origin: Experiment, name: str, reason: str = "no program is known that writes such checkpoints"
) -> NotACheckpointError:
    """Return the error for a file that is no checkpoint, which says of what kind it is."""
    from ckpt_lib.foreign.file_types import describe_file  # torch, only where it is used

    with open_file(origin, name) as file:
        kind = describe_file(file)
    return NotACheckpointError(
        f"it is {kind}, and cannot be imported: {reason}", path=location(origin.store, name), expected=CHECKPOINTS
    )


def was_changed(path: str) -> CorruptCheckpointError:
    """Return the error for what was written to while it was imported."""
    return CorruptCheckpointError(
        "the checkpoint was changed while it was imported",
        path=path,
        hint="Nothing was imported: try again when nobody writes to it.",
    )


def refuse_older(newest: Manifest | None, *, epoch: int | None, step: int | None) -> None:
    """Keep a run from going on from an old checkpoint because it was imported late, after ``newest``.

    ``None`` stands for an epoch or step that a checkpoint does not say.
    """
    if newest is None:
        return
    for name, count, reached in (("step", step, newest.step), ("epoch", epoch, newest.epoch)):
        if count is not None and count < reached:
            raise ConfigError(
                f"it is of {name} {count}, and the experiment has reached {name} {reached}: "
                "a run would go on from here",
                checkpoint_id=newest.checkpoint_id,
                hint="Import it into another experiment, or by itself if it is to be the latest here.",
            )


def require_intact(experiment: Experiment, imported: Manifest) -> None:
    """Raise when what was imported before is damaged by now."""
    report = validate(experiment, imported)
    if not report:
        raise CorruptCheckpointError(
            f"the checkpoint was imported before, and is damaged here: {report.message}",
            checkpoint_id=imported.checkpoint_id,
            path=experiment.location(imported.payload_name),
            damages=report.damages,
            hint=f"`ckpt restore {imported.checkpoint_id}` brings back a backup; or delete it and import it again.",
        )
