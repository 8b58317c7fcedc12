"""Progress bars: one counts bytes, one counts things, and one both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_lib.cli.output import diagnostics
from ckpt_lib.core.wording import size_text

_WIDTH_OF_ALL = 80
_NARROW_BAR = 20


@contextmanager
def byte_progress(doing: str, total_bytes: int | None) -> Iterator[Callable[[int], object]]:
    """Show a bar if stderr is a terminal; yield a function that takes the bytes done since its last call."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = diagnostics()
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False)]
    if console.width >= _WIDTH_OF_ALL:  # a bar that wraps would leave lines behind
        columns += [BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [BarColumn(bar_width=None), TaskProgressColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(doing, total=total_bytes)
        yield lambda count: bar.advance(task, count)


@contextmanager
def count_progress(doing: str) -> Iterator[Callable[[int, int], object]]:
    """Show a bar if stderr is a terminal; yield a function that takes how many of how many are done."""
    if not sys.stderr.isatty():
        yield lambda _done, _of: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    description = TextColumn("{task.description}", markup=False)
    with Progress(description, BarColumn(), MofNCompleteColumn(), console=diagnostics(), transient=True) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


@contextmanager
def count_and_byte_progress(doing: str) -> Iterator[tuple[Callable[[int, int], object], Callable[[int], object]]]:
    """Show a bar if stderr is a terminal; yield the functions of :func:`count_progress` and :func:`byte_progress`."""
    if not sys.stderr.isatty():
        yield lambda _done, _of: None, lambda _: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

    console = diagnostics()
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        MofNCompleteColumn(),
    ]
    if console.width >= _WIDTH_OF_ALL:
        columns.append(TextColumn("{task.fields[read]}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(doing, total=None, read="")
        read_bytes, started = 0, time.monotonic()

        def read(count: int) -> None:
            nonlocal read_bytes
            read_bytes += count
            per_second = round(read_bytes / max(time.monotonic() - started, 0.001))
            bar.update(task, read=f"{size_text(read_bytes)}, {size_text(per_second)}/s")

        yield lambda done, of: bar.update(task, completed=done, total=of), read
