"""Checkpoints of all experiments that meet conditions."""

from __future__ import annotations

from markupsafe import Markup

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import size_text, visible
from ckpt_lib.experiment.overviews import find_checkpoints
from ckpt_lib.index.places import Place
from ckpt_lib.index.selection import Selection
from ckpt_lib.page.listing import metric_columns, name_cell
from ckpt_lib.page.markup import Column, button, empty, moment, number, pager, table
from ckpt_lib.page.view import PAGE_SIZE, Search


def found_html(config: CheckpointConfig, search: Search) -> Markup:
    """Show a page of what was found; the experiments were read just now.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a condition, and :class:`~ckpt_lib.errors.UnknownMetricError` for
    a metric that no checkpoint has recorded.
    """
    found = find_checkpoints(
        config,
        sync=False,
        where=search.conditions(),
        search=search.text.strip(),
        sort_by=search.sort_by,
        descending=search.descending,
        limit=PAGE_SIZE + 1,
        after=search.cursors[-1] if search.cursors else None,
    )
    shown = found[:PAGE_SIZE]
    everything = button("unfind", "", "Show all experiments")
    if not shown:
        return empty("No checkpoint of any experiment matches.", everything)
    first = len(search.cursors) * PAGE_SIZE + 1
    following = str(Place.of(shown[-1], search.sort_by, in_all=True)) if len(found) > PAGE_SIZE else ""
    counted = f"{first:,} to {first + len(shown) - 1:,}"
    pages = pager(counted, has_previous=bool(search.cursors), following=following, act="find-")
    return Markup('<p class="ck-bar">{}</p>{}{}').format(everything, _table(search, shown), pages)


def _table(search: Search, shown: list[CheckpointMetadata]) -> Markup:
    asked = Selection.of(where=search.conditions(), sort_by=search.sort_by).metrics
    metrics = metric_columns(asked, shown)
    columns = (
        Column("Checkpoint", is_head=True),
        Column("Experiment"),
        Column("Epoch", numeric=True, sort="epoch"),
        *(Column(name, numeric=True, sort=name) for name in metrics),
        Column("Size", numeric=True, sort="file_size"),
        Column("Age", numeric=True, sort="timestamp"),
    )
    rows = [
        (
            name_cell("found", _place(item), item),
            visible(item.experiment_name),
            f"{item.epoch:,}",
            *(number(item.metrics.get(name)) for name in metrics),
            size_text(item.file_size),
            moment(item.timestamp),
        )
        for item in shown
    ]
    order = (search.sort_by, search.descending)
    return table(
        columns, rows, caption="Checkpoints of all experiments", sorted_by=order, sort_act="find-sort", kind="ck-list"
    )


def _place(item: CheckpointMetadata) -> str:
    return f"{item.experiment_name}/{item.checkpoint_id}"
