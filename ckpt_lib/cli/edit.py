"""Commands that change facts about checkpoints: ``ckpt pin``, ``tag`` and ``monitor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import as_names, chosen_ids, is_by_condition
from ckpt_lib.cli.output import note, print_facts, print_json
from ckpt_lib.cli.session import open_manager
from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.manager import CheckpointManager


def pin(
    checkpoint_id: options.ACheckpointName = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    off: Annotated[bool, typer.Option("--off", help="Unpin it.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Protect a checkpoint from cleanup and deletion.

    Example: ckpt pin best
    """
    manager = open_manager(store, experiment, config)
    names = _names(manager, checkpoint_id, where, tags)
    edited = [(manager.unpin_checkpoint if off else manager.pin_checkpoint)(name) for name in names]
    _print_edited(manager, edited, by_condition=is_by_condition(where, tags), as_json=as_json)
    for checkpoint in edited:
        if off and checkpoint.original:
            note(
                "It was imported in place: a cleanup or deletion of it removes its record alone, and "
                f"{checkpoint.original} stays where it is."
            )


def monitor(
    metric: Annotated[
        str | None, typer.Argument(metavar="METRIC", help="The new metric. Omit it to show the present one.")
    ] = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    mode: Annotated[str | None, typer.Option(metavar="min|max", help="Whether smaller or larger is better.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Show or change the metric that decides which checkpoint is the best.

    The first save of an experiment records it. A change applies to all later commands, saves and cleanups.

    Example: ckpt monitor accuracy --mode max
    """
    manager = open_manager(store, experiment, config)
    if metric is not None:
        if mode not in ("min", "max"):
            raise ConfigError(
                "--mode says whether a smaller or a larger value is better",
                expected=f"ckpt monitor {metric} --mode min, or --mode max",
                got="no --mode" if mode is None else f"--mode {mode}",
            )
        manager.set_monitor(metric, mode)  # type: ignore[arg-type]
    elif mode is not None:
        raise ConfigError("--mode was given without a metric", expected="ckpt monitor METRIC --mode max")
    best = manager.get_best_checkpoint()
    facts = {**manager.monitor.model_dump(), "best_checkpoint": best.checkpoint_id if best else None}
    if as_json:
        print_json({"experiment_name": manager.experiment_name, **facts})
    else:
        print_facts({name.replace("_", " "): value or "-" for name, value in facts.items()})


def tag(
    checkpoint_id: options.ACheckpointName = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", "-a", metavar="TAG", help="Add this tag; repeat for more.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-r", metavar="TAG", help="Remove this tag; repeat for more.")
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help='Set the description; "" removes it.')] = None,
    as_json: options.AsJson = False,
) -> None:
    """Change the tags and the description of a checkpoint.

    The payload stays untouched.

    Example: ckpt tag best --add release
    """
    if not (add or remove or description is not None):
        raise ConfigError("there is nothing to change", expected="--add, --remove or --description")
    manager = open_manager(store, experiment, config)
    edited = [
        manager.edit_checkpoint(name, add_tags=add or (), remove_tags=remove or (), description=description)
        for name in _names(manager, checkpoint_id, where, tags)
    ]
    _print_edited(manager, edited, by_condition=is_by_condition(where, tags), as_json=as_json)


def _names(
    manager: CheckpointManager, name: str | None, where: Sequence[str] | None, tags: Sequence[str] | None
) -> list[str]:
    """Return the names to edit: one that is typed answers as it does when the edit is made."""
    names = as_names(name)
    return names if names and not is_by_condition(where, tags) else chosen_ids(manager, names, where, tags)


def _print_edited(
    manager: CheckpointManager, edited: Sequence[CheckpointMetadata], *, by_condition: bool, as_json: bool
) -> None:
    if as_json:
        many = {"experiment_name": manager.experiment_name, "checkpoints": edited}
        print_json(many if by_condition else edited[0])
        return
    for checkpoint in edited:
        print_facts(
            {
                "id": checkpoint.checkpoint_id,
                "pinned": "yes" if checkpoint.pinned else "no",
                "tags": ", ".join(checkpoint.tags) or "-",
                "description": checkpoint.description or "-",
            },
            prose=["description"],
        )
