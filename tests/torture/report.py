"""What ``make torture`` writes: ``results.json``, and the table of docs/DURABILITY.md between two markers."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from tests.torture.rows import Outcome, Row

BEGIN, END = "<!-- torture -->", "<!-- /torture -->"


@dataclass(frozen=True)
class Result:
    """What one row came to, and what is needed to repeat it."""

    number: int
    fault: str
    must_hold: str
    unit: str
    injected: int
    violations: list[str]
    detail: str
    seconds: float
    seed: str
    machine: str


def result(row: Row, outcome: Outcome, seconds: float, seed: str) -> Result:
    return Result(
        number=row.number,
        fault=row.fault,
        must_hold=row.must_hold,
        unit=row.unit,
        injected=outcome.injected,
        violations=outcome.violations,
        detail=outcome.detail,
        seconds=round(seconds, 1),
        seed=seed,
        machine=machine(),
    )


def machine() -> str:
    """Where this runs, in one line."""
    return (
        f"{os.cpu_count()} processors, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, torch {version('torch')}"
    )


def load(path: Path) -> list[Result]:
    """The results that are stored in ``path``; none without that file."""
    if not path.exists():
        return []
    return [Result(**item) for item in json.loads(path.read_text(encoding="utf-8"))]


def store(path: Path, new: Iterable[Result]) -> list[Result]:
    """Put ``new`` results into ``path``, in the place of those of the same rows; return all, by number."""
    by_number = {item.number: item for item in (*load(path), *new)}
    results = [by_number[number] for number in sorted(by_number)]
    text = json.dumps([asdict(item) for item in results], indent=1, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
    return results


def write_section(page: Path, results: Sequence[Result]) -> None:
    """Write the results between the markers of ``page``. Raises ``ValueError`` without markers."""
    write_between(page, BEGIN, END, section(results))


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Write what is between two markers of ``page`` anew, and nothing else. Raises ``ValueError`` without markers."""
    before, found_begin, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{page} has no lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{after}", encoding="utf-8")


def section(results: Sequence[Result]) -> str:
    """The verdict, where and how it was found, and a table with a line for each row."""
    injected, violations = sum(item.injected for item in results), sum(len(item.violations) for item in results)
    lines = [
        f"**{len(results)} rows, {injected:,} faults, {violations:,} violations.** `make torture` wrote this table, on",
        *_by_row("machine", results),
        "",
        "A row is repeated by its number and seed, as in",
        "",
        "```bash",
        repeat_command(results[0]),
        "```",
        "",
        *_by_row("seed", results),
        "",
        "| # | fault | must hold | injected | violations | detail |",
        "|---|---|---|---|---|---|",
        *(_line(item) for item in results),
    ]
    return "\n".join(lines) + "\n"


def repeat_command(item: Result) -> str:
    return f'.venv/bin/python -m tests.torture --only {item.number} --seed "{item.seed}"'


def _by_row(name: str, results: Sequence[Result]) -> list[str]:
    """The values that results have for ``name``, each with the rows it is of unless that is all of them."""
    rows: dict[str, list[str]] = {}
    for item in results:
        rows.setdefault(getattr(item, name), []).append(str(item.number))
    if len(rows) == 1:
        return [f"{name}: {next(iter(rows))}"]
    return [f"- {name} of {', '.join(numbers)}: {value}" for value, numbers in rows.items()]


def _line(item: Result) -> str:
    cells = (
        str(item.number),
        item.fault,
        item.must_hold,
        f"{item.injected:,} {item.unit}",
        f"{len(item.violations):,}",
        item.detail,
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
