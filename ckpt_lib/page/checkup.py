"""What is wrong with an experiment that no list shows: why nothing was saved, and what unfinished work has left."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from ckpt_lib.advice.unsaved import reasons_stored
from ckpt_lib.core.not_saved import NotSaved
from ckpt_lib.core.wording import count_of, size_text, visible
from ckpt_lib.errors import CheckpointError
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.live import LiveRun
from ckpt_lib.maintenance.findings import Action, DoctorReport, Finding, Kind
from ckpt_lib.manager import CheckpointManager
from ckpt_lib.page.markup import DASH, NOTHING, Column, badge, button, joined, section, sentence, table, with_code
from ckpt_lib.web.seen import findings_fingerprint

_FIXES: dict[Action, str] = {
    "sweep": "is removed",
    "repair": "is repaired from its other copy",
    "quarantine": "is set aside",
    "back up": "gets a backup",
    "write snapshot": "is written anew",
    "mend pointer": "is mended",
}
_IN_TRASH: tuple[Kind, ...] = ("deleted", "thinned")
"""Kinds of findings that another screen shows."""
_CLOSE = button("keep", "", "Close")


def why_html(manager: CheckpointManager, runs: Sequence[LiveRun]) -> Markup:
    """Show why there is no newer checkpoint: what the live runs say, and what the store tells.

    Raises :class:`~ckpt_lib.errors.StoreError`.
    """
    parts = [_of_run(run) for run in runs]
    if not runs:
        told = "No live run of the experiment has registered on this machine; `with manager.share():` registers one."
        parts.append(Markup('<p class="ck-soft">{}</p>').format(with_code(told)))
    stored = reasons_stored(Locations(manager.config, manager.experiment_name))
    parts.append(_reasons("The store", stored))
    return section("Why nothing newer was saved", joined([*parts, Markup('<p class="ck-bar">{}</p>').format(_CLOSE)]))


def _of_run(run: LiveRun) -> Markup:
    title = f"Process {run.owner.pid}, a live run"
    try:
        reasons = run.status().not_saved
    except CheckpointError as error:
        return _named(title, [Markup("<li>It did not answer: {}</li>").format(error.message)])
    return _reasons(title, reasons) if reasons else _named(title, [Markup("<li>Its last save made a checkpoint.</li>")])


def _reasons(title: str, reasons: Sequence[NotSaved]) -> Markup:
    return _named(title, [_reason(reason) for reason in reasons])


def _reason(reason: NotSaved) -> Markup:
    message = f"{sentence(reason.message).rstrip('.')}."
    if reason.kind == "unfinished":
        helps: str | Markup = button("ask-doctor", "", "Look for leftovers")
    else:
        helps = Markup('<span class="ck-soft">{}</span>').format(with_code(reason.hint)) if reason.hint else NOTHING
    return Markup("<li>{} {}</li>").format(with_code(message), helps)


def _named(title: str, items: Sequence[Markup]) -> Markup:
    return Markup('<p class="ck-told">{}</p><ul class="ck-history">{}</ul>').format(title, joined(items))


def findings_html(report: DoctorReport, *, may_fix: bool) -> Markup:
    """Show what a check has found, the problems first, and the button that fixes what can be fixed."""
    shown = [item for item in report.findings if item.kind not in _IN_TRASH or item.action]
    found = sorted(shown, key=lambda item: not item.is_problem)
    fixable = [item for item in found if item.action]
    told = f"{count_of(len(report.problems), 'problem')}." if report.problems else "Nothing is wrong."
    buttons = [_CLOSE]
    if fixable and may_fix:
        label = f"Fix {count_of(len(fixable), 'finding')}"
        buttons.insert(0, button("doctor", findings_fingerprint(report), label, kind="ck-danger"))
    bar = Markup('<p class="ck-bar"><span role="status">{}</span>{}</p>').format(told, joined(buttons))
    return section("What a check has found", bar + (_findings(found) if found else NOTHING))


def _findings(found: Sequence[Finding]) -> Markup:
    columns = (
        Column("Name", is_head=True),
        Column("Finding"),
        Column("What it is"),
        Column("Size", numeric=True),
        Column("The fix"),
    )
    rows = [
        (
            Markup('<span class="ck-id">{}</span>{}').format(
                visible(item.name), " (backup)" if item.place == "backups" else ""
            ),
            badge(item.kind),
            with_code(sentence(item.message)),
            size_text(item.size_bytes) if item.size_bytes else DASH,
            f"It {_FIXES[item.action]}." if item.action else DASH,
        )
        for item in found
    ]
    return table(columns, rows, caption="Findings", kind="ck-small")
