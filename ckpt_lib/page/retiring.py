"""What a cleanup would remove, and what was deleted and can be brought back."""

from __future__ import annotations

from datetime import UTC, datetime

from markupsafe import Markup

from ckpt_lib.core.wording import count_of, duration, listed, size_text
from ckpt_lib.maintenance.cleanup import CleanupReport
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import (
    DASH,
    NOTHING,
    Column,
    badge,
    button,
    empty,
    joined,
    marks,
    moment,
    question,
    table,
    warning,
)
from ckpt_lib.policies.retention import RetentionPlan
from ckpt_lib.web.rules import rules_of
from ckpt_lib.web.seen import Deleted, Trash


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
    size = size_text(plan.freed_bytes + (backups.freed_bytes if backups else 0))
    return question(
        "Carry out this cleanup?",
        [
            f"Delete {going}, {size}? {time}",
            Markup('<span class="ck-id">{}</span>').format(listed(plan.deleted_ids, most=5)),
        ],
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


def trash_html(trash: Trash, trash_time: str, *, may_delete: bool, is_asked: bool) -> Markup:
    """Show what can be brought back, how long, and what deletes all of it for good.

    ``trash_time`` is how long what is deleted can be brought back; empty where it cannot.
    """
    if not trash.items:
        told = (
            f"What is deleted can be brought back for {trash_time}." if trash_time else "What is deleted goes at once."
        )
        return empty("The trash is empty.", told)
    columns = (
        Column("Checkpoint", is_head=True),
        Column("Epoch", numeric=True),
        Column("Size", numeric=True),
        Column("Deleted"),
        Column("Goes for good"),
        Column(""),
    )
    rows = [_trashed(item) for item in trash.items]
    caption = f"{size_text(trash.size_bytes)} in the trash"
    return (_emptying(trash, is_asked=is_asked) if may_delete else NOTHING) + table(columns, rows, caption=caption)


def _trashed(item: Deleted) -> tuple[object, ...]:
    found = item.checkpoint
    act, label = ("unthin", "Bring back the rest") if item.is_part else ("undelete", "Bring back")
    back = button(act, found.checkpoint_id, label, spoken=f"{label} {found.checkpoint_id}")
    part = Markup('<span class="ck-soft">all but its weights</span>') if item.is_part else marks(found)
    return (
        Markup('<span class="ck-id">{}</span> {}').format(found.checkpoint_id, part),
        f"{found.epoch:,}",
        size_text(item.size_bytes),
        moment(item.since),
        _time_left(item),
        back if item.comes_back else DASH,
    )


def _time_left(item: Deleted) -> str:
    left_seconds = (item.goes_at - datetime.now(UTC)).total_seconds() if item.goes_at else 0
    return f"in {duration(left_seconds)}" if left_seconds > 0 else "with the next cleanup"


def _emptying(trash: Trash, *, is_asked: bool) -> Markup:
    """Return the button that empties the trash and, once it was used, the question before it."""
    if not is_asked:
        return Markup('<p class="ck-bar">{}</p>').format(button("ask-empty", "", "Empty the trash…", kind="ck-danger"))
    names = [item.checkpoint.checkpoint_id for item in trash.items if not item.is_part]
    parts = [item.checkpoint.checkpoint_id for item in trash.items if item.is_part]
    rest = Markup('What <span class="ck-id">{}</span> lost goes as well.').format(listed(parts, most=5))
    return question(
        "Empty the trash?",
        [
            f"Delete {count_of(len(names), 'checkpoint')} for good? That frees {size_text(trash.size_bytes)}.",
            Markup('<span class="ck-id">{}</span>').format(listed(names, most=5)) if names else NOTHING,
            rest if parts else NOTHING,
            "Nothing of it can be brought back then. Backups stay.",
        ],
        button("empty", trash.fingerprint, "Delete for good", kind="ck-danger"),
        button("keep", "", "Keep it"),
    )
