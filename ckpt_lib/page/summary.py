"""An experiment in numbers, and what is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from ckpt_lib.analysis.results import MetricStatistics
from ckpt_lib.core.wording import listed, size_text, visible
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import (
    DASH,
    Column,
    badge,
    button,
    empty,
    facts,
    joined,
    number,
    section,
    table,
    warning,
)


def summary_html(manager: CheckpointManager) -> Markup:
    """Show totals, statistics of every metric, and damage with what helps."""
    found = manager.get_checkpoint_summary()
    damage = _damage(manager)
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
            "Best by": f"{'smallest' if monitor['mode'] == 'min' else 'largest'} {visible(monitor['metric'])}",
            "Pinned": f"{len(found['pinned_checkpoints']):,}",
            "Tags": listed([visible(tag) for tag in found["tags"]], most=12),
        }
    )
    return joined([*warnings, totals, section("Damage", damage), section("Metrics", _statistics(found["statistics"]))])


def _link(checkpoint_id: str | None) -> Markup:
    return button("open", checkpoint_id, checkpoint_id, kind="ck-link ck-id") if checkpoint_id else DASH


def _statistics(statistics: Mapping[str, MetricStatistics]) -> Markup:
    titles = ("first", "last", "min", "max", "mean", "std")
    columns = (
        Column("Metric", is_head=True),
        Column("Values", numeric=True),
        *(Column(title.capitalize(), numeric=True) for title in titles),
        Column("Not finite", numeric=True),
    )
    rows = [
        (
            visible(name),
            f"{found['count']:,}",
            *(number(found.get(title)) for title in titles),  # type: ignore[arg-type]
            f"{found['not_comparable']:,}",
        )
        for name, found in statistics.items()
    ]
    return table(columns, rows, caption="Statistics of metrics") if rows else Markup("")


def _damage(manager: CheckpointManager) -> Markup:
    """Show what is damaged as far as it is known: nothing is read for that."""
    incomplete = [item.checkpoint_id for item in manager.list_checkpoints() if not item.is_complete]
    hidden = [(report.checkpoint_id, report.message) for report in manager.list_unreadable()]
    hidden += [(item.checkpoint_id, f"In quarantine: {item.report.message}") for item in manager.list_quarantined()]
    rows = [
        *((name, _link(name), "incomplete", "A file is missing or has another size.") for name in incomplete),
        *((name, Markup.escape(name), "damaged", text) for name, text in hidden),
    ]
    if not rows:
        return Markup('<p>None is known. <span class="ck-soft">A validation reads every byte to find out.</span></p>')
    columns = (Column("Checkpoint", is_head=True), Column("State"), Column("What is wrong"), Column("What helps"))
    cells = [
        (name, badge(state), text, button("repair", checkpoint_id, "Repair from backup"))
        for checkpoint_id, name, state, text in rows
    ]
    return table(columns, cells, caption="Damaged checkpoints")
