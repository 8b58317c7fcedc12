"""Compare the package of another checkout with this one.

This one runs twice: ``ratio`` is this / other, and ``noise`` this / this again.

python -m benchmarks.commits ../other-checkout --rounds 15
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from benchmarks import limits
from benchmarks.checking import damage
from benchmarks.harness import Measure, Samples, interleave, settle, timed
from benchmarks.ours import Ours
from benchmarks.states import ADAM, FEW_LARGE, make
from ckpt_lib.policies.retention import KeepNewest

HERE = Path(__file__).resolve().parents[1]
OTHER, THIS, AGAIN = "the other", "this", "this, again"

_SCRUBBED, _CLEANED, _KEPT = 16, 300, 10


def main() -> None:
    """Measure each job in all checkouts in turn, and print the medians and their ratios."""
    options = _parser().parse_args()
    print(f"{'job':28}{'other':>10}{'this':>10}{'ratio':>8}{'noise':>8}")
    for name in options.only or JOBS:
        with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.folder) as folder, ExitStack() as children:
            trees = {OTHER: options.checkout.resolve(), THIS: HERE, AGAIN: HERE}
            contenders = {
                side: children.enter_context(_child(tree, name, Path(folder) / side.replace(", ", "-")))
                for side, tree in trees.items()
            }
            print(_line(name, interleave(contenders, rounds=options.rounds, warm_up=2)), flush=True)


def _line(name: str, samples: Samples) -> str:
    median = {side: statistics.median(seconds) for side, seconds in samples.items()}
    times = "".join(f"{median[side] * 1000:7.1f} ms" for side in (OTHER, THIS))
    return f"{name:28}{times}{median[THIS] / median[OTHER]:8.2f}{median[THIS] / median[AGAIN]:8.2f}"


@contextmanager
def _child(tree: Path, name: str, folder: Path) -> Iterator[Measure]:
    """A process with the package of ``tree``, and what lets it do its job once and tell how many seconds that took."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    (packages / "ckpt_lib").symlink_to(tree / "ckpt_lib")
    command = [sys.executable, __file__, name, str(folder)]
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{HERE}"}
    errors, pipe = folder / "errors", subprocess.PIPE
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=stderr, text=True) as child,
    ):
        requests, answers = child.stdin, child.stdout
        assert requests is not None
        assert answers is not None

        def measure() -> float:
            with suppress(BrokenPipeError):
                print(file=requests, flush=True)
            if not (answer := answers.readline()):
                said = errors.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{name!r} of {tree} ended with {child.wait()}; it printed:\n{said}")
            return float(answer)

        yield measure
        with suppress(BrokenPipeError):
            requests.close()


def _work(name: str, folder: Path) -> None:
    """Do a job whenever a line comes."""
    measure = JOBS[name](folder)
    for _ in sys.stdin:
        print(measure(), flush=True)


def _save(folder: Path, *, size: str, backup: bool = False) -> Measure:
    ours, state = Ours(folder, backup_checkpoints=backup), make(ADAM, size)

    def measure() -> float:
        seconds = timed(partial(ours.save, state))
        ours.discard()
        return seconds

    return measure


def _save_among(folder: Path, *, count: int) -> Measure:
    ours, state = Ours(folder, max_checkpoints=10**6), make(FEW_LARGE, "10KB")
    for _ in range(count):
        ours.save(state)

    def measure() -> float:
        settle()
        return statistics.median(timed(partial(ours.save, state)) for _ in range(10))

    return measure


def _start(folder: Path, *, size: str) -> Measure:
    ours, state = Ours(folder), make(ADAM, size)
    ours.manager.prepare(**state.parts)

    def measure() -> float:
        seconds = timed(lambda: ours.manager.save_checkpoint_async(**state.parts, epoch=ours.next_epoch()))
        ours.manager.flush()
        ours.discard()
        return seconds

    return measure


def _load(folder: Path, *, size: str) -> Measure:
    ours, state = Ours(folder), make(ADAM, size)
    ours.save(state)

    def measure() -> float:
        state.renew_optimizer_state()
        return timed(lambda: ours.manager.load_checkpoint("latest", **state.parts))

    return measure


def _scrub(folder: Path) -> Measure:
    ours, state = Ours(folder), make(FEW_LARGE, "64MB")
    paths = [ours.payload(ours.save(state)) for _ in range(_SCRUBBED)]

    def measure() -> float:
        limits.drop_cached(paths)
        return timed(lambda: ours.manager.scrub(restart=True))

    return measure


def _clean_up(folder: Path) -> Measure:
    original, state = Ours(folder / "original"), make(FEW_LARGE, "10KB")
    for _ in range(_CLEANED):
        original.save(state)
    original.manager.close()

    def measure() -> float:
        # Not what a store keeps for itself, which may go meanwhile.
        shutil.copytree(folder / "original", folder / "copy", ignore=shutil.ignore_patterns(".*"))
        ours = Ours(folder / "copy")
        settle()
        seconds = timed(lambda: ours.manager.cleanup_checkpoints(policy=KeepNewest(count=_KEPT)))
        shutil.rmtree(folder / "copy")
        return seconds

    return measure


def _bring_back(folder: Path, *, method: str) -> Measure:
    ours, state = Ours(folder, backup_checkpoints=True), make(ADAM, "1GB")
    checkpoint_id = ours.save(state)

    def measure() -> float:
        damage(ours.payload(checkpoint_id))
        seconds = timed(lambda: getattr(ours.manager, method)(checkpoint_id))
        if not ours.manager.validate_checkpoint(checkpoint_id):
            raise RuntimeError("the checkpoint is still damaged")
        return seconds

    return measure


JOBS: dict[str, Callable[[Path], Measure]] = {
    "save, 1 MB": partial(_save, size="1MB"),
    "save, 100 MB": partial(_save, size="100MB"),
    "save, 1 GB": partial(_save, size="1GB"),
    "save and back up, 1 MB": partial(_save, size="1MB", backup=True),
    "save and back up, 1 GB": partial(_save, size="1GB", backup=True),
    "save among 10": partial(_save_among, count=10),
    "save among 2,000": partial(_save_among, count=2000),
    "stall of a save, 1 GB": partial(_start, size="1GB"),
    "load, 1 MB": partial(_load, size="1MB"),
    "load, 1 GB": partial(_load, size="1GB"),
    "scrub, 1 GB, cold": _scrub,
    "cleanup, 290 of 300": _clean_up,
    "repair, 1 GB": partial(_bring_back, method="repair_checkpoint"),
    "restore, 1 GB": partial(_bring_back, method="restore_checkpoint"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.commits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="another checkout, such as a git worktree of an older commit")
    parser.add_argument("--only", action="append", choices=[*JOBS], help="a job; several times for several")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk that is measured")
    return parser


if __name__ == "__main__":
    arguments: Sequence[str] = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] in JOBS:
        _work(arguments[0], Path(arguments[1]))
    else:
        main()
