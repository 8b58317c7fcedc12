"""What a cleanup would remove, and what was deleted and can be brought back."""

from __future__ import annotations

from markupsafe import Markup

from ckpt_lib.core.wording import count_of, size_text
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import Column, badge, button, empty, joined, marks, moment, table, warning


def manager_keeping(manager: CheckpointManager, max_checkpoints: int) -> CheckpointManager:
    """Return a manager of the same checkpoints that keeps so many. Raises :class:`~ckpt_lib.errors.ConfigError`."""
    options = manager.config.model_dump(exclude_unset=True) | {"max_checkpoints": max_checkpoints}
    return CheckpointManager(type(manager.config)(**options), manager.experiment_name)


def plan_html(report: CleanupReport) -> Markup:
    """Show which checkpoints would go and which stay, each with its reason."""
    plan = report.plan
    if not plan.decisions:
        return empty("There is nothing to clean up.", "This experiment has no checkpoints.")
    going = [item for item in plan.decisions if not item.keep]
    staying = len(plan.decisions) - len(going)
    told = (
        f"{count_of(len(going), 'checkpoint')} would go, which frees {size_text(plan.freed_bytes)}; {staying:,} stay."
    )
    columns = (
        Column("Checkpoint", is_head=True),
        Column("Outcome"),
        Column("Reason"),
        Column("Epoch", numeric=True),
        Column("Size", numeric=True),
    )
    rows = [
        (
            button("open", item.checkpoint_id, item.checkpoint_id, kind="ck-link ck-id"),
            badge("stays" if item.keep else "goes"),
            item.reason,
            f"{item.epoch:,}",
            size_text(item.size_bytes),
        )
        for item in sorted(plan.decisions, key=lambda item: item.keep)
    ]
    remarks = joined([warning(plan.warning)] if plan.warning else [])
    return Markup('<p class="ck-told" role="status">{}</p>{}{}').format(
        told, remarks, table(columns, rows, caption="Plan")
    )


def trash_html(manager: CheckpointManager, trash_time: str) -> Markup:
    """Show the deleted checkpoints that can be brought back."""
    found = manager.list_deleted()
    if not found:
        return empty("The trash is empty.", f"What is deleted can be brought back for {trash_time}.")
    columns = (
        Column("Checkpoint", is_head=True),
        Column("Epoch", numeric=True),
        Column("Size", numeric=True),
        Column("Saved"),
        Column(""),
    )
    rows = [
        (
            Markup('<span class="ck-id">{}</span> {}').format(item.checkpoint_id, marks(item)),
            f"{item.epoch:,}",
            size_text(item.file_size),
            moment(item.timestamp),
            button("undelete", item.checkpoint_id, "Bring back", spoken=f"Bring back {item.checkpoint_id}"),
        )
        for item in reversed(found)
    ]
    return table(columns, rows, caption=f"Deleted; each can be brought back for {trash_time}")
