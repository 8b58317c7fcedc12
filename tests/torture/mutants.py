"""Take one safeguard after the other out of the code, and see that a test fails each time.

python -m tests.torture.mutants              # all of them, as `make mutants` does; the table goes to docs/MUTANTS.md
python -m tests.torture.mutants --only purge # those whose name or file holds a text; nothing is written

The list is ``mutants.toml``. Two copies of the tree are worked on, never the tree itself.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.folders import memory_folder
from tests.torture.report import write_between
from tests.torture.runner import ROOT

LIST = ROOT / "tests" / "torture" / "mutants.toml"
PAGE = ROOT / "docs" / "MUTANTS.md"
BEGIN, END = "<!-- mutants -->", "<!-- /mutants -->"
AT_ONCE = 2
TIMEOUT_SECONDS = 120.0
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch", "pandas", "pydantic", "fsspec", "yaml", "xxhash", "rich", "pytest"])
"""Loading these takes as long as most tests. None of them may load anything of this tree."""
_TREES = ("ckpt_lib", "tests", "tasks", "flows", "deployments", "docs", "examples", "benchmarks")
_SHOWN_LINES = 15

Verdict = Literal["caught", "SURVIVED", "BROKEN", "HUNG"]


class UnsoundListError(Exception):
    """A mutant that is none: its text is not in the code just once, or its tests fail anyway."""


@dataclass(frozen=True)
class Mutant:
    """The code without one safeguard."""

    path: str
    removed: str
    """What is taken out, in words."""
    original: str
    """What the code says; just once in its file."""
    replacement: str
    tests: tuple[str, ...]
    """One of them must fail; as pytest takes them."""


def load(path: Path = LIST) -> list[Mutant]:
    """The mutants of a list, by file."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        Mutant(file, item["removed"], item["original"], item["replacement"], tuple(item["tests"]))
        for file, items in tables.items()
        for item in items
    ]


@dataclass(frozen=True)
class Result:
    """What the tests of a mutant said of it."""

    mutant: Mutant
    verdict: Verdict
    seconds: float
    output: str


def main(arguments: Sequence[str] | None = None, *, list_path: Path = LIST, page: Path = PAGE) -> int:
    """Run mutants, print what became of them, write the table if it was all; 1 unless every one was caught."""
    options = _parser().parse_args(arguments)
    mutants = load(list_path)
    chosen = [mutant for mutant in mutants if options.only in f"{mutant.removed} {mutant.path}"]
    if not chosen:
        raise SystemExit(f"there is no mutant of that name: {options.only}")
    console = Console()
    started = time.monotonic()
    try:
        results = run(chosen, console)
    except UnsoundListError as error:
        console.print(str(error), markup=False, highlight=False)
        return 1
    console.print(_table(results))
    failed = [found for found in results if found.verdict != "caught"]
    for found in failed:
        console.print(f"{found.verdict}: {found.mutant.removed} ({found.mutant.path})", markup=False, highlight=False)
        console.print("\n".join(found.output.splitlines()[-_SHOWN_LINES:]), markup=False, highlight=False)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"{len(results)} mutants, {len(failed)} not caught, {minutes} min {seconds} s", highlight=False)
    if not failed and len(chosen) == len(mutants):
        write_between(page, BEGIN, END, section(mutants))
    return 1 if failed else 0


def run(mutants: Sequence[Mutant], console: Console) -> list[Result]:
    """The result of each mutant, in their order. Raises :class:`UnsoundListError`."""
    check(mutants, ROOT)
    with (
        tempfile.TemporaryDirectory(prefix="mutants-", dir=memory_folder()) as folder,
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as progress,
    ):
        task = progress.add_task("the tests, without a mutant", total=len(mutants))
        trees = [Path(folder, str(number)) for number in range(AT_ONCE)]
        _copy_tree(ROOT, trees[0])
        _check_tests(mutants, trees[0])
        for other in trees[1:]:
            shutil.copytree(trees[0], other, symlinks=True)
        progress.update(task, description="mutants")
        found = {}
        for result in _results(mutants, trees):
            found[result.mutant] = result
            progress.advance(task)
            if result.verdict != "caught":
                progress.console.print(f"{result.verdict}: {result.mutant.removed}", markup=False, highlight=False)
    return [found[mutant] for mutant in mutants]


def check(mutants: Sequence[Mutant], root: Path) -> None:
    """Each text must occur just once. Raises :class:`UnsoundListError` with all those that do not."""
    wrong = []
    for mutant in mutants:
        count = (root / mutant.path).read_text(encoding="utf-8").count(mutant.original)
        if count != 1:
            wrong.append(f"{mutant.removed}: its text occurs {count} times in {mutant.path}")
    if wrong:
        raise UnsoundListError("\n".join(wrong))


def _copy_tree(root: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for file in root.iterdir():
        if file.is_file():
            shutil.copy2(file, target)
    for name in _TREES:
        shutil.copytree(root / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def _check_tests(mutants: Sequence[Mutant], tree: Path) -> None:
    """The tests pass as long as nothing is changed. Their compiled code is kept for the runs to come."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    spread = ["-n", str(AT_ONCE), "--dist", "loadfile"] if len(tests) > 1 else []
    code, output = _pytest(tree, [*spread, *tests], timeout_seconds=None, compiles=True)
    if code != 0:
        raise UnsoundListError(f"the tests fail without any mutant:\n{output}")


def _results(mutants: Sequence[Mutant], trees: Sequence[Path]) -> Iterator[Result]:
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for tree in trees:
        free.put(tree)

    def run_one(mutant: Mutant) -> Result:
        tree = free.get()
        try:
            return run_in(tree, mutant)
        finally:
            free.put(tree)

    with ThreadPoolExecutor(len(trees)) as pool:
        futures = [pool.submit(run_one, mutant) for mutant in mutants]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def run_in(tree: Path, mutant: Mutant) -> Result:
    """What a mutant's tests say of it; ``tree`` is changed for as long as that takes."""
    path = tree / mutant.path
    found, times = path.read_text(encoding="utf-8"), path.stat()
    started = time.monotonic()
    path.write_text(found.replace(mutant.original, mutant.replacement), encoding="utf-8")
    try:
        code, output = _pytest(tree, ["-x", *mutant.tests], timeout_seconds=TIMEOUT_SECONDS)
    finally:
        path.write_text(found, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # what was compiled from it counts again
    return Result(mutant, _verdict(code), time.monotonic() - started, f"{output}\nexit code {code}")


def _verdict(code: int | None) -> Verdict:
    if code is None:
        return "HUNG"
    # Anything but 0 and 1 says that no test could be run.
    return {0: "SURVIVED", 1: "caught"}.get(code, "BROKEN")  # type: ignore[return-value]


def _pytest(
    tree: Path, arguments: Sequence[str], *, timeout_seconds: float | None, compiles: bool = False
) -> tuple[int | None, str]:
    """The exit code of pytest and what it printed; ``None`` for one that had to be stopped."""
    output = tree.with_suffix(".output")
    process = _PROCESSES.Process(target=_run_pytest, args=(tree, arguments, compiles, output))
    process.start()
    assert process.pid is not None
    try:
        process.join(timeout_seconds)
        return process.exitcode, output.read_text(encoding="utf-8", errors="replace")
    finally:  # whatever its tests have started ends with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        process.close()


def _run_pytest(tree: Path, arguments: Sequence[str], compiles: bool, output: Path) -> None:
    """In a process of its own, in which nothing of this tree is loaded and nothing will be but the copy."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "" if compiles else "1"}
    sys.dont_write_bytecode = not compiles
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in _TREES]:
        del sys.modules[name]
    code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments])
    sys.stdout.flush()
    os._exit(code)  # what a mutant does to the end of the interpreter is not asked


def _table(results: Sequence[Result]) -> Table:
    table = Table("what is removed", "file", "caught by", "seconds")
    for found in results:
        by = "\n".join(found.mutant.tests) if found.verdict == "caught" else found.verdict
        table.add_row(found.mutant.removed, found.mutant.path, by, f"{found.seconds:.0f}")
    return table


def section(mutants: Sequence[Mutant]) -> str:
    """A table with a line for each mutant, all of which were caught."""
    lines = [
        f"**{len(mutants)} mutants, each caught.**",
        "",
        "| what is removed | file | caught by |",
        "|---|---|---|",
        *(f"| {mutant.removed} | `{mutant.path}` | {_shown(mutant.tests)} |" for mutant in mutants),
    ]
    return "\n".join(lines) + "\n"


def _shown(tests: Sequence[str]) -> str:
    return ", ".join(f"`{test.removeprefix('tests/')}`" for test in tests)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose name or file holds it; default: all")
    return parser


if __name__ == "__main__":
    sys.exit(main())
