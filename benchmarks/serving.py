"""How soon the REST API answers while many clients ask and a training saves. Prints a table.

python -m benchmarks.serving --seconds 300
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx

from benchmarks.served import anonymous_bytes, columns, cpu_seconds, served
from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.web.big_store import EXPERIMENT, build, save

_CHECKPOINTS = f"/experiments/{EXPERIMENT}/checkpoints"
_SECONDS_TO_SAVE = 120
Times = dict[str, list[float]]
Ask = tuple[str, str, dict[str, Any]]


def asks(ids: list[str]) -> list[Callable[[random.Random], Ask]]:
    """Return what clients ask for, in equal parts: the kind, the path and the parameters."""
    last = len(ids) // 10
    return [
        lambda _: ("list, newest first", _CHECKPOINTS, {"descending": True}),
        lambda chance: ("list, a later page", _CHECKPOINTS, {"after": chance.choice(ids)}),
        lambda _: ("list, by a metric", _CHECKPOINTS, {"sort_by": "val_loss"}),
        lambda chance: (
            "list, by a metric, a later page",
            _CHECKPOINTS,
            {"sort_by": "accuracy", "after": chance.choice(ids)},
        ),
        lambda chance: ("search", _CHECKPOINTS, {"search": f"epoch_{chance.randrange(last):04}"}),
        lambda _: ("list, conditions", _CHECKPOINTS, {"where": ["val_loss<0.3", "epoch>=10"], "tags": "keep"}),
        lambda chance: ("show, an id", f"{_CHECKPOINTS}/{chance.choice(ids)}", {}),
        lambda _: ("show, best", f"{_CHECKPOINTS}/best", {}),
        lambda _: ("show, latest", f"{_CHECKPOINTS}/latest", {}),
        lambda chance: ("show, an epoch and step", f"{_CHECKPOINTS}/{_short(chance.choice(ids))}", {}),
    ]


def _short(checkpoint_id: str) -> str:
    return "_".join(checkpoint_id.split("_")[1:5])


async def ask_for_a_while(url: str, token: str, ids: list[str], clients: int, seconds: float) -> Times:
    """Let each client ask once a second, and return the seconds that each kind of answer took."""
    times: Times = defaultdict(list)
    kinds, limits = asks(ids), httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"Authorization": f"Bearer {token}"}

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        chance = random.Random(number)
        begin = time.monotonic() + number / clients  # people do not all ask at the same moment
        for turn in range(int(seconds)):
            await asyncio.sleep(max(0.0, begin + turn - time.monotonic()))
            kind, path, parameters = kinds[(number + turn) % len(kinds)](chance)
            started = time.perf_counter()
            response = await client.get(path, params=parameters)
            times[kind].append(time.perf_counter() - started)
            if response.status_code != httpx.codes.OK:
                raise RuntimeError(f"{kind}: {response.status_code} {response.text}")

    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False) as client:
        await asyncio.gather(*(ask(client, number) for number in range(clients)))
    return times


async def measure(
    options: argparse.Namespace, config: CheckpointConfig, folder: Path
) -> tuple[Times, list[int], float]:
    """Return the times of all answers, the memory of the server in the course of them, and its processor time."""
    with CheckpointManager(config, EXPERIMENT) as manager:
        ids = manager.checkpoint_ids()
    training = _training(config, options) if options.seconds_between_saves else nullcontext()
    with served(config, folder) as (url, token, process_id):
        await ask_for_a_while(url, token, ids, options.clients, 10)  # the index is filled, and threads are started
        used, begun_seconds = [anonymous_bytes(process_id)], cpu_seconds(process_id)
        with training:
            watching = asyncio.create_task(_watch(process_id, used))
            times = await ask_for_a_while(url, token, ids, options.clients, options.seconds)
            watching.cancel()
        used.append(anonymous_bytes(process_id))
        return times, used, cpu_seconds(process_id) - begun_seconds


async def _watch(process_id: int, used: list[int]) -> None:
    """Note the memory of a process every few seconds, until this task is cancelled."""
    while True:
        await asyncio.sleep(5)
        used.append(anonymous_bytes(process_id))


@contextmanager
def _training(config: CheckpointConfig, options: argparse.Namespace) -> Iterator[None]:
    """Save now and then in a process of its own, which shares no interpreter with the clients that are timed."""
    context = multiprocessing.get_context("spawn")
    has_saved = context.Event()
    arguments = (config, options.checkpoints + 1, options.seconds_between_saves, has_saved)
    process = context.Process(target=train, args=arguments, daemon=True)
    process.start()
    try:
        if not has_saved.wait(_SECONDS_TO_SAVE):
            raise RuntimeError("the training did not save")
        yield
        if process.exitcode is not None:
            raise RuntimeError(f"the training ended with {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def train(config: CheckpointConfig, first: int, seconds_between_saves: float, has_saved: Event) -> None:
    """Save until this process is terminated; ``first`` is the number of the first checkpoint."""
    with CheckpointManager(config, EXPERIMENT) as manager:
        for number in itertools.count(first):
            save(manager, number)
            has_saved.set()
            time.sleep(seconds_between_saves)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=5_000)
    parser.add_argument("--clients", type=int, default=50, help="each asks once a second")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seconds-between-saves", type=float, default=10, help="0 for no training")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-", dir=options.folder) as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        config = build(Path(folder) / "store", options.checkpoints)
        times, used, busy_seconds = asyncio.run(measure(options, config, Path(folder)))
    print("| answer | count | median | p95 | slowest |\n|---|---|---|---|---|")
    for kind, seconds in [*sorted(times.items()), ("all", [second for found in times.values() for second in found])]:
        print(f"| {kind} | {len(seconds):,} | {columns(seconds)} |")
    first, last, most = (f"{size / 2**20:.0f}" for size in (used[0], used[-1], max(used)))
    print(f"\nThe server's memory was {first} MiB at the start, {last} MiB at the end, and at most {most} MiB.")
    count = sum(map(len, times.values()))
    print(f"An answer took {busy_seconds / count * 1000:.1f} ms of processor time, listings after saves included.")


if __name__ == "__main__":
    main()
