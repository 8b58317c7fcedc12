"""Commands about all experiments of a store: ``ckpt experiments``, ``find`` and ``reindex``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ckpt_lib.cli import options
from ckpt_lib.cli.output import Column, as_age, as_number, as_time, note, print_json, print_table
from ckpt_lib.cli.progress import count_progress
from ckpt_lib.cli.session import read_config
from ckpt_lib.cli.show import asked_about, print_found
from ckpt_lib.core.wording import count_of, size_text

if TYPE_CHECKING:
    from ckpt_lib.index.overview import ExperimentOverview

NoSync = Annotated[
    bool, typer.Option("--no-sync", help="Answer from the index alone, as old as it is: the store is not asked.")
]


def experiments(
    *,
    store: options.Store = None,
    config: options.Config = None,
    no_sync: NoSync = False,
    as_json: options.AsJson = False,
) -> None:
    """List the experiments of a store, with the best and the latest checkpoint of each.

    Example: ckpt experiments --store checkpoints
    """
    from ckpt_lib.experiment.overviews import describe_experiments

    settings = read_config(store, config)
    with count_progress("Reading") as step:
        found = describe_experiments(settings, sync=not no_sync, step=step)
    if as_json:
        print_json({"experiments": found})
        return
    columns = (
        Column("experiment"),
        Column("checkpoints", numeric=True),
        Column("size", numeric=True),
        Column("last saved", numeric=True),
        Column("best", numeric=True, optional=True),
        Column("by", optional=True),
        Column("latest", optional=True),
    )
    print_table(columns, [_row(item) for item in found])
    if no_sync and found:
        note(f"As of {as_time(min(item.as_of for item in found))} or later.")
    for item in found:
        if item.unreadable_checkpoints:
            unreadable = count_of(item.unreadable_checkpoints, "unreadable checkpoint")
            note(f"{item.experiment_name} has {unreadable}: `ckpt doctor` says what helps.", warning=True)


def _row(item: ExperimentOverview) -> tuple[str, ...]:
    return (
        item.experiment_name,
        str(item.total_checkpoints),
        size_text(item.total_size_bytes),
        f"{as_age(item.latest_timestamp)} ago" if item.latest_timestamp else "-",
        "-" if item.best_value is None else as_number(item.best_value),
        item.monitor_metric or "-",
        item.latest_checkpoint or "-",
    )


def find(
    *,
    store: options.Store = None,
    config: options.Config = None,
    where: options.Where = None,
    tags: options.Tags = None,
    search: options.Search = "",
    sort_by: options.SortBy = "sequence",
    descending: options.Descending = False,
    limit: options.Limit = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="EXPERIMENT/ID", help="Begin after this checkpoint: the last of the page before."),
    ] = None,
    no_sync: NoSync = False,
    as_json: options.AsJson = False,
) -> None:
    """Find checkpoints in all experiments of a store.

    The options are those of `ckpt list`.

    Example: ckpt find --where "epoch>=2" --tag baseline
    """
    from ckpt_lib.experiment.overviews import find_checkpoints

    settings = read_config(store, config)
    found = find_checkpoints(
        settings,
        sync=not no_sync,
        where=where or (),
        tags=tags or (),
        search=search,
        sort_by=sort_by,
        descending=descending,
        limit=None if limit is None else limit + 1,
        after=after,
    )
    page = found[:limit]
    if as_json:
        print_json({"checkpoints": page})
        return
    print_found(page, asked_about(sort_by, where), with_experiment=True)
    note(f"{count_of(len(page), 'checkpoint')}, {size_text(sum(item.file_size for item in page))}.")
    if len(page) < len(found):
        note(f"There are more: --after {page[-1].experiment_name}/{page[-1].checkpoint_id} shows the next.")


def reindex(*, store: options.Store = None, config: options.Config = None, as_json: options.AsJson = False) -> None:
    """Build the index of a store anew.

    The index remembers what the manifests of a store say, so that large stores answer at once. It is kept up to date by
    itself, and a damaged one is noticed; this is for those who want to be sure.

    Example: ckpt reindex --store checkpoints
    """
    from ckpt_lib.experiment.overviews import reindex as read_again

    settings = read_config(store, config)
    with count_progress("Indexing") as step:
        found = read_again(settings, step=step)
    total = sum(item.total_checkpoints for item in found)
    if as_json:
        print_json({"experiments": len(found), "checkpoints": total})
    else:
        note(f"Indexed {count_of(total, 'checkpoint')} of {count_of(len(found), 'experiment')}.")
