"""An experiment in numbers, and what is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from ckpt_lib.analysis.results import MetricStatistics
from ckpt_lib.core.monitor import Mode
from ckpt_lib.core.wording import listed, size_text, visible
from ckpt_lib.errors import ConfigError
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.markup import (
    DASH,
    NOTHING,
    Column,
    badge,
    button,
    empty,
    facts,
    joined,
    number,
    question,
    section,
    table,
    toggle,
    warning,
)

_MODES: dict[Mode, str] = {"min": "smallest", "max": "largest"}


def summary_html(
    desk: Desk, manager: CheckpointManager, overview: ExperimentOverview, *, may_write: bool, asked: str = ""
) -> Markup:
    """Show totals, statistics of every metric, and damage with what helps.

    Whoever ``may_write`` chooses there what the best is measured by; ``asked`` is the choice to be confirmed.
    """
    found = desk.summary(manager)
    damage = _damage(desk, manager, overview, may_write=may_write)
    if not found["total_checkpoints"]:
        return joined([empty("This experiment has no checkpoints."), damage])
    monitor = found["monitor"]
    epochs = f"{found['first_epoch']:,} to {found['last_epoch']:,}"
    warnings = [warning(found["monitor_warning"])] if found["monitor_warning"] else []
    totals = facts(
        {
            "Checkpoints": f"{found['total_checkpoints']:,}",
            "Size": size_text(round(found["total_size_mb"] * 2**20)),
            "Backups": f"{found['total_backups']:,}",
            "Epochs": epochs,
            "Best": _link(found["best_checkpoint"]),
            "Latest": _link(found["latest_checkpoint"]),
            "Best by": f"{_MODES[monitor['mode']]} {visible(monitor['metric'])}",
            "Pinned": f"{len(found['pinned_checkpoints']):,}",
            "Tags": listed([visible(tag) for tag in found["tags"]], most=12),
        }
    )
    chosen = f"{monitor['mode']} {monitor['metric']}"
    asking = _monitor_question(manager, asked) if asked else NOTHING
    metrics = asking + _statistics(found["statistics"], chosen, may_write=may_write)
    return joined([*warnings, totals, section("Damage", damage), section("Metrics", metrics)])


def _monitor_question(manager: CheckpointManager, asked: str) -> Markup:
    """Ask whether the best is to be measured by another metric, and say which checkpoint that is.

    Raises :class:`~ckpt_lib.errors.UnknownMetricError`, or as :func:`monitor_of`.
    """
    mode, metric = monitor_of(asked)
    before, after = manager.get_best_checkpoint(), manager.get_best_checkpoint(metric, mode)
    told = Markup('The best is then <span class="ck-id">{}</span>, {}.').format(
        after.checkpoint_id if after else "none", number(after.metrics[metric]) if after else "no value is finite"
    )
    if after and before and after.checkpoint_id == before.checkpoint_id:
        told = Markup('The best stays <span class="ck-id">{}</span>.').format(after.checkpoint_id)
    return question(
        "Choose what the best is measured by?",
        [
            Markup("Measure the best by the <strong>{} {}</strong>?").format(_MODES[mode], visible(metric)),
            told,
            "Later saves and cleanups go by it.",
        ],
        button("monitor", asked, "Choose it", kind="ck-primary"),
        button("keep", "", "Leave it"),
        takes_away=False,
    )


def monitor_of(asked: str) -> tuple[Mode, str]:
    """Return mode and metric of a choice. Raises :class:`~ckpt_lib.errors.ConfigError` for what is none."""
    mode, _, metric = asked.partition(" ")
    if mode not in ("min", "max") or not metric:
        raise ConfigError("this is no measure of the best", expected="min or max, and the name of a metric", got=asked)
    return mode, metric  # type: ignore[return-value]


def _link(checkpoint_id: str | None) -> Markup:
    return button("open", checkpoint_id, checkpoint_id, kind="ck-link ck-id") if checkpoint_id else DASH


def _statistics(statistics: Mapping[str, MetricStatistics], chosen: str, *, may_write: bool) -> Markup:
    titles = ("first", "last", "min", "max", "mean", "std")
    columns = (
        Column("Metric", is_head=True),
        Column("Values", numeric=True),
        *(Column(title.capitalize(), numeric=True) for title in titles),
        Column("Not finite", numeric=True),
        *([Column("Best is")] if may_write else []),
    )
    rows = [
        (
            visible(name),
            f"{found['count']:,}",
            *(number(found.get(title)) for title in titles),  # type: ignore[arg-type]
            f"{found['not_comparable']:,}",
            *([_choices(name, chosen) if found["count"] else DASH] if may_write else []),
        )
        for name, found in statistics.items()
    ]
    return table(columns, rows, caption="Statistics of metrics") if rows else NOTHING


def _choices(metric: str, chosen: str) -> Markup:
    choices = ((f"{mode} {metric}", word) for mode, word in _MODES.items())
    return joined(
        [
            toggle("ask-monitor", value, word, is_on=value == chosen, spoken=f"The {word} {visible(metric)} is best")
            for value, word in choices
        ],
        " ",
    )


def _damage(desk: Desk, manager: CheckpointManager, overview: ExperimentOverview, *, may_write: bool) -> Markup:
    """Show what is damaged as far as it is known: nothing is read for that."""
    incomplete = [item.checkpoint_id for item in desk.checkpoints(manager) if not item.is_complete]
    unreadable = manager.list_unreadable() if overview.unreadable_checkpoints else []
    quarantined = manager.list_quarantined() if overview.quarantined_checkpoints else []
    hidden = [(report.checkpoint_id, report.message) for report in unreadable]
    hidden += [(item.checkpoint_id, f"In quarantine: {item.report.message}") for item in quarantined]
    rows = [
        *((name, _link(name), "incomplete", "A file is missing or has another size.") for name in incomplete),
        *((name, Markup.escape(name), "damaged", text) for name, text in hidden),
    ]
    if not rows:
        return Markup('<p>None is known. <span class="ck-soft">A validation reads every byte to find out.</span></p>')
    columns = (Column("Checkpoint", is_head=True), Column("State"), Column("What is wrong"), Column("What helps"))
    cells = [
        (name, badge(state), text, _help(checkpoint_id, state) if may_write else DASH)
        for checkpoint_id, name, state, text in rows
    ]
    return table(columns, cells, caption="Damaged checkpoints")


def _help(checkpoint_id: str, state: str) -> Markup:
    repair = button("repair", checkpoint_id, "Repair from backup")
    if state != "incomplete":  # it is set aside, or its manifest cannot be read
        return repair
    return joined([repair, button("quarantine", checkpoint_id, "Set aside", spoken=f"Set aside {checkpoint_id}")], " ")
