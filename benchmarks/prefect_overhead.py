"""What calling the save task costs over calling the manager, for a state of 1 GB.

    python -m deployments.server python -m benchmarks.prefect_overhead

Both save the same state to the same folder, in turn; the medians and their difference are printed. On a disk a save
varies by more than a call costs, so the cost of the call is also measured alone: the time between entering the task
and the manager's being called, and between the manager's return and the task's. ``--folder /dev/shm`` leaves the disk
out of it.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from prefect import flow
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from prefect_checkpoints.tasks import save_checkpoint

LIMIT_SECONDS = 0.1
WARM_UP = 4
"""Rounds that do not count: memory that a virtual machine touches for the first time makes them slower by seconds."""


class State(nn.Module):
    """Parameters of the given size in all, in tensors of 16 MiB."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        floats = 4 * 2**20
        count = max(1, size_bytes // (4 * floats))
        self.tensors = nn.ParameterList(nn.Parameter(torch.randn(floats)) for _ in range(count))


def timed(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class InsideTime:
    """Wraps the manager's save and notes how long it takes, so that the rest is the task's own cost."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._save = CheckpointManager.save_checkpoint
        CheckpointManager.save_checkpoint = self._timed()  # type: ignore[method-assign]

    def _timed(self) -> Any:
        def save(manager: CheckpointManager, **arguments: Any) -> str | None:
            started = time.perf_counter()
            try:
                return self._save(manager, **arguments)
            finally:
                self.seconds = time.perf_counter() - started

        return save


@flow
def measure(folder: str, size_bytes: int, repetitions: int, tags: list[str]) -> dict[str, list[float]]:
    """Interleave direct saves and saves through the task; returns seconds by name."""
    config = CheckpointConfig(checkpoint_dir=folder, max_checkpoints=1, backup_checkpoints=False)
    manager = CheckpointManager(config, "direct")
    model = State(size_bytes)
    inside = InsideTime()
    task = save_checkpoint.with_options(tags=tags)
    seconds: dict[str, list[float]] = {"direct": [], "task": [], "call": []}
    for number in range(1, WARM_UP + repetitions + 1):
        saves = {
            "direct": partial(manager.save_checkpoint, model=model, epoch=number),
            "task": partial(task, config, "task", model=model, epoch=number),
        }
        # In turn, each first every other time: the second of two has the disk's leftovers of the first to bear.
        for name in sorted(saves, reverse=number % 2 == 0):
            seconds[name].append(timed(saves[name]))
            if name == "task":
                seconds["call"].append(seconds["task"][-1] - inside.seconds)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-mb", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--tags", nargs="*", default=[], help="tags for the task, which by itself has none")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the checkpoints go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        seconds = measure(folder, arguments.size_mb * 10**6, arguments.repetitions, arguments.tags)
    direct, through = (statistics.median(seconds[name]) for name in ("direct", "task"))
    print(f"state of {arguments.size_mb} MB, medians of {arguments.repetitions} interleaved saves")
    print(f"  manager called directly   {direct:8.3f} s  ({_spread(seconds['direct'])})")
    print(f"  through the save task     {through:8.3f} s  ({_spread(seconds['task'])})")
    print(f"  difference                {(through - direct) * 1000:8.1f} ms")
    call = statistics.median(seconds["call"])
    print(f"  cost of the call alone    {call * 1000:8.1f} ms  ({_spread(seconds['call'])}; limit {LIMIT_SECONDS} s)")
    print(f"  peak memory               {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:8.0f} MiB")


def _spread(values: list[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f} s"


if __name__ == "__main__":
    main()
