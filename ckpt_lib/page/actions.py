"""What the buttons of the page do. Each action checks what the browser may do, whatever buttons it was shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import gradio as gr
from markupsafe import Markup

from ckpt_lib.converting.names import OF_WEIGHTS
from ckpt_lib.core.wording import shown, size_text, visible
from ckpt_lib.errors import InvalidMetricError, ProtectedCheckpointError
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.file_actions import FileActions
from ckpt_lib.page.jobs import subject_of
from ckpt_lib.page.markup import notice
from ckpt_lib.page.summary import monitor_of
from ckpt_lib.page.thinning import planned_thinning
from ckpt_lib.page.view import Search, View
from ckpt_lib.web.operations import (
    AnyWork,
    Backup,
    Cleanup,
    Doctor,
    EmptyTrash,
    Export,
    Quarantine,
    Repair,
    Restore,
    SetMonitor,
    Thin,
    Validate,
)
from ckpt_lib.web.seen import require_shown
from ckpt_lib.web.tokens import Scope

Outcome = tuple[View, Markup | None]
"""What to show next, and what to say about it."""
_WORKS: dict[str, tuple[str, Callable[..., AnyWork]]] = {
    "validate": ("Validation", Validate),
    "backup": ("Backup", Backup),
    "repair": ("Repair", Repair),
    "restore": ("Restore", Restore),
    "quarantine": ("Setting it aside", Quarantine),
    "unthin": ("Bringing it back", partial(Thin, undo=True)),
}
"""Work on the checkpoint of a button; without one, on all."""


class Actions:
    """The actions, by the names that buttons send."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.files = FileActions(desk)
        self._moves = {**_MOVES, "metric": self._with_metric}
        self._confirmed: dict[str, tuple[str, Callable[[View, str], AnyWork]]] = {
            "cleanup": ("Cleanup", lambda view, value: Cleanup(max_checkpoints=view.planned, fingerprint=value)),
            "thin": ("Thinning", self._thinning),
            "empty": ("Emptying the trash", lambda _, value: EmptyTrash(fingerprint=value)),
            "doctor": ("Fixing", lambda _, value: Doctor(fingerprint=value)),
            "monitor": ("The change", lambda _, value: _monitoring(value)),
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
            title, work = _WORKS[act]
            self._desk.start(request, view.experiment, work(names=[value] if value else "all"))
            place = "the history below, and in Jobs" if view.opened else "Jobs"
            return view, notice(f"{title} has started.", hint=f"Its outcome is in {place}.")
        if act in self._confirmed:
            title, confirmed = self._confirmed[act]
            self._desk.start(request, view.experiment, confirmed(view, value))
            return view.with_(asked="", planned=None), notice(f"{title} has started.", hint="Its outcome is in Jobs.")
        if act in self.files.acts:
            return self.files.acts[act](request, view, value)
        if act not in self._changes:
            return view, None
        scope, change = self._changes[act]
        who = self._desk.check(request, scope)
        changed, told = change(view, value)
        self._desk.note(who, act, view.experiment, value)
        return changed, notice(told)

    def require_about(self, view: View, act: str, experiment: object) -> None:
        """Raise if a button was shown of another experiment than the view is of, where it does more than to look.

        Whoever clicks before the page shows where the last click has led means what is shown: two experiments may well
        have a checkpoint of the same id. ``experiment`` is ``None`` for what is shown of none. Raises
        :class:`~ckpt_lib.errors.ProtectedCheckpointError`.
        """
        if experiment in (None, view.experiment) or act in self._moves:
            return
        if not view.tab:  # the least recently used pages are forgotten, and a restart forgets all
            raise ProtectedCheckpointError(
                "the server does not know what this page shows any more, so nothing was done", hint="Load it anew."
            )
        raise ProtectedCheckpointError(
            "the page had gone on to another experiment when this was clicked, so nothing was done",
            expected=f"the experiment {shown(view.experiment)}",
            got=shown(str(experiment)),
            hint="Choose the experiment that is meant, and click again.",
        )

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

    def add_metric(
        self, request: gr.Request, view: View, name: str, value: str, source: str, *, replace: bool
    ) -> Outcome:
        """Add a metric to the checkpoint that is shown."""
        who = self._desk.check(request, "write")
        name, source = name.strip(), source.strip()
        given = {name: _number(value)}
        self._desk.manager(view.experiment).add_metrics(view.opened, given, source=source, replace=replace)
        self._desk.note(who, "add metric", view.experiment, view.opened)
        return view, notice(f"{visible(name)} was added.", hint="It counts in lists, conditions and for the best.")

    def export(self, request: gr.Request, view: View, form: str, dtype: str, *, weights_only: bool) -> Outcome:
        """Start the export of the checkpoint that is shown."""
        only: Literal["model"] | None = "model" if weights_only or form in OF_WEIGHTS else None
        # A type or a part alone needs a format: that of the library is for whole checkpoints.
        format_name = form or ("torch" if dtype or only else None)
        wanted = {"names": [view.opened], "format": format_name, "dtype": dtype or None, "only": only}
        self._desk.start(request, view.experiment, Export.model_validate(wanted))
        return view, notice("Export started.", hint="Its files can be downloaded from the history below, and in Jobs.")

    def _thinning(self, view: View, fingerprint: str) -> AnyWork:
        """Return the work on what the list shows, if that is what was asked about."""
        plan = planned_thinning(self._desk.manager(view.experiment), view)
        require_shown(fingerprint, plan.fingerprint, "what meets the conditions")
        return Thin(names=plan.ids)

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
        told = f"Deleted {value}, {size_text(size_bytes)}."
        if time := self._desk.trash_time:
            told += f" Trash brings it back for {time}."
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


def _monitoring(asked: str) -> AnyWork:
    mode, metric = monitor_of(asked)
    return SetMonitor(metric=metric, mode=mode)


def _number(text: str) -> float:
    """Return a number that was typed. Raises :class:`~ckpt_lib.errors.InvalidMetricError`."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise InvalidMetricError("the value is no number", expected="a number such as 0.91", got=shown(text.strip()))


def _with_found(view: View, place: str) -> View:
    """Return the view of a checkpoint of any experiment: its name and an id, with a slash between them."""
    experiment, _, checkpoint_id = place.rpartition("/")
    return view.of_experiment(experiment).with_(tab="checkpoints", opened=checkpoint_id, asked="")


def _turned(view: View, cursors: tuple[str, ...]) -> View:
    return view.with_(everywhere=view.everywhere.with_(cursors=cursors))


def _tab_of_list(view: View) -> Any:
    """Return the screen to show of another experiment: the same one, or its list."""
    return "checkpoints" if view.tab in ("", "experiments", "files", "jobs", "runs", "setup") else view.tab


def _asking(what: str, view: View, value: str) -> View:
    """Return the view in which a person is asked about something, or has asked for it."""
    return view.with_(asked=f"{what} {value}" if what == "monitor" else what)


_QUESTIONS = ("delete", "cleanup", "thin", "empty", "monitor", "tags", "why", "doctor")
_MOVES: dict[str, Callable[[View, str], View]] = {
    "experiment": lambda view, value: view.of_experiment(value).with_(tab=_tab_of_list(view), opened=""),
    "open": lambda view, value: view.with_(tab="checkpoints", opened=value, asked=""),
    "back": lambda view, _: view.with_(opened="", asked=""),
    "sort": lambda view, value: view.sorted_by(value),
    "tag": lambda view, value: view.with_tag(value),
    "select": lambda view, value: view.toggled(value),
    "clear": lambda view, _: view.with_(selected=()),
    "compare": lambda view, _: view.with_(tab="compare"),
    "unfilter": lambda view, _: view.with_(search="", where="", tags=()),
    "found": _with_found,
    "unfind": lambda view, _: view.with_(everywhere=Search()),
    "find-sort": lambda view, value: view.with_(everywhere=view.everywhere.sorted_by(value)),
    "find-next": lambda view, value: _turned(view, (*view.everywhere.cursors, value)),
    "find-previous": lambda view, _: _turned(view, view.everywhere.cursors[:-1]),
    "next": lambda view, value: view.with_(cursors=(*view.cursors, value)),
    "previous": lambda view, _: view.with_(cursors=view.cursors[:-1]),
    "axis": lambda view, value: view.with_(axis=value if value in ("step", "timestamp") else "epoch"),
    **{f"ask-{what}": partial(_asking, what) for what in _QUESTIONS},
    "keep": lambda view, _: view.with_(asked=""),
    "dismiss": lambda view, _: view,
}
"""What changes only what a browser looks at."""
