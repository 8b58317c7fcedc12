"""Finds the rows and runs each in a process of its own, two at a time where they allow it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.folders import memory_folder
from tests.torture.report import Result, result
from tests.torture.rows import Outcome, Row

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "tests.torture"
AT_ONCE = 2
ROW_TIMEOUT_SECONDS = 45 * 60


@dataclass(frozen=True)
class Job:
    """A row of a package, how often it injects its fault, and its seed."""

    row: Row
    count: int
    seed: str
    package: str = PACKAGE


def discover(package: str = PACKAGE) -> list[Row]:
    """Every row that a module of the package lists, by number. Raises ``ValueError`` when two share one."""
    rows: dict[int, Row] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name == "__main__":
            continue
        for row in getattr(importlib.import_module(f"{package}.{module.name}"), "ROWS", ()):
            if rows.setdefault(row.number, row) is not row:
                raise ValueError(f"two rows have the number {row.number}")
    return [rows[number] for number in sorted(rows)]


def run_all(jobs: Sequence[Job], console: Console) -> Iterator[Result]:
    """Each row's result as it comes: first of those that share the machine, then of those that want it alone."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        for workers, group in (
            (AT_ONCE, [job for job in jobs if not job.row.exclusive]),
            (1, [job for job in jobs if job.row.exclusive]),
        ):
            yield from _run_group(group, workers, progress)


def _run_group(jobs: Sequence[Job], workers: int, progress: Progress) -> Iterator[Result]:
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    done: queue.SimpleQueue[Result] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)

    def work() -> None:
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            shown = progress.add_task(f"{job.row.number} {job.row.fault}")
            done.put(run_apart(job))
            progress.remove_task(shown)

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    for _ in jobs:
        yield done.get()


def run_apart(job: Job) -> Result:
    """Run a row in a process and a folder of its own. A row that fails by itself is a violation, with what it said."""
    started = time.monotonic()
    outcome = Outcome()
    if lack := job.row.lacks():
        outcome.violations.append(f"it was not run: {lack}")
    else:
        with tempfile.TemporaryDirectory(prefix="torture-", dir=memory_folder(), ignore_cleanup_errors=True) as folder:
            outcome = _in_a_process(job, Path(folder))
    return result(job.row, outcome, time.monotonic() - started, job.seed)


def _in_a_process(job: Job, folder: Path) -> Outcome:
    answer, errors, place = folder / "outcome.json", folder / "errors", folder / "row"
    place.mkdir()
    command = [sys.executable, "-m", "tests.torture.runner", job.package, str(job.row.number), str(job.count), job.seed]
    with errors.open("wb") as stream:
        try:
            subprocess.run(
                [*command, str(place), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=ROOT,
                timeout=ROW_TIMEOUT_SECONDS,
                check=True,
            )
        except subprocess.SubprocessError as error:
            said = errors.read_text(errors="replace").strip().splitlines()[-1:]
            return Outcome(violations=[f"the row itself failed: {error}; {' '.join(said)}"])
    return Outcome(**json.loads(answer.read_text(encoding="utf-8")))


def _main(package: str, number: str, count: str, seed: str, *paths: str) -> None:
    folder, answer = paths
    (row,) = (row for row in discover(package) if row.number == int(number))
    outcome = row.run(int(count), seed, Path(folder))
    Path(answer).write_text(json.dumps(asdict(outcome)), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
