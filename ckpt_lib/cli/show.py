"""Commands that show what is stored: ``ckpt list`` and ``show``."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from ckpt_lib.cli import options
from ckpt_lib.cli.choosing import as_names, chosen_ids, is_by_condition
from ckpt_lib.cli.metrics import print_metrics
from ckpt_lib.cli.output import (
    Column,
    as_age,
    as_number,
    as_time,
    as_value,
    note,
    print_facts,
    print_heading,
    print_json,
    print_table,
)
from ckpt_lib.cli.session import open_copies, open_manager, tell_of_other_backups
from ckpt_lib.core.metadata import marks_of
from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError

if TYPE_CHECKING:
    from ckpt_lib.core.manifest import Manifest
    from ckpt_lib.core.metadata import CheckpointMetadata
    from ckpt_lib.maintenance.backup_status import BackupStatus
    from ckpt_lib.manager import CheckpointManager

_MARK_STYLES = {
    "best": "bold green",
    "latest": "bold cyan",
    "pinned": "bold yellow",
    "unhealthy": "bold red",
    "incomplete": "bold red",
    "weights only": "yellow",
}


def list_checkpoints(
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    search: options.Search = "",
    min_epoch: Annotated[int | None, typer.Option(metavar="N", help="Only checkpoints from this epoch on.")] = None,
    max_epoch: Annotated[int | None, typer.Option(metavar="N", help="Only checkpoints up to this epoch.")] = None,
    sort_by: options.SortBy = "sequence",
    descending: options.Descending = False,
    limit: options.Limit = None,
    after: Annotated[
        str | None, typer.Option(metavar="ID", help="Begin after this checkpoint: the last of the page before.")
    ] = None,
    backups: options.OfBackups = False,
    as_json: options.AsJson = False,
) -> None:
    """List checkpoints in the order of saving.

    --where compares epoch, step, sequence, file_size, timestamp, pinned, healthy, model_name, run_id, or a metric, by
    <, <=, =, !=, >= or >. A checkpoint without the metric, or with NaN, meets no condition on it.

    Example: ckpt list --where "val_loss<0.3" --sort-by val_loss
    """
    from ckpt_lib.core.names import check_tags
    from ckpt_lib.core.wording import did_you_mean
    from ckpt_lib.index.selection import select

    manager = open_copies(store, experiment, config, backups=backups)
    everything = manager.list_backups() if backups else manager.list_checkpoints()
    matching = select(
        everything,
        where=where or (),
        tags=tags or (),
        search=search,
        min_epoch=min_epoch,
        max_epoch=max_epoch,
        sort_by=sort_by,
        descending=descending,
        after=after,
    )
    found, is_last_page = matching[:limit], limit is None or len(matching) <= limit
    unreadable = manager.list_unreadable_backups() if backups else manager.list_unreadable()
    if not (everything or unreadable or backups):
        _check_none_is_lost(manager)
    if as_json:
        reports = [{"checkpoint_id": item.checkpoint_id, "message": item.message} for item in unreadable]
        print_json({"experiment_name": manager.experiment_name, "checkpoints": found, "unreadable": reports})
        return
    monitor = manager.monitor
    print_found(
        found,
        {monitor.metric, *asked_about(sort_by, where)},
        metrics=_metrics_of(everything),
        with_run=len({item.run_id for item in everything}) > 1,
    )
    kind = "backup" if backups else "checkpoint"
    note(
        f"{len(found)} of {count_of(len(everything), kind)} of {manager.experiment_name}, "
        f"{size_text(sum(item.file_size for item in found))}. "
        f"The best is by {monitor.metric} ({monitor.mode})."
    )
    if not is_last_page:
        note(f"There are more: --after {found[-1].checkpoint_id} shows the next.")
    known = {name for item in everything for name in item.tags}
    for unknown in sorted(set(check_tags(tags or ())) - known):
        note(f"No {kind} has the tag {unknown!r}. {did_you_mean(unknown, known)}".rstrip(), warning=True)
    if problem := manager.monitor_warning:
        note(problem, warning=True)
    if not all(item.is_complete for item in found):
        note("Of the incomplete ones, files are missing or cut short: `ckpt doctor` says what helps.", warning=True)
    for report in unreadable:
        note(f"Not shown: {report.checkpoint_id}: {report.message}", warning=True)


def _check_none_is_lost(manager: CheckpointManager) -> None:
    """Raise ``CheckpointNotFoundError`` where there are only backups: a list of nothing would hide them."""
    try:
        count = len(manager.backup_ids())
    except (CheckpointError, OSError) as error:
        note(f"Whether there are backups could not be told: {error}", warning=True)
        return
    if count:
        raise CheckpointNotFoundError(
            f"{manager.experiment_name!r} has no checkpoint in the store, but {count_of(count, 'backup')}",
            path=manager.config.checkpoint_dir,
            hint="`ckpt list --backups` lists them, and `ckpt restore ID` brings one back.",
        )


def _metrics_of(checkpoints: Sequence[CheckpointMetadata]) -> list[str]:
    """Return the names of all metrics, as they were recorded."""
    return list(dict.fromkeys(name for checkpoint in checkpoints for name in checkpoint.metrics))


def asked_about(sort_by: str, where: Sequence[str] | None) -> Set[str]:
    """Return the facts and metrics that the options of a list name."""
    from ckpt_lib.index.conditions import conditions_of

    return {sort_by, *(condition.metric or condition.name for condition in conditions_of(where or ()))}


def print_found(
    checkpoints: Sequence[CheckpointMetadata],
    asked: Set[str],
    *,
    metrics: Sequence[str] | None = None,
    with_experiment: bool = False,
    with_run: bool = False,
) -> None:
    """Print a table; what was ``asked`` about is shown however narrow the terminal is."""
    metrics = _metrics_of(checkpoints) if metrics is None else metrics
    first = [name for name in metrics if name in asked]
    others = [name for name in metrics if name not in asked]
    columns = (
        *((Column("experiment", above=True),) if with_experiment else ()),
        Column("id", above=True),
        *(Column(name, numeric=True) for name in first),
        Column("epoch", numeric=True),
        Column("size", numeric=True),
        Column("age", numeric=True),
        Column("marks"),
        Column("tags", wraps=True, optional=True),
        Column("step", numeric=True, optional="step" not in asked),
        *((Column("run", wraps=True, optional="run_id" not in asked),) if with_run else ()),
        *(Column(name, numeric=True, optional=True) for name in others),
    )
    rows: list[tuple[str | Text, ...]] = [
        (
            *((item.experiment_name,) if with_experiment else ()),
            item.checkpoint_id,
            *(as_number(item.metrics.get(name)) for name in first),
            str(item.epoch),
            size_text(item.file_size),
            as_age(item.timestamp),
            _marks(item),
            ", ".join(item.tags),
            str(item.step),
            *((item.run_id or "-",) if with_run else ()),
            *(as_number(item.metrics.get(name)) for name in others),
        )
        for item in checkpoints
    ]
    print_table(columns, rows)


def _marks(checkpoint: CheckpointMetadata) -> Text:
    return Text(" ").join(Text(mark, style=_MARK_STYLES[mark]) for mark in marks_of(checkpoint))


def show(
    checkpoint_id: options.ACheckpointName = None,
    *,
    store: options.Store = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    as_json: options.AsJson = False,
) -> None:
    """Show all facts about a checkpoint.

    The payload is not read; `ckpt validate` reads it.

    Example: ckpt show best
    """
    manager = open_manager(store, experiment, config)
    ids = chosen_ids(manager, as_names(checkpoint_id), where, tags)
    if as_json:
        shown = [_as_document(manager, name) for name in ids]
        many = {"experiment_name": manager.experiment_name, "checkpoints": shown}
        print_json(many if is_by_condition(where, tags) else shown[0])
        return
    for number, name in enumerate(ids):
        if number:
            print_heading("")
        _show_one(manager, name)


def _as_document(manager: CheckpointManager, checkpoint_id: str) -> dict[str, Any]:
    checkpoint = manager.get_checkpoint(checkpoint_id)
    manifest, path, is_complete = _stored(manager, checkpoint_id)
    status = manager.backup_status(checkpoint_id)
    return {
        **checkpoint.model_dump(),
        **manifest.model_dump(include={"uid", "format", "files", "libraries", "schema_version"}),
        "path": path,
        "is_complete": is_complete,
        "has_backup": status.state in ("written", "verified"),
        "backup": status.model_dump(mode="json", exclude={"checkpoint_id"}),
    }


def _show_one(manager: CheckpointManager, checkpoint_id: str) -> None:
    checkpoint = manager.get_checkpoint(checkpoint_id)
    manifest, path, is_complete = _stored(manager, checkpoint_id)
    status = manager.backup_status(checkpoint_id)
    has_backup = status.state in ("written", "verified")
    _print_checkpoint(checkpoint, manifest, path, status)
    identifier = checkpoint.checkpoint_id
    if not is_complete:
        advice = f"`ckpt restore {identifier}`." if has_backup else "`ckpt doctor` says what can be done."
        note(f"The payload is missing or has the wrong size: {advice}", warning=True)
    elif manager.other_backup_dir:
        tell_of_other_backups(manager)
    elif status.state == "unknown":
        note("The backup location did not answer.", warning=True)
    elif not has_backup:
        note(f"It has no {'sound ' if status.state == 'damaged' else ''}backup: `ckpt backup {identifier}`.")
    if manifest.thinned:
        note(f"Thinned on {as_time(manifest.thinned.at)}: only its weights are left, and no run resumes from it.")
        note(_way_to_undo(manager, manifest, has_backup=has_backup))


def _way_to_undo(manager: CheckpointManager, manifest: Manifest, *, has_backup: bool) -> str:
    """Say what brings back the state that a thinned checkpoint has lost."""
    from ckpt_lib.maintenance.thin import full_payload_of

    identifier = manifest.checkpoint_id
    if full_payload_of(manifest) is not None:
        return f"The rest is in the trash: `ckpt thin --undo {identifier}` brings it back."
    if has_backup and not manager.get_backup(identifier).is_thinned:
        return f"The backup holds the rest: `ckpt restore {identifier}` brings it back."
    return "The rest is neither in the trash nor in a backup."


def _stored(manager: CheckpointManager, checkpoint_id: str) -> tuple[Manifest, str, bool]:
    """Return the manifest, the payload's location, and whether the payload is there with the right size."""
    from ckpt_lib.experiment.locations import Locations

    home = Locations(manager.config, manager.experiment_name).home
    manifest = home.get(checkpoint_id)
    return manifest, home.location(manifest.payload_name), home.is_complete(manifest)


def _compression_of(manifest: Manifest) -> str:
    """Return what compression has saved, and how fast the plain bytes were written; empty without compression."""
    plain_bytes = manifest.plain_size_bytes
    if not any(file.compression for file in manifest.files):
        return ""
    share = manifest.size_bytes / plain_bytes if plain_bytes else 1.0
    text = f"{share:.1%} of {size_text(plain_bytes)}"
    seconds = [file.compression.seconds for file in manifest.files if file.compression]
    known = sum(item for item in seconds if item)
    return f"{text}, written at {size_text(round(plain_bytes / known))}/s" if known else text


def _print_checkpoint(checkpoint: CheckpointMetadata, manifest: Manifest, path: str, status: BackupStatus) -> None:
    verified = f", {as_age(status.verified_at)} ago" if status.verified_at else ""
    facts: dict[str, str | Text] = {
        "id": checkpoint.checkpoint_id,
        "marks": _marks(checkpoint),
        "unhealthy": checkpoint.unhealthy or "",
        "experiment": checkpoint.experiment_name,
        "saved": f"{as_time(checkpoint.timestamp)}, {as_age(checkpoint.timestamp)} ago",
        "epoch": str(checkpoint.epoch),
        "step": str(checkpoint.step),
        "run": checkpoint.run_id or "",
        "model": checkpoint.model_name,
        "tags": ", ".join(checkpoint.tags),
        "description": checkpoint.description,
        "parent": checkpoint.parent_id or "",
        "path": path,
        "backup": f"{status.state}{verified}",
        "size": f"{size_text(checkpoint.file_size)} ({checkpoint.file_size:,} bytes)",
        "compression": _compression_of(manifest),
        "SHA-256": checkpoint.checksum,
        "format": manifest.format,
        "libraries": ", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
    }
    print_facts(
        {name: value for name, value in facts.items() if value}, prose=["unhealthy", "description", "libraries"]
    )
    print_metrics(checkpoint)
    if checkpoint.config:
        print_heading("Configuration")
        print_facts({f"  {name}": as_value(value) for name, value in checkpoint.config.items()})
