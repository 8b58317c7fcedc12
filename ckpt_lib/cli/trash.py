"""Commands for deleted checkpoints: ``ckpt undelete`` and ``trash``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import is_by_condition, meeting
from ckpt_lib.cli.cleanup import confirm, refuse_to_ask
from ckpt_lib.cli.output import Column, as_number, note, print_facts, print_json, print_table
from ckpt_lib.cli.session import open_manager
from ckpt_lib.core.wording import count_of, duration, listed, size_text
from ckpt_lib.errors import CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from ckpt_lib.core.manifest import Manifest
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.manager import CheckpointManager


def undelete(
    checkpoint_ids: options.DeletedNames = None,
    *,
    where: options.Where = None,
    tags: options.Tags = None,
    pin: options.Pin = False,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    as_json: options.AsJson = False,
) -> None:
    """Bring deleted checkpoints back.

    Checkpoints deleted by name or by a cleanup stay in the trash for trash_seconds, a day by default. If a run is still
    saving and its retention rules do not keep them, its next save deletes them for good, unless they are pinned.
    --where and --tag select among the deleted ones.

    Example: ckpt undelete --where "epoch>=10"
    """
    manager = open_manager(store, experiment, config)
    names = list(checkpoint_ids or ())
    if is_by_condition(where, tags):
        names = [item.checkpoint_id for item in meeting(manager.list_deleted(), names, where, tags)]
    elif not names:
        raise ConfigError("no checkpoint is named", expected="an ID, --where or --tag")
    else:
        deleted = manager.list_deleted()
        names = [_deleted_id(name, deleted) for name in names]
    live = set(manager.checkpoint_ids())
    set_aside = {item.checkpoint_id for item in manager.list_quarantined()}
    back = [manager.undelete_checkpoint(checkpoint_id, pin=pin).checkpoint_id for checkpoint_id in names]
    for checkpoint_id in back:
        if checkpoint_id in set_aside:
            note(f"{checkpoint_id} was not deleted: it is in quarantine, and `ckpt repair` may bring it back.")
        elif checkpoint_id in live:
            note(f"{checkpoint_id} was not deleted: it is live.")
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "undeleted_ids": back})
    else:
        print_facts({"undeleted": "\n".join(back)})


def trash(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    empty: Annotated[bool, typer.Option("--empty", help="Delete them for good.")] = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """List the deleted checkpoints that `ckpt undelete` can bring back, and what `ckpt thin --undo` can.

    With --empty, delete all of it for good. Backups stay.

    Example: ckpt trash --empty --dry-run
    """
    manager = open_manager(store, experiment, config)
    empty = empty and not dry_run  # without --empty, it is the list of what would go
    deleted, dropped = manager.list_deleted(), manager.dropped_bytes()
    if empty and (deleted or dropped) and not yes:
        refuse_to_ask(as_json=as_json)
        confirm(f"Delete {_described(len(deleted), dropped)} in the trash for good?")
    shown_ids = [item.checkpoint_id for item in deleted]  # more may have come while a person was asked
    removed = manager.empty_trash(deleted_ids=shown_ids, dropped_ids=dropped) if empty and (deleted or dropped) else []
    if as_json:
        facts = {"deleted": deleted, "dropped_bytes": dropped, "removed": removed}
        of_all = {"experiment_name": manager.experiment_name, "trash_seconds": manager.config.trash_seconds}
        print_json({**of_all, **facts})
        return
    if not (deleted or dropped):
        note("The trash is empty.")
        return
    if deleted:
        _print_deleted(deleted)
    if empty:
        going = (item for item in deleted if item.checkpoint_id in removed and item.original is None)
        freed_bytes = sum(item.file_size for item in going)
        left = manager.dropped_bytes()
        freed_bytes += sum(size_bytes - left.get(name, 0) for name, size_bytes in dropped.items())
        note(f"{count_of(len(removed), 'checkpoint')} deleted for good, {size_text(freed_bytes)} freed.")
        return
    if deleted:
        time = manager.config.trash_seconds
        within = f"within {duration(time)} of its deletion" if time else "until the next cleanup"
        note(f"{count_of(len(deleted), 'checkpoint')} in the trash. `ckpt undelete ID` brings one back {within}.")
    if dropped:
        _tell_of_dropped(manager, dropped)


def _tell_of_dropped(manager: CheckpointManager, dropped: dict[str, int]) -> None:
    """Say what the trash holds of checkpoints that are there, and for which of them that can be brought back."""
    lost = f"{size_text(sum(dropped.values()))} of {count_of(len(dropped), 'other checkpoint')} in the trash"
    thinned = [item.checkpoint_id for item in manager.list_checkpoints() if item.is_thinned]
    can_come_back = any(checkpoint_id in dropped for checkpoint_id in thinned)
    undo = " `ckpt thin --undo ID` brings back what one was thinned of." if can_come_back else ""
    note(f"{lost}: {', '.join(dropped)}.{undo}")


def _deleted_id(name: str, deleted: Sequence[CheckpointMetadata]) -> str:
    """Return the id that a name stands for among the deleted checkpoints: a whole id, a short one, or a tag.

    A whole id stands for itself: whether it is in the trash is said by who looks for it there.
    """
    from ckpt_lib.experiment.selectors import Selector

    selector, there = Selector.parse(name), cast("Sequence[Manifest]", deleted)  # they have the ids and tags of those
    if selector.is_id and not selector.back:
        return selector.name
    found = [] if selector.back else selector.tagged(there)[-1:] or selector.matching_ids(there)
    if len(found) > 1:
        raise CheckpointNotFoundError(
            f"{name!r} is short for {len(found)} deleted checkpoints",
            expected="more of the id",
            got=listed([item.checkpoint_id for item in found], most=5),
        )
    if not found:
        raise CheckpointNotFoundError(
            f"no deleted checkpoint answers to {name!r}",
            expected="a tag, or an id, whole or as short as epoch_12",
            hint=f"`ckpt trash` lists the {len(deleted)} that can be brought back.",
        )
    return found[0].checkpoint_id


def _described(deleted: int, dropped: dict[str, int]) -> str:
    parts = [count_of(deleted, "checkpoint")] if deleted else []
    if dropped:
        parts.append(f"what {count_of(len(dropped), 'other')} lost ({size_text(sum(dropped.values()))})")
    return " and ".join(parts)


def _print_deleted(deleted: Sequence[CheckpointMetadata]) -> None:
    print_table(
        (Column("id"), Column("epoch", numeric=True), Column("step", numeric=True), Column("size", numeric=True)),
        [
            (item.checkpoint_id, as_number(item.epoch), as_number(item.step), size_text(item.file_size))
            for item in deleted
        ],
    )
