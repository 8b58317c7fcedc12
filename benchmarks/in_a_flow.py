"""What a training pays for running as a flow: the stall of a save, and the steps between saves.

    python -m deployments.server python -m benchmarks.in_a_flow

``checkpointing(...).save`` and ``save_checkpoint_async`` copy the same state, in turn, each when the save before is
durable; medians and their difference are printed. Steps are those of a small network, in a flow whose loop calls
``count_step`` and in two equal loops without Prefect; the difference of these two is the noise.
"""

from __future__ import annotations

import argparse
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

from benchmarks.prefect_overhead import WARM_UP, State, timed
from ckpt_lib import CheckpointConfig, CheckpointManager, TrainingState
from prefect_checkpoints.tasks import checkpointing

SIZES_MB = (1, 100, 1000)
STEPS = 2000


@flow
def measure_stalls(folder: str, size_bytes: int, repetitions: int) -> dict[str, list[float]]:
    """Return the seconds that each save keeps the training, by the kind of the save."""
    config = CheckpointConfig(checkpoint_dir=folder, max_checkpoints=1, backup_checkpoints=False)
    state = TrainingState(model=State(size_bytes))
    direct = CheckpointManager(config, "direct")
    seconds: dict[str, list[float]] = {"direct": [], "in a flow": []}
    with direct, checkpointing(config, "in-a-flow", state) as run:
        direct.prepare(state)
        run.manager.prepare(state)
        for number in range(1, WARM_UP + repetitions + 1):
            run.epoch = number
            saves: dict[str, Callable[[], Any]] = {
                "direct": partial(direct.save_checkpoint_async, state, epoch=number),
                "in a flow": run.save,
            }
            for name in sorted(saves, reverse=number % 2 == 0):
                began = time.perf_counter()
                handle = saves[name]()
                seconds[name].append(time.perf_counter() - began)
                handle.result()
                time.sleep(0.05)  # the task run of the commit ends as well
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def step_seconds(after_step: Callable[[], object]) -> list[float]:
    """Return the seconds of each step of a small training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(64, 64)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(model(inputs).square().mean())
        optimizer.step()
        after_step()

    return [timed(step) for _ in range(STEPS)]


def _nothing() -> None:
    """Take the place of what a flow does after a step."""


@flow
def measure_steps(folder: str) -> list[float]:
    """Return the seconds of each step in a flow."""
    config = CheckpointConfig(checkpoint_dir=folder, backup_checkpoints=False)
    with checkpointing(config, "steps", TrainingState(model=nn.Linear(1, 1))) as run:
        return step_seconds(run.count_step)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the checkpoints go")
    arguments = parser.parse_args()
    for size_mb in SIZES_MB:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            seconds = measure_stalls(folder, size_mb * 10**6, arguments.repetitions)
        direct, in_flow = (1000 * statistics.median(seconds[name]) for name in ("direct", "in a flow"))
        print(
            f"save of {size_mb:>5} MB: direct {direct:7.1f} ms, in a flow {in_flow:7.1f} ms, {in_flow / direct:.2f} x"
        )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rounds = [(step_seconds(_nothing), measure_steps(folder), step_seconds(_nothing)) for _ in range(3)]
    first, in_flow, second = (
        1e6 * statistics.median([statistics.median(values) for values in kind]) for kind in zip(*rounds, strict=True)
    )
    print(f"step: without Prefect {first:.1f} us and {second:.1f} us, in a flow {in_flow:.1f} us")


if __name__ == "__main__":
    main()
