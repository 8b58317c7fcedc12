"""Pieces of HTML. ``Markup`` escapes whatever is formatted into it, so that names and tags are shown as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from ckpt_lib.core.metadata import CheckpointMetadata, Metric, marks_of
from ckpt_lib.core.wording import duration, visible

NOTHING = Markup("")
DASH = Markup('<span class="ck-none">-</span>')
_BAD = {"unhealthy", "incomplete", "damaged", "failed", "interrupted"}


@dataclass(frozen=True)
class Column:
    """A column of a table; ``sort`` is what the page sorts by when its heading is clicked."""

    title: str
    numeric: bool = False
    sort: str = ""
    is_head: bool = False
    """Whether its cells name their row."""


def joined(parts: Iterable[Markup | str], by: str = "") -> Markup:
    """Join pieces; plain text is escaped."""
    return escape(by).join(parts)


def button(
    act: str, value: str, label: str | Markup, *, kind: str = "", title: str = "", spoken: str | None = None
) -> Markup:
    """Return a button that sends ``act`` and ``value`` to the page; screen readers read ``spoken`` if it is given."""
    name = Markup("") if spoken is None else Markup(' aria-label="{}"').format(spoken)
    return Markup(
        '<button type="button" class="ck-button {}" data-act="{}" data-value="{}" title="{}"{}>{}</button>'
    ).format(kind, act, value, title, name, label)


def about(experiment: str, content: str) -> str:
    """Return a screen that says which experiment it is of, so that its buttons are for no other one."""
    return str(Markup('<div data-about="{}">{}</div>').format(experiment, Markup(content)))  # noqa: S704 - a screen


def toggle(act: str, value: str, label: str, *, is_on: bool, spoken: str | None = None) -> Markup:
    """Return a button that is on or off; screen readers read ``spoken`` if it is given."""
    name = NOTHING if spoken is None else Markup(' aria-label="{}"').format(spoken)
    template = Markup(
        '<button type="button" class="ck-chip" data-act="{}" data-value="{}" aria-pressed="{}"{}>{}</button>'
    )
    return template.format(act, value, "true" if is_on else "false", name, visible(label))


def badge(word: str) -> Markup:
    """Return a word that sets a checkpoint apart."""
    kind = "bad" if word in _BAD else word.replace(" ", "-")
    return Markup('<span class="ck-badge ck-{}">{}</span>').format(kind, word)


def marks(checkpoint: CheckpointMetadata) -> Markup:
    """Return the badges of a checkpoint."""
    return joined([badge(word) for word in marks_of(checkpoint)], " ")


def tags(names: Sequence[str]) -> Markup:
    """Return tags as text."""
    return joined([Markup('<span class="ck-tag">{}</span>').format(visible(name)) for name in names], " ")


def number(value: Metric) -> str | Markup:
    """Return a metric with up to six digits."""
    if value is None:
        return DASH
    return f"{value:.6g}" if isinstance(value, float) else visible(str(value))


def moment(at: datetime | None) -> Markup:
    """Return a time as an age; the time itself shows on hovering."""
    if at is None:
        return DASH
    age = duration((datetime.now(UTC) - at).total_seconds())
    text = f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{} ago</time>').format(at.isoformat(), text, age)


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str,
    sorted_by: tuple[str, bool] = ("", False),
    sort_act: str = "sort",
    kind: str = "",
) -> Markup:
    """Return a table. On a narrow screen each row becomes a card with the titles of its columns, but in comparisons."""
    layout = kind if kind == "ck-compare" else f"ck-cards {kind}"
    head = joined([_heading(column, sorted_by, sort_act) for column in columns])
    body = joined([_row(columns, row) for row in rows])
    return Markup(
        '<div class="ck-scroll"><table class="ck-table {}"><caption>{}</caption>'
        "<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>"
    ).format(layout, caption, head, body)


def _heading(column: Column, sorted_by: tuple[str, bool], act: str) -> Markup:
    css = "ck-number" if column.numeric else ""
    if not column.sort:
        return Markup('<th scope="col" class="{}">{}</th>').format(css, column.title)
    name, descending = sorted_by
    is_sorted = name == column.sort
    order = ("descending" if descending else "ascending") if is_sorted else "none"
    arrow = (" ↓" if descending else " ↑") if is_sorted else ""
    label = button(act, column.sort, f"{visible(column.title)}{arrow}", kind="ck-sort", title=f"Sort by {column.title}")
    return Markup('<th scope="col" class="ck-sortable {}" aria-sort="{}">{}</th>').format(css, order, label)


def _row(columns: Sequence[Column], cells: Sequence[Any]) -> Markup:
    parts = []
    for column, cell in zip(columns, cells, strict=True):
        name, scope = ("th", Markup(' scope="row"')) if column.is_head else ("td", NOTHING)
        css = "ck-number" if column.numeric else ""
        template = Markup('<{name}{scope} class="{css}" data-title="{title}">{cell}</{name}>')
        parts.append(template.format(name=name, scope=scope, css=css, title=column.title, cell=cell))
    return Markup("<tr>{}</tr>").format(joined(parts))


def facts(given: Mapping[str, Any]) -> Markup:
    """Return names and values; what is empty is left out."""
    items = [Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, value) for name, value in given.items() if value]
    return Markup('<dl class="ck-facts">{}</dl>').format(joined(items))


def section(title: str, content: Markup) -> Markup:
    """Return content below a heading; nothing without content."""
    return Markup('<section class="ck-section"><h3>{}</h3>{}</section>').format(title, content) if content else NOTHING


def empty(title: str, hint: str | Markup = "") -> Markup:
    """Return what is shown where there is nothing, with what to do."""
    return Markup('<div class="ck-empty"><p class="ck-empty-title">{}</p><p>{}</p></div>').format(title, hint)


def notice(text: str, *, hint: str = "", is_error: bool = False) -> Markup:
    """Return a message about what was just done, or why it was not."""
    kind, role = ("ck-error", "alert") if is_error else ("ck-done", "status")
    more = Markup("<p>{}</p>").format(hint) if hint else NOTHING
    closing = button("dismiss", "", Markup("&times;"), kind="ck-close", title="Dismiss")
    return Markup('<div class="ck-notice {}" role="{}"><div><p><strong>{}</strong></p>{}</div>{}</div>').format(
        kind, role, text, more, closing
    )


def warning(text: str | Markup) -> Markup:
    """Return a lasting remark on what is shown."""
    return Markup('<p class="ck-warning">{}</p>').format(text)


def progress(share: float | None, label: str) -> Markup:
    """Return a bar; ``None`` where nobody knows how much there is."""
    value = NOTHING if share is None else Markup(' value="{:.4f}"').format(share)
    return Markup('<progress max="1"{} aria-label="{}"></progress>').format(value, label)


def question(title: str, lines: Sequence[str | Markup], yes: Markup, no: Markup, *, takes_away: bool = True) -> Markup:
    """Return what is asked before something is done: what it does, and the two buttons.

    What ``takes_away`` something is set apart.
    """
    told = joined([Markup("<p>{}</p>").format(line) for line in lines if line])
    kind = "ck-confirm ck-takes" if takes_away else "ck-confirm"
    template = Markup('<div class="{}" role="alertdialog" aria-label="{}">{}<p class="ck-bar">{} {}</p></div>')
    return template.format(kind, title, told, yes, no)


def sentence(text: str) -> str:
    """Return text with a capital letter, unless it begins with a name, such as that of an option."""
    return text[:1].upper() + text[1:] if text.split(" ", maxsplit=1)[0].isalpha() else text


def with_code(text: str) -> Markup:
    """Return text in which what stands in backticks is code."""
    code_of = Markup('<code class="ck-break">{}</code>')
    return joined([code_of.format(part) if number % 2 else part for number, part in enumerate(text.split("`"))])


def pager(counted: str, *, has_previous: bool, following: str, act: str = "") -> Markup:
    """Return the buttons that turn pages; ``following`` is the last item of this one, if there are more.

    ``act`` is put before what the buttons send.
    """
    back = button(f"{act}previous", "", "← Previous") if has_previous else NOTHING
    forth = button(f"{act}next", following, "Next →") if following else NOTHING
    return Markup('<nav class="ck-pager" aria-label="Pages"><span role="status">{}</span>{}{}</nav>').format(
        counted, back, forth
    )


def code(text: str) -> Markup:
    """Return text to be copied."""
    return Markup('<pre class="ck-code" tabindex="0"><code>{}</code></pre>').format(text)
