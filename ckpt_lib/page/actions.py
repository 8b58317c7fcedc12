"""What the buttons of the page do. Each action checks what the browser may do, whatever buttons it was shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import gradio as gr
from markupsafe import Markup

from ckpt_lib.core.wording import size_text
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.file_actions import FileActions
from ckpt_lib.page.jobs import subject_of
from ckpt_lib.page.markup import notice
from ckpt_lib.page.view import View
from ckpt_lib.web.operations import Backup, Cleanup, Export, Repair, Restore, Validate
from ckpt_lib.web.tokens import Scope

Outcome = tuple[View, Markup | None]
"""What to show next, and what to say about it."""
_OF_WEIGHTS = ("safetensors", "hf-folder")
"""Formats that have no place for anything else."""
_STARTED = {"validate": "Validation", "backup": "Backup", "repair": "Repair", "restore": "Restore"}
_WORKS = {"validate": Validate, "backup": Backup, "repair": Repair, "restore": Restore}


class Actions:
    """The actions, by the names that buttons send."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.files = FileActions(desk)
        self._moves: dict[str, Callable[[View, str], View]] = {
            "experiment": lambda view, value: view.of_experiment(value).with_(tab=_tab_of_list(view), opened=""),
            "open": lambda view, value: view.with_(tab="checkpoints", opened=value, asked=""),
            "back": lambda view, _: view.with_(opened="", asked=""),
            "sort": lambda view, value: view.sorted_by(value),
            "tag": lambda view, value: view.with_tag(value),
            "select": lambda view, value: view.toggled(value),
            "clear": lambda view, _: view.with_(selected=()),
            "compare": lambda view, _: view.with_(tab="compare"),
            "unfilter": lambda view, _: view.with_(search="", where="", tags=()),
            "next": lambda view, value: view.with_(cursors=(*view.cursors, value)),
            "previous": lambda view, _: view.with_(cursors=view.cursors[:-1]),
            "metric": self._with_metric,
            "axis": lambda view, value: view.with_(axis=value if value in ("step", "timestamp") else "epoch"),
            "ask-delete": lambda view, _: view.with_(asked="delete"),
            "ask-cleanup": lambda view, _: view.with_(asked="cleanup"),
            "keep": lambda view, _: view.with_(asked=""),
            "dismiss": lambda view, _: view,
        }
        self._changes: dict[str, tuple[Scope, Callable[[View, str], tuple[View, str]]]] = {
            "pin": ("write", self._pin),
            "unpin": ("write", self._unpin),
            "delete": ("delete", self._delete),
            "undelete": ("write", self._undelete),
            "cancel": ("write", self._cancel),
            "save-run": ("write", self._save_run),
            "load-run": ("write", self._load_run),
        }

    def do(self, request: gr.Request, view: View, act: str, value: str) -> Outcome:
        """Do what a button stands for. Raises ``PermissionError``, and what the library does."""
        if act in self._moves:
            self._desk.check(request, "read")
            return self._moves[act](view, value), None
        if act in _WORKS:
            self._desk.start(request, view.experiment, _WORKS[act](names=[value] if value else []))
            place = "the history below, and in Jobs" if view.opened else "Jobs"
            return view, notice(f"{_STARTED[act]} started.", hint=f"Its outcome is in {place}.")
        if act == "cleanup":
            work = Cleanup(max_checkpoints=view.planned, fingerprint=value)
            self._desk.start(request, view.experiment, work)
            return view.with_(asked="", planned=None), notice("Cleanup started.", hint="Its outcome is in Jobs.")
        if act in self.files.acts:
            return self.files.acts[act](request, view, value)
        if act not in self._changes:
            return view, None
        scope, change = self._changes[act]
        who = self._desk.check(request, scope)
        changed, told = change(view, value)
        self._desk.note(who, act, view.experiment, value)
        return changed, notice(told)

    def edit(self, request: gr.Request, view: View, tags: str, description: str) -> Outcome:
        """Change the tags and the description of the checkpoint that is shown."""
        who = self._desk.check(request, "write")
        manager = self._desk.manager(view.experiment)
        before = manager.get_checkpoint(view.opened)
        wanted = [tag for tag in (part.strip() for part in tags.split(",")) if tag]
        manager.edit_checkpoint(
            view.opened,
            add_tags=[tag for tag in wanted if tag not in before.tags],
            remove_tags=[tag for tag in before.tags if tag not in wanted],
            description=description if description != before.description else None,
        )
        self._desk.note(who, "edit", view.experiment, view.opened)
        return view, notice("Changes saved.")

    def export(self, request: gr.Request, view: View, form: str, dtype: str, *, weights_only: bool) -> Outcome:
        """Start the export of the checkpoint that is shown."""
        only: Literal["model"] | None = "model" if weights_only or form in _OF_WEIGHTS else None
        # A type or a part alone needs a format: that of the library is for whole checkpoints.
        format_name = form or ("torch" if dtype or only else None)
        self._desk.start(
            request, view.experiment, Export(names=[view.opened], format=format_name, dtype=dtype or None, only=only)
        )
        return view, notice("Export started.", hint="Its files can be downloaded from the history below, and in Jobs.")

    def _with_metric(self, view: View, name: str) -> View:
        return view.with_metric(name, view.metrics or (self._desk.manager(view.experiment).monitor.metric,))

    def _pin(self, view: View, value: str) -> tuple[View, str]:
        self._desk.manager(view.experiment).pin_checkpoint(value)
        return view, "Pinned: no cleanup removes it, and it cannot be deleted."

    def _unpin(self, view: View, value: str) -> tuple[View, str]:
        self._desk.manager(view.experiment).unpin_checkpoint(value)
        return view, "Not pinned any more."

    def _delete(self, view: View, value: str) -> tuple[View, str]:
        manager = self._desk.manager(view.experiment)
        size_bytes = manager.get_checkpoint(value).file_size
        manager.delete_checkpoint(value)
        selected = tuple(name for name in view.selected if name != value)
        told = f"Deleted {value}, {size_text(size_bytes)}. Trash brings it back for {self._desk.trash_time}."
        return view.with_(opened="", asked="", selected=selected), told

    def _undelete(self, view: View, value: str) -> tuple[View, str]:
        self._desk.manager(view.experiment).undelete_checkpoint(value)
        return view, f"{value} is back."

    def _save_run(self, view: View, value: str) -> tuple[View, str]:
        run = self._desk.requests.save(value)
        return view.with_(tab="runs"), f"Asked {run.owner} to save: it does so at the next safe point of its loop."

    def _load_run(self, view: View, value: str) -> tuple[View, str]:
        run = self._desk.requests.load(value, view.opened)
        told = f"Asked {run.owner} to load {view.opened}: it does so at the next safe point of its loop."
        return view.with_(tab="runs"), told

    def _cancel(self, view: View, value: str) -> tuple[View, str]:
        job = self._desk.jobs.cancel(value)
        return (
            view,
            f"Cancelling the job on {subject_of(job)}: it ends at its next step.",
        )


def _tab_of_list(view: View) -> Any:
    """Return the screen to show of another experiment: the same one, or its list."""
    return "checkpoints" if view.tab in ("", "experiments", "files", "jobs", "runs", "setup") else view.tab
