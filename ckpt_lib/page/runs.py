"""The trainings of this machine that take requests, and what they were asked for."""

from __future__ import annotations

from markupsafe import Markup

from ckpt_lib.errors import CheckpointError
from ckpt_lib.page.markup import DASH, NOTHING, Column, badge, button, code, empty, joined, moment, section, table
from ckpt_lib.page.run_requests import RunRequest, RunRequests, SharedRun

_SHARING = """with manager.share(load=restore):  # restore(checkpoint_id) loads it into the model
    for epoch in range(epochs):
        ...
        manager.save_checkpoint(model=model, optimizer=optimizer, epoch=epoch)
        manager.serve_requests()"""


def runs_html(requests: RunRequests, *, may_write: bool) -> Markup:
    """Show each run with what it says about itself, and the requests with their outcomes."""
    found, asked = requests.runs_of(), requests.all()
    parts = [_runs(found, may_write=may_write) if found else _no_runs()]
    if asked:
        parts.append(section("Requests", _requests(asked)))
    return joined(parts)


def _no_runs() -> Markup:
    told = "A training on this machine, started by the user of this server, takes requests while this lasts:"
    return empty("No live run is registered.", told) + code(_SHARING)


def _runs(found: list[SharedRun], *, may_write: bool) -> Markup:
    columns = (
        Column("Process", is_head=True),
        Column("Experiment"),
        Column("Shared"),
        Column("Last call"),
        Column("Latest checkpoint"),
        Column("Loads"),
        Column(""),
    )
    return table(columns, [_row(run, may_write=may_write) for run in found], caption="Live runs of this machine")


def _row(run: SharedRun, *, may_write: bool) -> tuple[object, ...]:
    head = (f"{run.owner.pid}", run.experiment_name, moment(run.shared_at))
    try:
        status = run.status()
    except CheckpointError as error:
        return (*head, badge("failed") + f" {error.message}", DASH, DASH, NOTHING)
    latest = status.latest_checkpoint
    save = button("save-run", run.name, "Save now", spoken=f"Save now, process {run.owner.pid}")
    return (
        *head,
        moment(status.last_call_at),
        Markup('<span class="ck-id">{}</span>').format(latest) if latest else DASH,
        "from the page of a checkpoint" if status.takes_loads else "none",
        save if may_write else NOTHING,
    )


def _requests(asked: list[RunRequest]) -> Markup:
    columns = (Column("Asked", is_head=True), Column("Process"), Column("For"), Column("Outcome"))
    rows = [
        (moment(item.asked_at), f"{item.run.owner.pid} · {item.run.experiment_name}", item.asked_for, _outcome(item))
        for item in asked
    ]
    return table(columns, rows, caption="Requests, the newest first", kind="ck-small")


def _outcome(item: RunRequest) -> Markup | str:
    if item.outcome is None:
        return "waits for the next safe point of the training loop"
    return badge("failed") + f" {item.outcome}" if item.has_failed else item.outcome
