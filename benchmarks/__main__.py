"""Measure everything and write the results.

python -m benchmarks                                          # all of it, as `make bench` does
python -m benchmarks --only save,load --size 1GB --rounds 7   # a part; its rows replace earlier ones
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import (
    asynchronous,
    checking,
    formats,
    loading,
    memory,
    peers,
    report,
    retiring,
    saving,
    stalls,
    tensors,
    training,
)
from benchmarks.harness import Row, Settings, size_bytes_of

SUITES: dict[str, Callable[[Settings], Iterator[Row]]] = {
    "save": saving.rows,
    "backup": saving.backup_rows,
    "load": loading.rows,
    "tensors": tensors.rows,
    "async": asynchronous.rows,
    "stall": stalls.rows,
    "train": training.rows,
    "check": checking.rows,
    "clean": retiring.rows,
    "memory": memory.rows,
    "formats": formats.rows,
}
_QUIET_LOAD = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print each row as it comes, and write the results; the whole replaces all earlier ones."""
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore")  # the peers' own: of deprecated calls, and of no process group
    logging.disable(logging.WARNING)
    if peers.missing():
        print(f"not installed and not measured: {', '.join(peers.missing())}; `make bench` installs them")
    print(f"load average {_load_average()}")
    if os.getloadavg()[0] > _QUIET_LOAD:
        print("this machine is busy: the times below say little")
    measured: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.folder) as folder:
        settings = Settings(Path(folder), options.size, options.rounds, options.warm_up, options.step_seconds)
        for suite in options.only:
            measured += _measure(suite, settings)
    is_whole = options.only == tuple(SUITES) and options.size == Settings.sizes
    report.write(options.output, measured if is_whole else report.merged(options.output, measured))


def _measure(suite: str, settings: Settings) -> Iterator[Row]:
    started = time.perf_counter()
    for row in SUITES[suite](settings):
        print(f"{suite:7}{_line(row)}", flush=True)
        yield row
    gc.collect()  # states refer to themselves in circles, and are large
    print(f"{suite:7}took {time.perf_counter() - started:.0f} s, load average {_load_average()}", flush=True)


def _line(row: Row) -> str:
    if row.ours_bytes is not None:
        values = f"{row.ours_bytes / 2**20:9.1f} MiB"
    else:
        values = f"{row.ours_seconds:9.4f} s {row.peer_seconds:9.4f} s {row.ratio:7.2f}"
    target = "" if row.target is None else f" of {report.target_text(row)}{'' if row.met else ' MISSED'}"
    return f"{values}{target:15} {row.name} | {row.state}, {report.size_text(row.size_bytes)} | {row.peer}"


def _load_average() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_suites, default=tuple(SUITES), help=f"of {','.join(SUITES)}")
    parser.add_argument("--size", type=_sizes, default=Settings.sizes, help="such as 1MB,1GB")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="that count; small states get more")
    parser.add_argument("--warm-up", type=int, default=Settings.warm_up, help="rounds that do not count")
    parser.add_argument("--step-seconds", type=float, default=Settings.step_seconds, help="of forward and backward")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk that is measured")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where the results go")
    return parser


def _suites(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SUITES):
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}")
    return names


def _sizes(text: str) -> tuple[str, ...]:
    sizes = tuple(text.upper().split(","))
    try:
        for size in sizes:
            size_bytes_of(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return sizes


if __name__ == "__main__":
    main()
