"""The screen of files that a browser has sent: what they hold, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from markupsafe import Markup

from ckpt_lib.core.wording import size_text, visible
from ckpt_lib.errors import JobNotFoundError, UploadNotFoundError
from ckpt_lib.page.conversions import Conversion
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.holdings import ALL
from ckpt_lib.page.jobs import files_html as links_html
from ckpt_lib.page.markup import NOTHING, Column, badge, button, empty, joined, progress, section, table, warning
from ckpt_lib.page.view import View
from ckpt_lib.web.job import Job
from ckpt_lib.web.results import Exported, ExportedFile, Imported


def held_uploads(desk: Desk, view: View) -> tuple[str, ...]:
    """Return the uploads of a browser that are there, and that no import is about to take."""
    job = _job_of(desk, view)
    if job is not None and not job.has_ended:
        return ()
    with suppress(UploadNotFoundError):
        for upload_id in view.files.uploads[:1]:  # it has come first, and goes first
            desk.transfers.uploads.get(upload_id)
        return view.files.uploads
    return ()


def no_files_html() -> Markup:
    """Say that files come with the right to write alone."""
    hint = "`ckpt inspect FILE` and `ckpt convert FILE NEW` need no store."
    return empty("This session is read-only, and sends no files.", hint)


def files_screen_html(desk: Desk, view: View) -> Markup:
    """Show what the files of a browser hold."""
    if not view.files.uploads:
        told = "They come from your machine, and go when you leave the page. No code in them runs."
        return empty("See what a file of any program holds, convert it, or import it.", told)
    if held := held_uploads(desk, view):
        bar = Markup('<p class="ck-bar" data-uploads="{}">{}</p>')
        return _told(view) + bar.format(" ".join(held), button("forget-files", "", "Remove from the server"))
    if not view.files.job:
        return warning("The files have gone from the server. Choose them once more.")
    return NOTHING


def file_results_html(desk: Desk, view: View) -> Markup:
    """Show what is done with the files of a browser, and what came of it."""
    job, conversion = _job_of(desk, view), desk.conversions.get(view.files.conversion)
    shown = _import_html(desk, view, job) if job is not None else NOTHING
    return shown + (_conversion_html(conversion) if conversion is not None else NOTHING)


def _told(view: View) -> Markup:
    return Markup(view.files.told)  # noqa: S704 - made by look_at, which escapes


def _job_of(desk: Desk, view: View) -> Job | None:
    if not view.files.job:
        return None
    with suppress(JobNotFoundError):  # the oldest are forgotten
        return desk.jobs.get(view.files.job)
    return None


def _conversion_html(found: Conversion) -> Markup:
    if found.state == "running":
        told = f"Converting, {size_text(found.done_bytes)} done"
        bar = progress(None, told) + Markup('<span role="status">{}</span>').format(told)
        return Markup('<p class="ck-bar">{} {}</p>').format(bar, button("cancel-conversion", "", "Cancel"))
    if found.export is not None:
        export = found.export
        files = tuple(ExportedFile.model_validate(file.model_dump()) for file in export.files)
        exported = Exported(export_id=export.export_id, files=files, left_out=export.left_out)
        return section("Converted", Markup("<p>{}</p>").format(links_html(exported)))
    return warning(found.reason or "The conversion was cancelled.")


def _import_html(desk: Desk, view: View, job: Job) -> Markup:
    """Show what became of each file; while the import runs, that is said above every screen."""
    if not job.has_ended:
        return Markup('<p role="status">{}</p>').format("The import goes on when you leave the page.")
    items = [(item.checkpoint_id, item.result) for item in job.result or () if isinstance(item.result, Imported)]
    told = _report(job.experiment_name, view.files.name, items) if items else warning(_reason(desk, job))
    return section(f"Import into {visible(job.experiment_name)}", told)


def _reason(desk: Desk, job: Job) -> str:
    """Say why a job has imported nothing."""
    if job.problem is None:
        return "There is no checkpoint in the files." if job.state == "succeeded" else f"The import was {job.state}."
    problem = job.problem
    text = f"{problem.detail.rstrip('.')}." + (f" Expected {problem.expected}." if problem.expected else "")
    return desk.transfers.uploads.as_named(f"{text} {problem.hint or ''}".strip())


def _report(experiment: str, name: str, items: Sequence[tuple[str | None, Imported]]) -> Markup:
    columns = (Column("File", is_head=True), Column("Result"), Column("Checkpoint"), Column("Remarks"))
    return table(columns, [_row(experiment, name, *item) for item in items], caption="What became of each file")


def _row(experiment: str, source: str, checkpoint_id: str | None, item: Imported) -> tuple[Any, ...]:
    checkpoint: Markup | str = "-"
    if checkpoint_id:
        checkpoint = button("found", f"{experiment}/{checkpoint_id}", checkpoint_id, kind="ck-link ck-id")
    remarks = [_capitalised(visible(sentence)) for sentence in (item.reason, *item.left_out) if sentence]
    name = Markup('<span class="ck-id">{}</span> <span class="ck-soft">{}</span>')
    return (
        name.format(visible(item.path or source or ALL), item.title),
        badge(item.result),
        checkpoint,
        joined(remarks, Markup("<br>")),
    )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
