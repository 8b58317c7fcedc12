"""A progress bar in bytes, for people who wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ckpt_lib.cli.output import diagnostics

_WIDTH_OF_ALL = 80


@contextmanager
def byte_progress(doing: str, total_bytes: int | None) -> Iterator[Callable[[int], object]]:
    """Hand out what takes the bytes done since the last call; shows a bar only where stderr is a terminal."""
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
    if console.width >= _WIDTH_OF_ALL:  # what does not fit would wrap, and leave lines behind
        columns += [BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [BarColumn(bar_width=None), TaskProgressColumn()]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(doing, total=total_bytes)
        yield lambda count: bar.advance(task, count)
