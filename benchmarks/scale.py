"""Large stores: what questions, saves and cleanups cost, and writes the table of docs/SCALE.md.

.venv/bin/python -m benchmarks.scale --folder /a/disk/with/10/GB

The stores are written by :mod:`benchmarks.many`, which takes as long as all the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.harness import settle
from benchmarks.many import fill
from ckpt_lib import CheckpointConfig, CheckpointManager, describe_experiments, find_checkpoints
from ckpt_lib.index.database import database_at
from ckpt_lib.policies.retention import KeepAtMost
from tests.torture.report import write_between

PAGE = Path(__file__).resolve().parents[1] / "docs" / "SCALE.md"
BEGIN, END = "<!-- begin: python -m benchmarks.scale -->", "<!-- end -->"
_ROUNDS = 15
_NEW_PROCESS = """
import json, sys, time
from ckpt_lib import CheckpointConfig, CheckpointManager
from torch import nn
root, name, width = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = CheckpointConfig(checkpoint_dir=root, max_checkpoints=10**9, backup_checkpoints=False)
manager, model, found = CheckpointManager(config, name), nn.Linear(width, width), []
steps = [lambda: manager.list_checkpoints(limit=50, descending=True)] * 2 if not width else [
    lambda: manager.save_checkpoint(model=model, epoch=1, metrics={"val_loss": -time.time()})] * 5  # each is the best
for step in steps:
    started = time.perf_counter()
    step()
    found.append(time.perf_counter() - started)
manager.close()
print(json.dumps(found))
"""

_PARTS = ["store", "large", "cleanup"]
Line = tuple[str, str, str]


def main() -> None:
    """Measure everything, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where the stores are written")
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--each", type=int, default=200)
    parser.add_argument("--large", type=int, default=10_000)
    parser.add_argument("--cleaned", type=int, nargs="*", default=[10_000])
    parser.add_argument("--parts", nargs="*", choices=_PARTS, default=_PARTS, help="the other lines stay as they are")
    parser.add_argument("--dry-run", action="store_true", help="write no table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scale-", dir=options.folder) as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        parts: dict[str, Callable[[], Iterator[Line]]] = {
            "store": lambda: _whole_store(Path(folder) / "many", options.experiments, options.each),
            "large": lambda: _large_experiment(Path(folder) / "large", options.large),
            "cleanup": lambda: chain(*(_cleanup(Path(folder) / "cleaned", count) for count in options.cleaned)),
        }
        lines = []
        for line in chain.from_iterable(parts[name]() for name in options.parts):
            print(*line, sep=": ", flush=True)
            lines.append(line)
    if not options.dry_run:
        _write(lines)


def _write(lines: Sequence[Line]) -> None:
    """Put lines into the table of the page, in the place of earlier ones of the same name."""
    _, _, after = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table: dict[tuple[str, str], str] = {}
    for earlier in after.partition(END)[0].strip().splitlines()[2:]:
        what, of_how_many, measured = earlier.strip("| ").split(" | ")
        table[what, of_how_many] = measured
    table |= {(what, of_how_many): measured for what, of_how_many, measured in lines}
    rows = [f"| {' | '.join((*name, measured))} |" for name, measured in table.items()]
    write_between(PAGE, BEGIN, END, "\n".join(["| what | of how many | time |", "|---|---|---|", *rows]) + "\n")


def _whole_store(root: Path, experiments: int, each: int) -> Iterator[Line]:
    """Questions about one experiment and about all, over a store of many."""
    fill(root, experiments, each)
    database_at(None).close()  # else it would go on with the file that is removed
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
    settle()
    config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=10**9)
    many = f"{experiments * each:,} checkpoints in {experiments:,} experiments"
    yield "index of a store that nobody has indexed", many, _once(lambda: describe_experiments(config))
    yield "all experiments, after looking at each for changes", many, _median(lambda: describe_experiments(config))
    yield "all experiments, from the index", many, _median(lambda: describe_experiments(config, sync=False))
    chance = random.Random(0)

    def one() -> CheckpointManager:
        return CheckpointManager(config, f"run_{chance.randrange(experiments):05}")

    for name, ask in {
        "page of 50 of one experiment": lambda: one().list_checkpoints(limit=50),
        "its best": lambda: one().get_checkpoint("best"),
        "its latest": lambda: one().get_checkpoint("latest"),
    }.items():
        yield f"{name}, by a new manager", many, _median(ask)
    where = ["val_loss<0.1", "epoch>=10"]

    def found() -> object:
        return find_checkpoints(config, sync=False, where=where, sort_by="val_loss", limit=50)

    yield "page of 50 of all, by conditions and in the order of a metric; first", many, _once(found)
    yield "the same again", many, _median(found)
    managers = [CheckpointManager(config, f"run_{number:05}") for number in range(experiments)]
    few = KeepAtMost(count=10)
    yield (
        "retention: a plan for each experiment, with what stays read and verified",
        many,
        _once(lambda: [manager.cleanup_checkpoints(policy=few, dry_run=True) for manager in managers]),
    )
    yield "scrub: every byte of all read and verified", many, _once(lambda: [manager.scrub() for manager in managers])
    shutil.rmtree(root)


def _large_experiment(root: Path, large: int) -> Iterator[Line]:
    """A new process that lists or saves, in an experiment of many and in one of ten."""
    fill(root / "of many", 1, large)
    fill(root / "of ten", 1, 10)
    settle()
    new = _in_new_processes(root / "of many", 0)
    yield "page of 50 by a new process, first", f"{large:,} in one experiment", _seconds(new[0])
    yield "the same again", f"{large:,} in one experiment", _seconds(new[1])
    for width, size in ((512, "1 MB"), (5120, "100 MB")):
        few, many = _in_new_processes(root / "of ten", width), _in_new_processes(root / "of many", width)
        for name, number in (("first", 0), ("next", 1)):
            ratio = f"{_seconds(many[number])}, {many[number] / few[number]:.2f} times that among 10"
            yield f"{name} save of {size} of a process", f"{large:,} in one experiment", ratio
    shutil.rmtree(root)


def _in_new_processes(root: Path, width: int) -> tuple[float, float]:
    """The medians of what some processes do first, and of what they do then."""
    rounds: list[list[float]] = []
    for _ in range(5):
        settle()
        command = [sys.executable, "-c", _NEW_PROCESS, str(root), "run_00000", str(width)]
        rounds.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    later = [seconds for found in rounds for seconds in found[1:]]
    return statistics.median(found[0] for found in rounds), statistics.median(later)


def _cleanup(root: Path, count: int) -> Iterator[Line]:
    """A cleanup that deletes all but ten for good."""
    fill(root, 1, count)
    settle()
    config = CheckpointConfig(checkpoint_dir=str(root), max_checkpoints=10, trash_seconds=0, backup_checkpoints=False)
    manager = CheckpointManager(config, "run_00000")
    yield "cleanup that deletes all but 10", f"{count:,} in one experiment", _once(manager.cleanup_checkpoints)
    left = len(manager.checkpoint_ids())
    if left > 11:
        raise RuntimeError(f"{left} checkpoints stayed")
    shutil.rmtree(root)


def _once(call: Callable[[], Any]) -> str:
    started = time.perf_counter()
    call()
    return _seconds(time.perf_counter() - started)


def _median(call: Callable[[], Any]) -> str:
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return _seconds(statistics.median(found))


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    main()
