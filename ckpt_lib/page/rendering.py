"""Draws the screen that a browser looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from markupsafe import Markup

from ckpt_lib.core.wording import size_text, visible
from ckpt_lib.index.overview import ExperimentOverview
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page import plots
from ckpt_lib.page.checkup import findings_html, why_html
from ckpt_lib.page.comparison import comparison_html
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.detail import detail_html
from ckpt_lib.page.experiments import experiments_html, overviews
from ckpt_lib.page.files import file_results_html, files_screen_html, held_uploads, no_files_html
from ckpt_lib.page.finding import found_html
from ckpt_lib.page.jobs import jobs_html, running_html
from ckpt_lib.page.layout import Layout
from ckpt_lib.page.listing import list_html, monitored_in
from ckpt_lib.page.markup import NOTHING, about, button, empty, joined, question
from ckpt_lib.page.retiring import plan_html, planned_cleanup, trash_html
from ckpt_lib.page.runs import runs_html
from ckpt_lib.page.summary import summary_html
from ckpt_lib.page.thinning import offer_html, planned_thinning, thinning_html
from ckpt_lib.page.view import View
from ckpt_lib.web.page_gate import SIGN_OUT
from ckpt_lib.web.seen import trash_of

Updates = dict[Any, Any]
_WITHOUT_EXPERIMENT = {"experiments", "jobs", "files", "runs", "setup"}


class Renderer:
    """Draws screens from the store."""

    def __init__(self, desk: Desk, layout: Layout) -> None:
        self._desk = desk
        self._layout = layout

    def render(self, request: gr.Request, view: View) -> Updates:
        """Return what the components show, and the view that led to it in the place of the current one.

        Raises what the library does; nothing is changed then.
        """
        view = view if view.tab else view.with_(tab="experiments")
        found = overviews(self._desk.managers.config)
        names = [item.experiment_name for item in found]
        if view.experiment not in names:
            view = view.of_experiment(_newest(found))
        layout = self._layout
        updates: Updates = {
            layout.current: view,
            layout.header: str(self._header(request, view, names)),
            **self.jobs(request, view),
        }
        screen = layout.screens[view.tab]
        if view.tab == "experiments":
            config, search = self._desk.managers.config, view.everywhere
            updates[layout.finders] = gr.update(visible=bool(found))
            updates[screen] = str(found_html(config, search) if search.is_on else experiments_html(config, found))
        elif view.tab == "files":
            updates |= self._files(request, view)
        elif view.tab not in _WITHOUT_EXPERIMENT:
            if not view.experiment:
                return updates | self._without_experiment(view)
            draw = getattr(self, f"_draw_{view.tab}")
            overview = next(item for item in found if item.experiment_name == view.experiment)
            updates |= draw(request, view, self._desk.manager(view.experiment), overview)
            updates[screen] = about(view.experiment, updates[screen])
        return updates

    def jobs(self, request: gr.Request, view: View) -> Updates:
        """Return what shows the progress of jobs."""
        layout, jobs = self._layout, self._desk.jobs.all()
        may_cancel = self._desk.allows(request, "write")
        updates: Updates = {
            layout.running: "" if view.tab == "jobs" else str(running_html(jobs, may_cancel=may_cancel)),
            layout.timer: gr.Timer(active=self._desk.has_work(view)),
        }
        if view.tab == "jobs":
            updates[layout.screens["jobs"]] = str(jobs_html(jobs, may_cancel=may_cancel))
        if view.tab == "files":
            updates[layout.file_results] = str(file_results_html(self._desk, view))
        if view.tab == "runs":
            updates[layout.screens["runs"]] = str(runs_html(self._desk.requests, may_write=may_cancel))
        return updates

    def _files(self, request: gr.Request, view: View) -> Updates:
        """Show the screen of files only to those who may send some."""
        layout, may_write = self._layout, self._desk.allows(request, "write")
        has_files = bool(held_uploads(self._desk, view))
        return {
            layout.chooser: gr.update(visible=may_write),
            layout.screens["files"]: str(files_screen_html(self._desk, view) if may_write else no_files_html()),
            layout.importing: gr.update(visible=may_write and has_files),
            layout.converting: gr.update(visible=may_write and has_files and view.files.is_one),
        }

    def _header(self, request: gr.Request, view: View, names: Sequence[str]) -> Markup:
        choices = joined(
            [
                Markup('<option value="{}"{}>{}</option>').format(
                    name, Markup(" selected") if name == view.experiment else NOTHING, visible(name)
                )
                for name in names
            ]
        )
        chooser = Markup(
            '<label class="ck-chooser"><span>Experiment</span><select data-act="experiment">{}</select></label>'
        ).format(choices)
        rights = "" if self._desk.allows(request, "write") else "Read-only"
        badge = Markup('<span class="ck-badge">{}</span>').format(rights) if rights else NOTHING
        leave = NOTHING
        if self._desk.sessions.needs_token:
            leave = Markup('<form method="post" action="{}"><button class="ck-button">Sign out</button></form>').format(
                SIGN_OUT
            )
        return Markup(
            '<header class="ck-top"><h1>Checkpoints</h1><code class="ck-store" title="The store">{}</code>{}'
            '<span class="ck-space"></span>{}{}</header>'
        ).format(visible(self._desk.managers.config.checkpoint_dir), badge, chooser if names else NOTHING, leave)

    def _without_experiment(self, view: View) -> Updates:
        layout = self._layout
        forms = (layout.filters, layout.edit, layout.measure, layout.export)
        hidden = {item: gr.update(visible=False) for item in forms}
        shown = empty("There are no experiments yet.", "Experiments shows how a training makes the first one.")
        return {layout.screens[view.tab]: str(shown), **hidden}

    def _draw_checkpoints(
        self, request: gr.Request, view: View, manager: CheckpointManager, overview: ExperimentOverview
    ) -> Updates:
        layout, screen = self._layout, self._layout.screens["checkpoints"]
        if not view.opened:
            forms = (layout.edit, layout.measure, layout.export)
            hidden = {item: gr.update(visible=False) for item in forms}
            offers, known_tags = self._offers(request, view, manager), self._tags(view, manager)
            shown = list_html(manager, view, overview, known_tags=known_tags, offers=offers)
            return {screen: str(shown), layout.filters: gr.update(visible=True), **hidden}
        checkpoint, may_write = manager.get_checkpoint(view.opened), self._desk.allows(request, "write")
        actions, monitored = self._actions(request, view, manager), monitored_in(manager, overview)
        jobs = self._desk.jobs.all()
        detail = detail_html(manager, view.opened, jobs, monitored=monitored, may_write=may_write)
        return {
            screen: str(actions + detail),
            layout.filters: gr.update(visible=False),
            layout.edit: gr.update(visible=may_write),
            layout.measure: gr.update(visible=may_write),
            layout.export: gr.update(visible=True),
            layout.edit_tags: ", ".join(checkpoint.tags),
            layout.edit_description: checkpoint.description,
        }

    def _offers(self, request: gr.Request, view: View, manager: CheckpointManager) -> Markup:
        """Return what can be done with all checkpoints that meet the conditions of the list."""
        if not (view.is_filtered and self._desk.allows(request, "delete")):
            return NOTHING
        if view.asked != "thin":
            return offer_html()
        return thinning_html(planned_thinning(manager, view), self._desk.trash_time)

    def _tags(self, view: View, manager: CheckpointManager) -> list[str]:
        """Return all tags of the experiment, if a person is to choose among them."""
        if view.asked != "tags":
            return []
        return sorted({tag for item in self._desk.checkpoints(manager) for tag in item.tags})

    def _actions(self, request: gr.Request, view: View, manager: CheckpointManager) -> Markup:
        checkpoint = manager.get_checkpoint(view.opened)
        buttons = [button("back", "", "← All checkpoints"), button("validate", view.opened, "Validate")]
        if self._desk.allows(request, "write"):
            pin = ("unpin", "Unpin") if checkpoint.pinned else ("pin", "Pin")
            for act, label in (("backup", "Back up"), ("repair", "Repair"), ("restore", "Restore"), pin):
                buttons.append(button(act, view.opened, label, title=_TITLES[act]))
            buttons += [
                button("load-run", run.name, f"Load into the run of process {run.owner.pid}")
                for run in self._desk.requests.loading_runs(view.experiment)
            ]
        if self._desk.allows(request, "delete"):
            buttons.append(button("ask-delete", view.opened, "Delete…", kind="ck-danger"))
        bar = Markup('<p class="ck-bar ck-actions">{}</p>').format(joined(buttons, " "))
        return bar + (self._confirmation(view, manager) if view.asked == "delete" else NOTHING)

    def _confirmation(self, view: View, manager: CheckpointManager) -> Markup:
        checkpoint = manager.get_checkpoint(view.opened)
        status = manager.backup_status(view.opened)
        kept = "Its backup stays." if status.state in ("written", "verified") else "It has no sound backup."
        best = Markup("<strong>It is the best checkpoint.</strong> ") if checkpoint.is_best else NOTHING
        time = self._desk.trash_time
        back = f"It can be brought back for {time}." if time else "It cannot be brought back."
        named = Markup('Delete <span class="ck-id">{}</span>, epoch {}, {}?').format(
            view.opened, f"{checkpoint.epoch:,}", size_text(checkpoint.file_size)
        )
        return question(
            "Delete this checkpoint?",
            [named, best + f"{back} {kept}"],
            button("delete", view.opened, "Delete", kind="ck-danger"),
            button("keep", view.opened, "Keep it"),
        )

    def _draw_plots(
        self, _: gr.Request, view: View, manager: CheckpointManager, overview: ExperimentOverview
    ) -> Updates:
        layout, screen = self._layout, self._layout.screens["plots"]
        checkpoints = self._desk.checkpoints(manager)
        if not checkpoints:
            hidden = {item: gr.update(visible=False) for item in (layout.metric_plot, layout.size_plot)}
            return {screen: str(empty("There is nothing to draw: this experiment has no checkpoints.")), **hidden}
        names = plots.metric_names(checkpoints, monitored_in(manager, overview))
        drawn = [name for name in view.metrics if name in names] or names[:1]
        metric_plot = gr.update(visible=bool(drawn))
        if drawn:
            metric_plot = gr.update(value=plots.metric_figure(checkpoints, drawn, view.axis), visible=True)
        size_plot = gr.update(value=plots.size_figure(checkpoints, view.axis), visible=True)
        return {
            screen: str(plots.choices_html(names, drawn, view.axis)),
            layout.metric_plot: metric_plot,
            layout.size_plot: size_plot,
        }

    def _draw_compare(self, _: gr.Request, view: View, manager: CheckpointManager, __: ExperimentOverview) -> Updates:
        return {self._layout.screens["compare"]: str(comparison_html(manager, view.selected))}

    def _draw_summary(
        self, request: gr.Request, view: View, manager: CheckpointManager, overview: ExperimentOverview
    ) -> Updates:
        may_write = self._desk.allows(request, "write")
        buttons = [button("validate", "", "Validate all")]
        if may_write:
            buttons.append(button("backup", "", "Back up all"))
        buttons.append(button("ask-doctor", "", "Look for leftovers", title=_TITLES["ask-doctor"]))
        buttons.append(button("ask-why", "", "Why was nothing saved?"))
        bar = Markup('<p class="ck-bar">{}</p>').format(joined(buttons, " "))
        asked, _, value = view.asked.partition(" ")
        choice = value if asked == "monitor" else ""
        shown = summary_html(self._desk, manager, overview, may_write=may_write, asked=choice)
        return {self._layout.screens["summary"]: str(bar + self._answer(request, view, manager) + shown)}

    def _answer(self, request: gr.Request, view: View, manager: CheckpointManager) -> Markup:
        """Return the answer to what a person has asked about the experiment."""
        if view.asked == "why":
            return why_html(manager, self._desk.requests.runs_of(view.experiment))
        if view.asked == "doctor":
            return findings_html(manager.doctor(), may_fix=self._desk.allows(request, "delete"))
        return NOTHING

    def _draw_cleanup(
        self, request: gr.Request, view: View, manager: CheckpointManager, _: ExperimentOverview
    ) -> Updates:
        screen = self._layout.screens["cleanup"]
        if view.planned is None:
            told = empty(
                "See what a cleanup would remove before anything is.", "The newest, the best and pinned ones stay."
            )
            return {screen: str(told)}
        report = planned_cleanup(manager, view.planned)
        may_delete, time = self._desk.allows(request, "delete"), self._desk.trash_time
        return {screen: str(plan_html(report, time, may_delete=may_delete, is_asked=view.asked == "cleanup"))}

    def _draw_trash(
        self, request: gr.Request, view: View, manager: CheckpointManager, _: ExperimentOverview
    ) -> Updates:
        may_delete = self._desk.allows(request, "delete")
        is_asked, time = view.asked == "empty", self._desk.trash_time
        shown = trash_html(trash_of(manager), time, may_delete=may_delete, is_asked=is_asked)
        return {self._layout.screens["trash"]: str(shown)}


_TITLES = {
    "ask-doctor": "Check for what unfinished saves and deletions left, missing backups and unknown files",
    "backup": "Copy it to the backup location",
    "repair": "Bring damaged bytes back from the backup",
    "restore": "Put the backup in its place",
    "pin": "Protect it from cleanups and deletion",
    "unpin": "Take the protection away",
}


def _newest(found: Sequence[ExperimentOverview]) -> str:
    """Return the experiment that saved last; empty without any."""
    saved = [item for item in found if item.latest_timestamp is not None]
    if saved:
        return max(saved, key=lambda item: item.latest_timestamp or item.as_of).experiment_name
    return found[0].experiment_name if found else ""
