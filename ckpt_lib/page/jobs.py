"""Long work: how far each job is, and what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from markupsafe import Markup

from ckpt_lib.core.wording import count_of, duration, listed, size_text, visible
from ckpt_lib.page.markup import NOTHING, Column, badge, button, empty, joined, moment, progress, table
from ckpt_lib.web.gate import PAGE_PATH
from ckpt_lib.web.job import ENDED, Job
from ckpt_lib.web.operations import Import, Outcome, SetMonitor
from ckpt_lib.web.results import (
    AllFixed,
    BackedUp,
    BestChosen,
    CleanedUp,
    Exported,
    Imported,
    Restored,
    SetAside,
    Thinned,
    TrashEmptied,
    Validated,
)

_MOST_SHOWN = 50
_WORDS = {"validate": "Validate", "backup": "Back up", "repair": "Repair", "restore": "Restore"}
_WORDS |= {"export": "Export", "import": "Import", "cleanup": "Clean up", "quarantine": "Set aside", "thin": "Thin"}
_WORDS |= {"empty_trash": "Empty the trash", "doctor": "Fix", "monitor": "Choose the best"}
_OF_ALL = {"cleanup": "by the plan that was shown", "empty_trash": "", "doctor": "what was found"}
"""What jobs are about that name no checkpoints."""


def jobs_html(jobs: Sequence[Job], *, may_cancel: bool) -> Markup:
    """Show the newest jobs."""
    if not jobs:
        return empty("No job has run yet.", "What takes longer is listed here, with its progress and outcome.")
    columns = (
        Column("Job", is_head=True),
        Column("Checkpoints"),
        Column("State"),
        Column("Progress"),
        Column("Started"),
        Column(""),
    )
    rows = [
        (
            _title(job),
            subject_of(job),
            badge(job.state),
            _progress(job),
            moment(job.created_at),
            button("cancel", job.job_id, "Cancel") if may_cancel and job.state not in ENDED else NOTHING,
        )
        for job in jobs[:_MOST_SHOWN]
    ]
    return table(columns, rows, caption="Jobs, the newest first")


def running_html(jobs: Sequence[Job], *, may_cancel: bool) -> Markup:
    """Show the jobs that have not ended, above every screen."""
    running = [job for job in jobs if job.state not in ENDED]
    lines = []
    for job in running[:3]:
        cancel = button("cancel", job.job_id, "Cancel") if may_cancel else NOTHING
        word = _WORDS[job.work.operation]
        template = Markup('<div class="ck-running"><span>{} {}</span>{}{}</div>')
        lines.append(template.format(word, subject_of(job), _progress(job), cancel))
    if len(running) > 3:
        lines.append(Markup("<p>{}</p>").format(f"and {count_of(len(running) - 3, 'job')} more"))
    return joined(lines)


def _title(job: Job) -> Markup:
    """Return what a job is, with a link to the page of the program that runs it."""
    title = Markup("{} · {}").format(_WORDS[job.work.operation], job.experiment_name)
    if job.url is None or not job.url.startswith(("http://", "https://")):
        return title
    link = Markup('<a class="ck-link" href="{}" target="_blank" rel="noopener noreferrer">{} ↗</a>')
    return title + " " + link.format(job.url, job.runner.capitalize())


def files_html(exported: Exported) -> Markup:
    """Show the files of an export as links that download them."""
    links = [
        Markup('<a class="ck-link" href="{}" download>{}</a> <span class="ck-soft">{}</span>').format(
            f"{PAGE_PATH}/exports/{exported.export_id}/files/{quote(file.name)}",
            file.name,
            size_text(file.size_bytes),
        )
        for file in exported.files
    ]
    remark = f"Left out: {listed(exported.left_out)}." if exported.left_out else ""
    return Markup("{} {}").format(joined(links, ", "), remark)


def subject_of(job: Job) -> str:
    """Say in a few words what a job is about."""
    if isinstance(job.work, Import):
        return count_of(len(job.work.uploads), "file")
    if isinstance(job.work, SetMonitor):
        return f"by {visible(job.work.metric)}"
    if job.work.operation in _OF_ALL:
        return _OF_ALL[job.work.operation]
    return job.checkpoint_ids[0] if len(job.checkpoint_ids) == 1 else count_of(len(job.checkpoint_ids), "checkpoint")


def _progress(job: Job) -> Markup:
    if job.state in ENDED:
        return Markup.escape(_outcome(job))
    share = min(1.0, job.done_bytes / job.total_bytes) if job.total_bytes else None
    told = size_text(job.done_bytes) + (f" of {size_text(job.total_bytes)}" if job.total_bytes else "")
    if job.started_at and job.done_bytes:
        seconds = max(0.1, (datetime.now(UTC) - job.started_at).total_seconds())
        rate = job.done_bytes / seconds
        told += f", {size_text(round(rate))}/s"
        if job.total_bytes and job.total_bytes > job.done_bytes:
            told += f", {duration((job.total_bytes - job.done_bytes) / rate)} left"
    return progress(share, f"{job.work.operation}: {told}") + Markup('<span class="ck-soft">{}</span>').format(told)


def _outcome(job: Job) -> str | Markup:
    if job.state == "interrupted":
        return "The server ended on the way. Starting it again does what is left."
    if job.problem is not None:
        hint = f" {job.problem.hint}" if job.problem.hint else ""
        return f"{job.problem.detail}{hint}"
    tell = _TOLD.get(job.work.operation)
    return tell(job.result) if tell and job.result else job.state


def _validated(found: list[Outcome]) -> str:
    outcomes = (item for item in found if isinstance(item.result, Validated) and not item.result.is_valid)
    damaged = [item.checkpoint_id or "" for item in outcomes]
    if damaged:
        return f"{count_of(len(damaged), 'checkpoint')} damaged: {listed(damaged)}"
    return "intact" if len(found) == 1 else f"{count_of(len(found), 'checkpoint')} intact"


def _exported(found: list[Outcome]) -> Markup:
    result = found[0].result
    return files_html(result) if isinstance(result, Exported) else Markup("")


def _imported(found: list[Outcome]) -> str:
    """Count what became of the files, such as ``2 imported, 1 refused``."""
    counts = Counter(item.result.result for item in found if isinstance(item.result, Imported))
    return ", ".join(f"{count} {result}" for result, count in counts.items())


def _cleaned_up(found: list[Outcome]) -> str:
    report = found[0].result
    if not isinstance(report, CleanedUp):
        return "succeeded"
    freed_bytes = report.freed_bytes + report.trashed_bytes
    return f"{count_of(len(report.deleted_ids), 'checkpoint')} deleted, {size_text(freed_bytes)}"


def _set_aside(found: list[Outcome]) -> str:
    return listed([item.result.message for item in found if isinstance(item.result, SetAside)])


def _thinned(found: list[Outcome]) -> str:
    results = [item.result for item in found if isinstance(item.result, Thinned) and item.result.is_thinned]
    if not results:
        return "all of their state is there again"
    size = size_text(sum(item.dropped_bytes for item in results))
    return f"{count_of(len(results), 'checkpoint')} thinned, {size} less"


def _emptied(found: list[Outcome]) -> str:
    result = found[0].result
    if not isinstance(result, TrashEmptied):
        return "succeeded"
    count = count_of(len(result.deleted_ids), "checkpoint")
    return f"{count} deleted for good, {size_text(result.freed_bytes)} freed"


def _fixed(found: list[Outcome]) -> str:
    result = found[0].result
    if not isinstance(result, AllFixed):
        return "succeeded"
    told = listed([f"{item.name} {item.outcome}" for item in result.done]) or "nothing was to be done"
    return told + (f"; {count_of(result.problem_count, 'problem')} left" if result.problem_count else "")


def _chosen(found: list[Outcome]) -> str:
    result = found[0].result
    return f"the best is {result.best_checkpoint or 'none'}" if isinstance(result, BestChosen) else "succeeded"


def _done_to_each(found: list[Outcome]) -> str:
    """Say what was done where that is a word, such as ``copied``."""
    words = {item.result.done for item in found if isinstance(item.result, BackedUp | Restored)}
    return listed(sorted(words)) or "succeeded"


_TOLD: dict[str, Callable[[list[Outcome]], str | Markup]] = {
    "validate": _validated,
    "export": _exported,
    "import": _imported,
    "cleanup": _cleaned_up,
    "quarantine": _set_aside,
    "thin": _thinned,
    "empty_trash": _emptied,
    "doctor": _fixed,
    "monitor": _chosen,
    "backup": _done_to_each,
    "restore": _done_to_each,
}
