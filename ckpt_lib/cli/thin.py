"""The command that drops all but the weights of checkpoints: ``ckpt thin``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import chosen_ids
from ckpt_lib.cli.cleanup import confirm, refuse_to_ask
from ckpt_lib.cli.output import Column, note, print_json, print_table
from ckpt_lib.cli.session import open_copies
from ckpt_lib.core.wording import count_of, duration, size_text
from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.manager import CheckpointManager


def thin(
    checkpoint_ids: options.AnyCheckpointNames = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    undo: Annotated[bool, typer.Option("--undo", help="Bring back what they lost, if it is in the trash.")] = False,
    backups: options.OfBackups = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Keep only the weights of checkpoints, and drop what is needed to resume from them.

    They lose the state of optimizer, scheduler, random number generators and data, and no run resumes from them any
    more; they can be loaded, compared and exported as before. What they lost stays in the trash for trash_seconds, a
    day by default. Backups keep everything: with --backups, only the backups of these ids are thinned.

    Example: ckpt thin epoch_1 epoch_2 --dry-run
    """
    if undo and backups:
        raise ConfigError("--undo and --backups cannot be combined", expected="one of them")
    manager = open_copies(store, experiment, config, backups=backups)
    ids = chosen_ids(manager, checkpoint_ids, where, tags, backups=backups)
    describe = manager.get_backup if backups else manager.get_checkpoint
    before = {} if undo else {name: describe(name) for name in ids}
    if dry_run:
        _end_dry_run(manager, [describe(name) for name in ids], as_json=as_json)
        return
    resumed_from = _resumed_from(manager)
    if not (undo or yes):
        refuse_to_ask(as_json=as_json)
        if not backups:
            _tell_of_resuming(resumed_from, _resumed_from(manager, thinned=ids))
        confirm(f"Keep only the weights of {count_of(len(ids), 'backup' if backups else 'checkpoint')}?")
    change = manager.unthin_checkpoint if undo else manager.thin_backup if backups else manager.thin_checkpoint
    after = [change(name) for name in ids]
    if undo or yes:
        _tell_of_resuming(resumed_from, _resumed_from(manager))
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "checkpoints": after})
        return
    _print_thinned(after)
    thinned = [item for item in after if item.is_thinned and not before[item.checkpoint_id].is_thinned]
    if thinned:
        freed_bytes = sum(before[item.checkpoint_id].file_size - item.file_size for item in thinned)
        _tell_of_trash(len(thinned), freed_bytes, manager.config.trash_seconds, backups=backups)
    elif not undo:
        note("Nothing was dropped: they hold nothing but their weights.")


def _end_dry_run(manager: CheckpointManager, selected: Sequence[CheckpointMetadata], *, as_json: bool) -> None:
    """Print what is selected, and no more."""
    if as_json:
        chosen = [{"checkpoint_id": item.checkpoint_id, "size_bytes": item.file_size} for item in selected]
        print_json({"experiment_name": manager.experiment_name, "dry_run": True, "selected": chosen})
        return
    _print_thinned(selected)
    note(f"{len(selected)} selected. Nothing was changed: without --dry-run, they keep only their weights.")


def _print_thinned(checkpoints: Sequence[CheckpointMetadata]) -> None:
    columns = (Column("id"), Column("holds"), Column("size", numeric=True))
    print_table(
        columns,
        [
            (item.checkpoint_id, "weights only" if item.is_thinned else "everything", size_text(item.file_size))
            for item in checkpoints
        ],
    )


def _resumed_from(manager: CheckpointManager, thinned: Sequence[str] = ()) -> str | None:
    """Return the newest checkpoint that a run would resume from, once those ``thinned`` are."""
    found = [item.checkpoint_id for item in manager.list_checkpoints() if item.healthy and not item.is_thinned]
    return next((name for name in reversed(found) if name not in thinned), None)


def _tell_of_resuming(before: str | None, after: str | None) -> None:
    if after != before:
        note(f"A run would go on from {after}." if after else "No checkpoint is left to resume from.", warning=True)


def _tell_of_trash(count: int, freed_bytes: int, trash_seconds: float, *, backups: bool) -> None:
    what = f"{count_of(count, 'backup' if backups else 'checkpoint')} thinned"
    if trash_seconds <= 0:
        note(f"{what}, {size_text(freed_bytes)} freed.")
        return
    undo = "" if backups else " Until then, `ckpt thin --undo ID` brings back what one has lost."
    note(f"{what}. {size_text(freed_bytes)} are freed when the trash is emptied, in {duration(trash_seconds)}.{undo}")
