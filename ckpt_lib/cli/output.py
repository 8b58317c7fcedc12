"""Output of commands: tables for people, JSON for programs.

Text from files is never interpreted as markup, and control characters are shown as escapes. If stdout is not a
terminal, there are no colours, and nothing is cut or wrapped.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckpt_lib.cli.options import to_type, with_options
from ckpt_lib.core.wording import duration, visible

_UNLIMITED_WIDTH = 1_000_000
_GAP = 2
_WRAPPED_WIDTH = 24
_NARROW_WIDTH = 12
"""Width of a column if there is no room for more: enough for any number."""


class _Console(Console):
    def __init__(self, file: TextIO) -> None:
        # FORCE_COLOR makes rich treat a pipe as a terminal, which may add colours but must not cut lines.
        width = None if file.isatty() else _UNLIMITED_WIDTH
        super().__init__(file=file, markup=False, emoji=False, highlight=False, width=width)

    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704  # rich calls this while it handles the error, which is reported in one place


def results() -> Console:
    """Return a console for the answer, on stdout."""
    return _Console(sys.stdout)


def diagnostics() -> Console:
    """Return a console for everything but the answer, on stderr."""
    return _Console(sys.stderr)


def note(text: str, *, warning: bool = False) -> None:
    """Print a remark on stderr, its commands as they are to be typed. Lines break only between words."""
    console = diagnostics()
    for line in visible_lines(with_options(text)).split("\n"):
        for piece in _wrapped(line, console.width) or [""]:
            console.print(piece, style="yellow" if warning else "dim", soft_wrap=True)


def print_fix(command: str) -> None:
    """Print the command that fixes the entry above, not wrapped, so that it can be copied."""
    results().print(Text(f"  fix: {visible(to_type(command))}"), soft_wrap=True)


def _wrapped(line: str, width: int) -> list[str]:
    return textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)


def print_json(value: Any) -> None:
    """Print one strict JSON document in ASCII, with the strings "NaN", "Infinity" and "-Infinity" as in manifests."""
    sys.stdout.write(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def print_json_line(value: Any) -> None:
    """Print one strict JSON document on a line of its own, at once."""
    sys.stdout.write(json.dumps(_plain(value), allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """Return what JSON can hold of a value, be it a model or a list of them."""
    from pydantic_core import to_jsonable_python  # here, so that `ckpt --help` answers at once

    return _finite(to_jsonable_python(value, fallback=str))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


@dataclass(frozen=True)
class Column:
    """A table column. On a narrow terminal, ``optional`` ones are left out, first those without any text.

    Cells fold if ``wraps`` is set. Those of an ``above`` column stand on a line of their own, above the others of their
    row, where the terminal is too narrow for all that are not optional.
    """

    header: str
    numeric: bool = False
    optional: bool = False
    wraps: bool = False
    above: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print a table without lines, or a block for each row if the terminal is too narrow. No cell is cut."""
    console = results()
    cells = [[visible_text(cell) for cell in row] for row in rows]
    above: list[int] = []
    widths = _widths(columns, cells, console.width)
    if not widths and (above := [number for number, column in enumerate(columns) if column.above]):
        widths = _widths_below(columns, cells, console.width - _GAP)
    if not widths:
        _print_blocks(columns, cells)
        return
    if above:
        _print_below_names(columns, widths, cells, above)
    else:
        console.print(_table(columns, widths, cells))
    left_out = [number for number in range(len(columns)) if number not in (*widths, *above)]
    if hidden := [columns[number].header for number in left_out if any(row[number].plain for row in cells)]:
        note(f"Not shown in {console.width} columns: {', '.join(hidden)}. A wider terminal and --json show all.")


def _table(
    columns: Sequence[Column], widths: Mapping[int, int], cells: Sequence[Sequence[Text]], *, with_header: bool = True
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold blue", show_header=with_header)
    for number, width in widths.items():
        column = columns[number]
        table.add_column(
            Text(visible(column.header)),
            justify="right" if column.numeric else "left",
            width=width,
            overflow="fold" if column.wraps else "ellipsis",  # no cell is wider than its column; a header may be
            no_wrap=not column.wraps,
        )
    for row in cells:
        table.add_row(*(row[number] for number in widths))
    return table


def _print_below_names(
    columns: Sequence[Column], widths: Mapping[int, int], cells: Sequence[Sequence[Text]], above: Sequence[int]
) -> None:
    """Print each row in two lines: what names it, whole, and below it the other cells, in columns."""
    console = results()
    headers = [Text(visible(column.header), style="bold blue") for column in columns]
    for row in (headers, *cells):
        for line in _joined([row[number] for number in above], console.width):
            console.print(line, soft_wrap=True)
        below = _table(columns, widths, [] if row is headers else [row], with_header=row is headers)
        console.print(Padding(below, (0, 0, 0, _GAP)))


def _joined(names: Sequence[Text], available: int) -> Sequence[Text]:
    """Return names as one line, or as one line each where that is too long."""
    line = Text(" " * _GAP).join(names)
    return [line] if line.cell_len <= available else names


def _widths_below(columns: Sequence[Column], cells: Sequence[Sequence[Text]], available: int) -> dict[int, int]:
    """Return number and width of each column to show below the names of the rows; none if even these are too wide."""
    numbers = [number for number, column in enumerate(columns) if not column.above]
    below = _widths(
        [columns[number] for number in numbers], [[row[number] for number in numbers] for row in cells], available
    )
    return {numbers[place]: width for place, width in below.items()}


def _widths(columns: Sequence[Column], cells: Sequence[Sequence[Text]], available: int) -> dict[int, int]:
    """Return number and width of each column to show; none if even the narrowest table is too wide."""
    headers = [Text(visible(column.header)).cell_len for column in columns]
    widest = [max((row[number].cell_len for row in cells), default=0) for number in range(len(columns))]
    whole = [max(pair) for pair in zip(headers, widest, strict=True)]
    shown = _required(columns, headers, widest, available, _WRAPPED_WIDTH)
    if _total(shown) > available and any(column.above for column in columns):
        return {}
    if _total(shown) > available:
        shown = _required(columns, headers, widest, _NARROW_WIDTH, _NARROW_WIDTH)
        return {} if _total(shown) > available else _widened(shown, whole, available)
    for number, column in sorted(enumerate(columns), key=lambda item: widest[item[0]] == 0):
        width = min(whole[number], max(headers[number], _WRAPPED_WIDTH)) if column.wraps else whole[number]
        if column.optional and _total(shown) + _GAP + width <= available:
            shown[number] = width
    return _widened(dict(sorted(shown.items())), whole, available)


def _required(
    columns: Sequence[Column], headers: Sequence[int], cells: Sequence[int], most_header: int, most_cell: int
) -> dict[int, int]:
    """Return number and minimum width of each column that is always shown."""
    return {
        number: max(min(headers[number], most_header), min(cells[number], most_cell) if column.wraps else cells[number])
        for number, column in enumerate(columns)
        if not column.optional
    }


def _total(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _widened(widths: Mapping[int, int], whole: Sequence[int], available: int) -> dict[int, int]:
    """Share the remaining room among the columns that can use it."""
    wider = dict(widths)
    while growing := [number for number, width in wider.items() if width < whole[number]]:
        share = (available - _total(wider)) // len(growing)
        if share == 0:
            break
        for number in growing:
            wider[number] = min(whole[number], wider[number] + share)
    return wider


def _print_blocks(columns: Sequence[Column], cells: Sequence[Sequence[Text]]) -> None:
    """Print the first cell of each row, and below it a line for each other cell that is not empty."""
    console = results()
    width = max(console.width - _GAP, _NARROW_WIDTH)
    for first, *others in cells:
        console.print(first, style="bold", soft_wrap=True)
        for column, cell in zip(columns[1:], others, strict=True):
            if cell.plain:
                for line in Text.assemble(f"{visible(column.header)}: ", cell).wrap(console, width):
                    console.print(Text(" " * _GAP) + line, soft_wrap=True)


def print_facts(facts: Mapping[str, str | Text], *, prose: Collection[str] = ()) -> None:
    """Print names and values, one a line.

    What ``prose`` names is wrapped between words. The terminal wraps other long values, so that they can be copied
    whole.
    """
    console = results()
    margin = max(len(visible(name)) for name in facts) + _GAP
    width = max(console.width - margin, _WRAPPED_WIDTH)
    for name, value in facts.items():
        plain = [visible(line) for line in value.split("\n")] if isinstance(value, str) else []
        if name in prose:
            plain = [piece for line in plain for piece in _wrapped(line, width) or [""]]
        lines = [Text(line) for line in plain] if isinstance(value, str) else [value]
        label = visible(name)
        for line in lines:
            console.print(Text.assemble((label.ljust(margin), "bold blue"), line), soft_wrap=True)
            label = ""


def print_entry(name: str, *lines: str | Text) -> None:
    """Print a name on a line of its own, so that it can be copied whole, and details below it."""
    console = results()
    console.print(visible(name), style="bold", soft_wrap=True)
    width = max(console.width - _GAP, _WRAPPED_WIDTH)
    for line in map(visible_text, lines):
        for piece in _wrapped(line.plain, width):
            console.print(Text(" " * _GAP + piece, style=line.style), soft_wrap=True)


def without_names(message: str, checkpoint_id: str) -> str:
    """Return a message with the checkpoint's file names replaced by what they are, for use below its id."""
    return re.sub(
        rf"\.?{re.escape(checkpoint_id)}\.(\w+)",
        lambda name: "the manifest" if name[1] == "json" else "the payload",
        message,
    )


def print_heading(text: str) -> None:
    """Print a heading above a part of the answer."""
    console = results()
    console.print()
    console.print(visible(text), style="bold", soft_wrap=True)


def visible_text(cell: str | Text) -> Text:
    """Return a cell made visible; text that is styled already comes from this package."""
    return cell if isinstance(cell, Text) else Text(visible(cell))


def visible_lines(text: str) -> str:
    """Return :func:`visible` text with its line breaks."""
    return "\n".join(visible(line) for line in text.split("\n"))


def as_value(value: Any) -> str:
    """Return any plain value as text; JSON for what has parts."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else as_number(value)


def as_number(value: Any) -> str:
    """Return a metric that is short enough for a table."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def as_age(moment: datetime) -> str:
    """Return how long ago a moment was."""
    return duration((datetime.now(UTC) - moment).total_seconds())


def as_time(moment: datetime) -> str:
    """Return a moment in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
