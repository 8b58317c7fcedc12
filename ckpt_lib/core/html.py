"""HTML for notebooks: what ``_repr_html_`` of reports is made of.

Every text is escaped. There are no colours, scripts or addresses: a page shows it in its own colours, dark or light,
and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from ckpt_lib.core.wording import visible

MOST_ROWS = 50
"""A longer table would fill the notebook's file; the line below it says how many rows are left out."""
_MOST_CHARACTERS = 300
_LEFT, _RIGHT = "text-align:left;vertical-align:top", "text-align:right;vertical-align:top;white-space:nowrap"


def block(title: str, *parts: str, detail: str = "") -> str:
    """Return a title, what is said of it in a few words, and parts below it, each made by a function of this module.

    Parts that are empty are left out.
    """
    line = f"<strong>{text_html(title)}</strong>" + (f": {text_html(detail)}" if detail else "")
    return f'<div style="overflow-x:auto"><div>{line}</div>{"".join(parts)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, numeric: Collection[str] = ()) -> str:
    """Return a table whose columns of ``numeric`` are aligned to the right; nothing where there are no rows."""
    if not rows:
        return ""
    styles = [_RIGHT if name in numeric else _LEFT for name in header]
    cells = "".join(
        f'<th scope="col" style="{style}">{text_html(name)}</th>' for name, style in zip(header, styles, strict=True)
    )
    lines = [_row(row, styles) for row in rows[:MOST_ROWS]]
    left_out = len(rows) - MOST_ROWS
    more = paragraph(f"{left_out:,} more: to_dataframe has all of them.") if left_out > 0 else ""
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(lines)}</tbody></table>{more}"


def _row(row: Sequence[Any], styles: Sequence[str]) -> str:
    cells = (f'<td style="{style}">{text_html(value)}</td>' for value, style in zip(row, styles, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def facts(named: Mapping[str, Any]) -> str:
    """Return a table of names and values, without those that are empty."""
    rows = [
        f'<tr><th scope="row" style="{_LEFT}">{text_html(name)}</th><td style="{_LEFT}">{text_html(value)}</td></tr>'
        for name, value in named.items()
        if value_text(value)
    ]
    return f"<table><tbody>{''.join(rows)}</tbody></table>" if rows else ""


def paragraph(text: str) -> str:
    """Return a line of text; nothing where there is none."""
    return f"<div>{text_html(text)}</div>" if text else ""


def text_html(value: Any) -> str:
    """Return any value as escaped text, on one line, cut where it is very long."""
    text = visible(value_text(value))
    return escape(text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…")


def value_text(value: Any) -> str:
    """Return a value in a few characters: six digits of a number, times in UTC, ``yes`` and ``no``."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return str(value)
