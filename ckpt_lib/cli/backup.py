"""Commands that copy checkpoints: ``ckpt backup``, ``restore`` and ``export``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import as_names, chosen_ids, is_by_condition
from ckpt_lib.cli.errors import DAMAGE, print_error
from ckpt_lib.cli.errors import describe as describe_error
from ckpt_lib.cli.output import Column, note, print_facts, print_json, print_table
from ckpt_lib.cli.progress import byte_progress
from ckpt_lib.cli.session import (
    check_ids_or_all,
    open_manager,
    refuse_memory,
    require_backup_location,
)
from ckpt_lib.core.wording import size_text
from ckpt_lib.errors import ConfigError

if TYPE_CHECKING:
    from ckpt_lib.manager import CheckpointManager

_FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
_STYLES = {"copied": "green", "damaged": "bold red", "deleted again": "yellow"}


def backup(
    checkpoint_ids: options.SomeCheckpointNames = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    everything: Annotated[bool, typer.Option("--all", help="Back up every checkpoint of the experiment.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="With --all: also read every byte of existing backups.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Copy checkpoints to the backup location.

    A damaged checkpoint is reported and never copied; the others are copied, and the exit code is 1. If a backup
    exists, both copies are read in full and a damaged backup is replaced. With --all, only their sizes are compared
    unless --verify is given.

    Example: ckpt backup best
    """
    check_ids_or_all([*(checkpoint_ids or ()), *(where or ()), *(tags or ())], everything=everything)
    manager = open_manager(store, experiment, config)
    require_backup_location(manager)
    chosen = None if everything else chosen_ids(manager, checkpoint_ids, where, tags, default=["latest"])
    ids = manager.checkpoint_ids() if chosen is None else chosen
    verify = verify or not everything
    outcomes = _back_up(manager, ids, verify=verify)
    damaged = any(outcome["result"] == "damaged" for outcome in outcomes)
    if as_json:
        print_json({"experiment_name": manager.experiment_name, "verified": verify, "backups": outcomes})
    else:
        _print_outcomes(outcomes)
        if not verify and any(outcome["result"] == "already there" for outcome in outcomes):
            note("Of backups that existed already, only the sizes were compared; `--verify` reads every byte.")
        if any(outcome["result"] == "deleted again" for outcome in outcomes):
            note(f"Deleted again: max_backups={manager.config.max_backups} keeps only the best and the newest.")
    if damaged:
        raise typer.Exit(DAMAGE)


def _back_up(manager: CheckpointManager, ids: Sequence[str], *, verify: bool) -> list[dict[str, Any]]:
    from ckpt_lib.errors import IntegrityError

    sizes = {item.checkpoint_id: item.file_size for item in manager.list_checkpoints()}
    outcomes: list[dict[str, Any]] = []
    with byte_progress("Backing up", sum(sizes.get(checkpoint_id, 0) for checkpoint_id in ids)) as progress:
        for checkpoint_id in ids:
            outcome: dict[str, Any] = {"checkpoint_id": checkpoint_id, "size_bytes": sizes.get(checkpoint_id, 0)}
            try:
                copied = manager.backup_checkpoint(checkpoint_id, verify_existing=verify, progress=progress)
                outcome |= {"result": "copied" if copied else "already there", "error": None}
            except IntegrityError as error:
                outcome |= {"result": "damaged", "error": describe_error(error)}
            outcomes.append(outcome)
    held = {item.checkpoint_id for item in manager.list_backups()}
    for outcome in outcomes:
        if outcome["result"] == "copied" and outcome["checkpoint_id"] not in held:
            outcome["result"] = "deleted again"
    return outcomes


def _print_outcomes(outcomes: Sequence[dict[str, Any]]) -> None:
    print_table(
        (Column("id"), Column("result"), Column("size", numeric=True)),
        [
            (
                outcome["checkpoint_id"],
                Text(outcome["result"], style=_STYLES.get(outcome["result"], "")),
                size_text(outcome["size_bytes"]),
            )
            for outcome in outcomes
        ],
    )
    for outcome in outcomes:
        if outcome["error"]:
            print_error(outcome["error"])


def restore(
    checkpoint_id: options.ACheckpointName = None,
    *,
    pin: options.Pin = False,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    as_json: options.AsJson = False,
) -> None:
    """Restore a damaged or deleted checkpoint from its backup.

    `ckpt list --backups` shows which backups exist. Where the store has no checkpoint of the experiment, latest, best
    and tags stand for one of them; backups of what was deleted by name answer to their id alone. If a run is still
    saving and its retention rules do not keep the checkpoint, its next save deletes it again, unless it is pinned.
    --where and --tag select among the backups.

    Example: ckpt restore --tag baseline
    """
    manager = open_manager(store, experiment, config, may_be_new=True)
    require_backup_location(manager)
    held = manager.checkpoint_ids()
    sizes = {item.checkpoint_id: item.file_size for item in manager.list_backups()}
    names = as_names(checkpoint_id)
    if is_by_condition(where, tags) or not names:
        names = chosen_ids(manager, names, where, tags, backups=True)
    with byte_progress("Restoring", sum(sizes.get(name, 0) for name in names) or None) as progress:
        restored = [manager.restore_checkpoint(name, pin=pin, progress=progress) for name in names]
    if as_json:
        many = {"experiment_name": manager.experiment_name, "checkpoints": restored}
        print_json(many if is_by_condition(where, tags) else restored[0])
        return
    print_facts({"restored": "\n".join(item.checkpoint_id for item in restored)})
    if any(item.checkpoint_id not in held and not item.pinned for item in restored):
        note("A run that is still saving may delete it again: --pin keeps it.")


def export(
    checkpoint_id: options.CheckpointName,
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="DEST",
            help="The folder to copy to, or a file that ends with .pt, .pth or .ckpt; converted, also .safetensors.",
        ),
    ] = None,
    *,
    target_format: options.TargetFormat = None,
    dtype: options.Dtype = None,
    only: options.Only = None,
    shard_size: options.ShardSize = None,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    as_json: options.AsJson = False,
) -> None:
    """Copy a checkpoint to another folder with its manifest, or its payload alone to a file.

    DEST is a file if it ends with .pt, .pth or .ckpt, unless it is an existing folder or ends with a slash.
    torch.load reads the exported payload. `ckpt import` imports it from a folder.

    With --format, --dtype, --only or --shard-size, the checkpoint is converted for another program, as `ckpt convert`
    does it. DEST.ckpt is a file of torch.save even then; --format lightning makes one of Lightning.

    With --where or --tag, DEST is the only argument. Several converted checkpoints get a folder of their own each.

    Example: ckpt export best model.safetensors --only model --dtype bf16
    """
    names, place = _names_and_destination(checkpoint_id, destination, is_by_condition(where, tags))
    refuse_memory(place)
    manager = open_manager(store, experiment, config)
    ids = chosen_ids(manager, names, where, tags)
    checkpoints = [manager.get_checkpoint(name) for name in ids]
    wanted: dict[str, Any] = {"format": target_format, "dtype": dtype, "only": only, "shard_size": shard_size}
    exported: list[dict[str, str]] = []
    with byte_progress("Exporting", sum(item.uncompressed_size for item in checkpoints)) as progress:
        for name in ids:
            to = _place_of(name, place, len(ids), is_converted=any(wanted.values()))
            path = manager.export_checkpoint(name, to, progress=progress, **wanted)
            exported.append({"checkpoint_id": name, "path": path})
    if as_json:
        many = {"experiment_name": manager.experiment_name, "exports": exported}
        print_json(many if is_by_condition(where, tags) else exported[0])
        return
    for item in exported:
        print_facts({"exported": item["checkpoint_id"], "to": item["path"]})


def _names_and_destination(first: str, second: str | None, by_condition: bool) -> tuple[list[str], str]:
    """Return the names and the destination in the arguments: beside conditions, the only one is the destination."""
    if by_condition:
        return ([], first) if second is None else ([first], second)
    if second is None:
        raise ConfigError("the destination is missing", expected="ckpt export ID DEST", got=f"ckpt export {first}")
    return [first], second


def _place_of(checkpoint_id: str, destination: str, count: int, *, is_converted: bool) -> str:
    """Return where one of several checkpoints goes."""
    if count == 1:
        return destination
    if destination.endswith(_FILE_SUFFIXES) and not os.path.isdir(destination):
        raise ConfigError("several checkpoints cannot go into one file", expected="a folder", got=destination)
    folder = destination.rstrip("/")
    return f"{folder}/{checkpoint_id}/" if is_converted else f"{folder}/"
