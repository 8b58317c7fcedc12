"""The fault matrix at sample size, and the runner that runs it at full numbers."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ckpt_lib.store import local
from tests.folders import memory_folder
from tests.torture import interrupts, report
from tests.torture.__main__ import PAGE, RESULTS, main
from tests.torture.rows import Row
from tests.torture.runner import discover

SEED = "sample"
ROWS = discover()
MATRIX = {*range(1, 27), *range(30, 50)}
"""The rows that one machine and local stores allow."""


def sampled(row: Row) -> Any:
    marks = [pytest.mark.servers] if row.needs_server else []
    return pytest.param(row, id=f"{row.number}-{row.fault}", marks=marks)


@pytest.mark.parametrize("row", [sampled(row) for row in ROWS])
def test_row(row: Row) -> None:
    """A seeded sample of each row of the fault matrix, without a violation."""
    if lack := row.lacks():
        pytest.skip(lack)
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        outcome = row.run(row.sample, SEED, Path(folder))
    assert outcome.violations == []
    assert outcome.injected >= row.sample


@pytest.mark.parametrize("kind", ["save", "repair"])
def test_a_lost_checkpoint_is_a_violation(tmp_path: Path, kind: str) -> None:
    """The worst that an interrupt may do is told like any other harm, and ends no row by an error of its own."""
    assert list(interrupts._check_store(tmp_path, kind, is_saved=True)) == ["the first checkpoint is gone"]


def test_an_interrupted_row_leaves_no_program(tmp_path: Path) -> None:
    """Whatever ends the row, Ctrl-C included, the program that it was about to strike is killed."""
    with interrupts.Server(tmp_path) as server:
        place = tmp_path / "place"
        place.mkdir()
        with contextlib.suppress(KeyboardInterrupt), server.program(place, "save", "SIGTERM, and it dies"):
            server.wait_until("waiting")
            pid = server.pid
            raise KeyboardInterrupt
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_rows_are_of_the_matrix() -> None:
    """Each number is a row of the matrix and says all that the table shows of it; no two are the same."""
    assert {row.number for row in ROWS} <= MATRIX
    assert len({row.fault for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.fault
        assert row.must_hold
        assert row.unit
        assert 0 < row.sample <= (row.count or sys.maxsize)


# --- the runner, on rows of its own ---

_PACKAGE = """
import os, random
from tests.torture.rows import Outcome, Row

def good(count, seed, folder):
    assert not list(folder.iterdir())
    (folder / "file").write_text("in a folder of its own")
    return Outcome(count, [], f"first {random.Random(seed).random()}")

def bad(count, seed, folder):
    return Outcome(count, [f"violation {number}" for number in range(12)])

def failing(count, seed, folder):
    raise KeyError("the row has a fault of its own")

def row(number, run, **options):
    return Row(number, f"fault {number}", "it | holds", "faults", 1000, 3, run, **options)

ROWS = [row(1, good), row(2, bad), row(3, failing), row(5, good, exclusive=True)]
ROWS.append(row(4, good, lacks=lambda: "install it"))
"""


class Runner:
    """The runner with rows, results and a page of its own."""

    def __init__(self, folder: Path) -> None:
        package = folder / "rows_of_a_test"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "some.py").write_text(_PACKAGE)
        self.results, self.page = folder / "results.json", folder / "PAGE.md"
        self.page.write_text(f"# Page\n\nabove\n\n{report.BEGIN}\nof earlier\n{report.END}\n\nbelow\n")

    def run(self, *arguments: str) -> int:
        return main(arguments, package="rows_of_a_test", results_path=self.results, page=self.page)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rows_of_a_test"]:  # of an earlier test
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return Runner(tmp_path)


def test_rows_that_hold_are_written_down(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; the results and the page's table agree, and the rest of the page stays."""
    assert runner.run("--only", "1,5", "--seed", "s") == 0
    text, results = runner.page.read_text(), report.load(runner.results)
    assert [(item.number, item.injected, item.violations, item.seed) for item in results] == [
        (1, 1000, [], "s"),
        (5, 1000, [], "s"),
    ]
    assert text.startswith("# Page\n\nabove\n")
    assert text.endswith(f"{report.END}\n\nbelow\n")
    assert "of earlier" not in text
    assert f"| 1 | fault 1 | it / holds | 1,000 faults | 0 | {results[0].detail} |" in text
    said = capsys.readouterr().out
    assert report.machine() in said
    assert "seed: s" in said


def test_a_violation_ends_in_1(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    """The first ten are printed, with the command that shows them again; the table has them all."""
    assert runner.run("--only", "1,2") == 1
    said = capsys.readouterr().out
    assert "violation 9" in said
    assert "violation 10" not in said
    assert '-m tests.torture --only 2 --seed "nothing lost"' in said
    assert "| 2 | fault 2 | it / holds | 1,000 faults | 12 |" in runner.page.read_text()


@pytest.mark.parametrize(("number", "told"), [(3, "KeyError: 'the row has a fault of its own'"), (4, "install it")])
def test_a_row_that_did_not_run_is_a_violation(runner: Runner, number: int, told: str) -> None:
    """Whatever kept it from running, nothing was shown by it."""
    assert runner.run("--only", str(number)) == 1
    (result,) = report.load(runner.results)
    assert result.injected == 0
    assert told in result.violations[0]


def test_a_part_replaces_its_rows(runner: Runner) -> None:
    """Results of rows that were not run again stay, each with its seed."""
    runner.run("--only", "1,2", "--seed", "first")
    runner.run("--only", "1", "--seed", "second")
    assert [(item.number, item.seed) for item in report.load(runner.results)] == [(1, "second"), (2, "first")]
    text = runner.page.read_text()
    assert "- seed of 1: second\n- seed of 2: first\n" in text


def test_a_rehearsal_is_not_written_down(runner: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    """A run at smaller numbers only prints: the page tells of full ones."""
    assert runner.run("--only", "1", "--count-factor", "0.01") == 0
    assert "10 faults" in capsys.readouterr().out
    assert not runner.results.exists()
    assert "of earlier" in runner.page.read_text()


@pytest.mark.parametrize("arguments", [("--only", "99"), ("--count-factor", "0"), ("--only", "x")])
def test_what_cannot_be_run_is_refused(runner: Runner, arguments: tuple[str, ...]) -> None:
    """An unknown row, no number, a factor that leaves nothing."""
    with pytest.raises(SystemExit) as refused:
        runner.run(*arguments)
    assert refused.value.code != 0


def test_two_rows_of_one_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would overwrite each other's results."""
    package = tmp_path / "rows_that_clash"
    package.mkdir()
    for name in ("__init__", "one", "two"):
        (package / f"{name}.py").write_text(_PACKAGE if name != "__init__" else "")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rows_of_a_test"]:  # of an earlier test
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match="two rows have the number 1"):
        discover("rows_that_clash")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    """Nothing is written where it is not expected."""
    page = tmp_path / "PAGE.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="has no lines"):
        report.write_between(page, report.BEGIN, report.END, "")
    assert page.read_text() == "text"


# --- what was published ---


def test_the_page_shows_the_stored_results() -> None:
    """What docs/DURABILITY.md says between its markers is what the results in the repository say: of the rows that
    there are, at full numbers, without a violation.
    """
    results = report.load(RESULTS)
    shown = PAGE.read_text(encoding="utf-8").partition(report.BEGIN)[2].partition(report.END)[0]
    assert shown == (f"\n\n{report.section(results)}\n" if results else "\n")
    rows = {row.number: row for row in ROWS}
    for item in results:
        row = rows[item.number]
        assert (item.fault, item.must_hold, item.unit) == (row.fault, row.must_hold, row.unit)
        assert item.injected >= row.count
        assert item.violations == []


def test_the_page_names_functions_that_exist() -> None:
    """The barriers that row 4 took away are functions of the local store, as they are called today."""
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"\b([A-Z]\w+\._?[a-z]\w*)(?: of |:)", text.partition(report.BEGIN)[2]))
    modules = [
        importlib.import_module(f"{local.__name__}.{item.name}") for item in pkgutil.iter_modules(local.__path__)
    ]
    classes = {name: found for module in modules for name, found in vars(module).items() if isinstance(found, type)}
    assert [name for name in sorted(named) if not _has(classes, *name.split("."))] == []


def _has(classes: dict[str, type], name: str, method: str) -> bool:
    return name in classes and hasattr(classes[name], method)
