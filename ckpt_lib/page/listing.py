"""The list of an experiment's checkpoints, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.core.wording import count_of, size_text, visible
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.index.places import Place
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import (
    NOTHING,
    Column,
    button,
    empty,
    joined,
    marks,
    moment,
    number,
    pager,
    table,
    tags,
    toggle,
    warning,
)
from ckpt_lib.page.view import MOST_COMPARED, PAGE_SIZE, View

_MOST_METRICS = 3
_MOST_TAGS = 200


def list_html(
    manager: CheckpointManager,
    view: View,
    overview: ExperimentOverview,
    *,
    known_tags: Sequence[str] = (),
    offers: Markup = NOTHING,
) -> Markup:
    """Show a page of the list below what it ``offers`` to do, or why it is empty.

    Raises :class:`~ckpt_lib.errors.ConfigError` for a condition.

    Only what is on the page is read: numbers about the whole come from the ``overview`` of the experiment, and where
    a person is to choose among them, ``known_tags`` are all tags there are.
    """
    found = manager.list_checkpoints(
        where=view.conditions(),
        tags=view.tags,
        search=view.search.strip(),
        sort_by=view.sort_by,
        descending=view.descending,
        limit=PAGE_SIZE + 1,
        after=view.cursors[-1] if view.cursors else None,
    )
    shown = found[:PAGE_SIZE]
    total = overview.total_checkpoints
    parts = [_warnings(manager, overview), _tag_bar(view, known_tags), _selection_bar(view)]
    if not shown:
        return joined([*parts, _nothing(view, total)])
    first = len(view.cursors) * PAGE_SIZE + 1
    counted = f"{first:,} to {first + len(shown) - 1:,}" + ("" if view.is_filtered else f" of {total:,}")
    following = str(Place.of(shown[-1], view.sort_by)) if len(found) > PAGE_SIZE else ""
    pages = pager(counted, has_previous=bool(view.cursors), following=following)
    return joined([*parts, offers, _table(monitored_in(manager, overview), view, shown), pages])


def monitored_in(manager: CheckpointManager, overview: ExperimentOverview) -> str:
    """Return the metric that decides which checkpoint is the best; the configured one where nothing was saved."""
    return overview.monitor_metric or manager.config.monitor_metric


def _table(monitored: str, view: View, shown: Sequence[CheckpointMetadata]) -> Markup:
    metrics = metric_columns((monitored, view.sort_by), shown)
    columns = (
        Column("Compare"),
        Column("Checkpoint", sort="sequence", is_head=True),
        Column("Epoch", numeric=True, sort="epoch"),
        Column("Step", numeric=True, sort="step"),
        *(Column(name, numeric=True, sort=name) for name in metrics),
        Column("Size", numeric=True, sort="file_size"),
        Column("Age", numeric=True, sort="timestamp"),
    )
    rows = [
        (
            _check_box(item.checkpoint_id, is_checked=item.checkpoint_id in view.selected),
            name_cell("open", item.checkpoint_id, item, tag_names=_tag_buttons(item.tags)),
            f"{item.epoch:,}",
            f"{item.step:,}",
            *(number(item.metrics.get(name)) for name in metrics),
            size_text(item.file_size),
            moment(item.timestamp),
        )
        for item in shown
    ]
    caption = f"Checkpoints of {view.experiment}"
    return table(columns, rows, caption=caption, sorted_by=(view.sort_by, view.descending), kind="ck-list")


def metric_columns(wanted: Iterable[str], shown: Sequence[CheckpointMetadata]) -> list[str]:
    """Return the metrics that get a column: those ``wanted``, as the monitored one, and the first others."""
    known = dict.fromkeys(name for item in shown for name in item.metrics)
    first = [name for name in dict.fromkeys(wanted) if name in known]
    return [*first, *(name for name in known if name not in first)][:_MOST_METRICS]


def name_cell(act: str, value: str, item: CheckpointMetadata, *, tag_names: Markup | None = None) -> Markup:
    """Return the id of a checkpoint as a button, and below it what sets it apart, with its tags as text or as given."""
    described = (
        Markup('<span class="ck-soft">{}</span>').format(item.description[:200]) if item.description else NOTHING
    )
    named = tags(item.tags) if tag_names is None else tag_names
    extra = joined([part for part in (marks(item), named, described) if part], " ")
    below = Markup('<div class="ck-below">{}</div>').format(extra) if extra else NOTHING
    return button(act, value, item.checkpoint_id, kind="ck-link ck-id") + below


def _check_box(checkpoint_id: str, *, is_checked: bool) -> Markup:
    checked = Markup(" checked") if is_checked else NOTHING
    template = Markup('<input type="checkbox" data-act="select" data-value="{}" aria-label="Compare {}"{}>')
    return template.format(checkpoint_id, checkpoint_id, checked)


def _warnings(manager: CheckpointManager, overview: ExperimentOverview) -> Markup:
    unreadable = overview.unreadable_checkpoints
    problem = None if overview.best_checkpoint else manager.monitor_warning
    texts = [problem] if problem else []
    if unreadable:
        texts.append(f"{count_of(unreadable, 'checkpoint')} cannot be read: Summary tells which, and what helps.")
    if overview.quarantined_checkpoints:
        texts.append(f"{count_of(overview.quarantined_checkpoints, 'checkpoint')} set aside: Summary tells why.")
    return joined([warning(text) for text in texts])


def _tag_buttons(names: Sequence[str]) -> Markup:
    title = "Show only those with this tag"
    return joined([button("tag", name, visible(name), kind="ck-tag", title=title) for name in names], " ")


def _tag_bar(view: View, known: Sequence[str]) -> Markup:
    """Return the tags that the list is restricted to, or all there are, to choose from."""
    if view.asked == "tags":
        names = list(dict.fromkeys((*view.tags, *known)))
        chips = [toggle("tag", name, name, is_on=name in view.tags) for name in names[:_MOST_TAGS]]
        more = f"and {len(names) - _MOST_TAGS:,} more" if len(names) > _MOST_TAGS else ""
        content = joined([*chips, more, button("keep", "", "Close")], " ")
        if not names:
            content = Markup("No checkpoint has a tag. {}").format(content)
    else:
        chosen = [
            button("tag", name, Markup("{} &times;").format(visible(name)), kind="ck-chip", spoken=f"Remove {name}")
            for name in view.tags
        ]
        content = joined([*chosen, button("ask-tags", "", "Tags…")], " ")
    return Markup('<div class="ck-bar" role="group" aria-label="Filter by tag">{}</div>').format(content)


def _selection_bar(view: View) -> Markup:
    if not view.selected:
        return NOTHING
    count = len(view.selected)
    compare = button("compare", "", "Compare", kind="ck-primary") if count > 1 else NOTHING
    text = f"{count} selected" if count > 1 else f"1 selected; select up to {MOST_COMPARED - 1} more to compare"
    return Markup('<p class="ck-bar" role="status">{} {} {}</p>').format(text, compare, button("clear", "", "Clear"))


def _nothing(view: View, total: int) -> Markup:
    if view.is_filtered and total:
        return empty("No checkpoint matches.", button("unfilter", "", "Show all"))
    return empty("This experiment has no checkpoints.", "Deleted ones can be brought back: see Trash.")
