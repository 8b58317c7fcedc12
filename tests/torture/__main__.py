"""Run the fault matrix at full numbers, and write its results into docs/DURABILITY.md.

python -m tests.torture                             # all of it, as `make torture` does, in less than an hour
python -m tests.torture --only 1,2                  # some rows; their results replace earlier ones
python -m tests.torture --count-factor 0.01         # a rehearsal, whose results are only printed
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.torture import report
from tests.torture.report import Result
from tests.torture.rows import Row
from tests.torture.runner import PACKAGE, Job, discover, run_all

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "torture" / "results.json"
PAGE = ROOT / "docs" / "DURABILITY.md"
SEED = "nothing lost"
_SHOWN_VIOLATIONS = 10


def main(
    arguments: Sequence[str] | None = None,
    *,
    package: str = PACKAGE,
    results_path: Path = RESULTS,
    page: Path = PAGE,
) -> int:
    """Run rows, print what they came to, and store it if the numbers were full; 1 when a promise was broken."""
    options = _parser().parse_args(arguments)
    jobs = _longest_first(_jobs(discover(package), package, options), report.load(results_path))
    console = Console()
    console.print(f"{report.machine()}\nseed: {options.seed}\n", highlight=False)
    started = time.monotonic()
    results = []
    for found in run_all(jobs, console):
        _print(console, found)
        results.append(found)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\n{len(results)} rows in {minutes} min {seconds} s", highlight=False)
    if options.count_factor >= 1:
        report.write_section(page, report.store(results_path, results))
    return 1 if any(found.violations for found in results) else 0


def _jobs(rows: Sequence[Row], package: str, options: argparse.Namespace) -> list[Job]:
    known = {row.number for row in rows}
    if unknown := sorted(set(options.only or known) - known):
        raise SystemExit(f"there is no row {', '.join(map(str, unknown))}; there are {sorted(known)}")
    return [
        Job(row, _count(row, options.count_factor), options.seed, package)
        for row in rows
        if row.number in (options.only or known)
    ]


def _longest_first(jobs: Sequence[Job], earlier: Sequence[Result]) -> list[Job]:
    """Sort by how long each took before, so that those that run at once come to an end together."""
    seconds = {found.number: found.seconds for found in earlier}
    return sorted(jobs, key=lambda job: seconds.get(job.row.number, math.inf), reverse=True)


def _count(row: Row, factor: float) -> int:
    """How often to inject; 0, which leaves that to the row, only when nothing is left out."""
    if factor >= 1 and not row.count:
        return 0
    return max(row.sample, round(row.count * factor))


def _print(console: Console, found: Result) -> None:
    verdict = "[green]0 violations[/]" if not found.violations else f"[red]{len(found.violations)} VIOLATIONS[/]"
    console.print(
        f"{found.number:3} {found.fault}: {found.injected:,} {found.unit}, {verdict}, {found.seconds:.0f} s", style=""
    )
    if found.detail:
        console.print(f"    {found.detail}", markup=False, highlight=False)
    for violation in found.violations[:_SHOWN_VIOLATIONS]:
        console.print(f"    {violation}", markup=False, highlight=False)
    if found.violations:
        console.print(f"    again: {report.repeat_command(found)}", markup=False, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_numbers, default=None, metavar="1,2", help="the rows to run; default: all")
    parser.add_argument("--count-factor", type=_factor, default=1.0, help="of each row's full number")
    parser.add_argument("--seed", default=SEED, help="a text; the same one injects the same faults")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _factor(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError("the factor must be more than 0")
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
