"""What a cleanup would remove, and what was deleted and can be brought back."""

from __future__ import annotations

from markupsafe import Markup

from ckpt_lib.core.wording import count_of, listed, size_text
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import NOTHING, Column, badge, button, empty, joined, marks, moment, table, warning
from ckpt_lib.policies.retention import RetentionPlan
from ckpt_lib.web.rules import rules_of


def planned_cleanup(manager: CheckpointManager, max_checkpoints: int) -> CleanupReport:
    """Return what a cleanup to so many checkpoints would do. Its fingerprint is what the job ``cleanup`` takes."""
    rules = rules_of(manager, max_checkpoints, None)
    return manager.cleanup_checkpoints(policy=rules, dry_run=True, verify=False)


def plan_html(report: CleanupReport, trash_time: str, *, may_delete: bool, is_asked: bool) -> Markup:
    """Show which checkpoints would go and which stay, each with its reason, and what carries that out.

    ``trash_time`` is how long what is deleted can be brought back; empty where it cannot.
    """
    plan = report.plan
    if not plan.decisions:
        return empty("There is nothing to clean up.", "This experiment has no checkpoints.")
    staying = sum(item.keep for item in plan.decisions)
    told = f"{_going(plan)} would go, which frees {size_text(plan.freed_bytes)}; {staying:,} stay."
    remarks = [warning(plan.warning)] if plan.warning else []
    if report.backups is not None and report.backups.plan.deleted_ids:
        backups = report.backups.plan
        remarks.append(
            warning(f"{_going(backups, 'backup')} would go for good, which frees {size_text(backups.freed_bytes)}.")
        )
    tables = [_decisions(plan, "Plan")]
    if report.backups is not None:
        tables.append(_decisions(report.backups.plan, "Backups"))
    parts = [*remarks, _carrying_out(report, trash_time, is_asked=is_asked) if may_delete else NOTHING, *tables]
    return Markup('<p class="ck-told" role="status">{}</p>{}').format(told, joined(parts))


def _going(plan: RetentionPlan, noun: str = "checkpoint") -> str:
    return count_of(len(plan.deleted_ids), noun)


def _carrying_out(report: CleanupReport, trash_time: str, *, is_asked: bool) -> Markup:
    """Return the button for what is shown and, once it was used, the question before it."""
    plan, backups = report.plan, report.backups.plan if report.backups else None
    going = _going(plan) + (f" and {_going(backups, 'backup')}" if backups and backups.deleted_ids else "")
    if not (plan.deleted_ids or (backups and backups.deleted_ids)):
        return NOTHING
    if not is_asked:
        return Markup('<p class="ck-bar">{}</p>').format(
            button("ask-cleanup", "", f"Delete {going}…", kind="ck-danger")
        )
    time = f"Checkpoints can be brought back for {trash_time}." if trash_time else "They cannot be brought back."
    names = listed(plan.deleted_ids, most=5)
    return Markup(
        '<div class="ck-confirm" role="alertdialog" aria-label="Carry out this cleanup?">'
        '<p>Delete {}, {}? {}</p><p class="ck-id">{}</p><p class="ck-bar">{} {}</p></div>'
    ).format(
        going,
        size_text(plan.freed_bytes + (backups.freed_bytes if backups else 0)),
        time,
        names,
        button("cleanup", report.fingerprint, f"Delete {going}", kind="ck-danger"),
        button("keep", "", "Keep them"),
    )


def _decisions(plan: RetentionPlan, caption: str) -> Markup:
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
    return table(columns, rows, caption=caption)


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
