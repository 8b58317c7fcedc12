"""What the REST API answers, and in what time, while many clients ask and a training saves. Prints a table.

python -m benchmarks.serving --seconds 300
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx

from ckpt_lib import CheckpointConfig, CheckpointManager
from tests.web.big_store import EXPERIMENT, build, save

_CHECKPOINTS = f"/experiments/{EXPERIMENT}/checkpoints"
Times = dict[str, list[float]]
Ask = tuple[str, str, dict[str, Any]]


def asks(ids: list[str]) -> list[Callable[[random.Random], Ask]]:
    """What clients ask for, in equal parts: the kind, the path and the parameters."""
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
    """Let clients ask once a second each, and return the seconds of each kind of answer."""
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


@contextmanager
def served(config: CheckpointConfig, folder: Path) -> Iterator[tuple[str, str, int]]:
    """Run ``ckpt serve`` in a process of its own; yield the address, a token and the process id."""
    environment = os.environ | {"XDG_CONFIG_HOME": str(folder), "XDG_STATE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    tokens = ["--tokens", str(folder / "tokens.json")]
    ckpt = [str(Path(sys.executable).with_name("ckpt"))]
    made = subprocess.run(
        [*ckpt, "token", "benchmark", *tokens], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    token = made.stdout.split()[-1]
    command = [*ckpt, "serve", "--store", config.checkpoint_dir, "--port", "0", *tokens]
    with (
        (folder / "log").open("w+", encoding="utf-8") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield _address(folder / "log", process), token, process.pid
        finally:
            process.terminate()


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://\S+/api/v1", log.read_text(encoding="utf-8")):
            return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')}")


def memory_bytes(process_id: int) -> int:
    """Return the memory of a process that no file backs."""
    lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("RssAnon:"))


def cpu_seconds(process_id: int) -> float:
    """Return the time of processors that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(
    options: argparse.Namespace, config: CheckpointConfig, folder: Path
) -> tuple[Times, list[int], float]:
    """Return the times of all answers, the memory of the server in the course of them, and its processor time."""
    with CheckpointManager(config, EXPERIMENT) as manager:
        ids = manager.checkpoint_ids()
    with served(config, folder) as (url, token, process_id):
        await ask_for_a_while(url, token, ids, options.clients, 10)  # the index is filled, and threads are started
        used, begun_seconds = [memory_bytes(process_id)], cpu_seconds(process_id)
        with _training(config, options):
            watching = asyncio.create_task(_watch(process_id, used))
            times = await ask_for_a_while(url, token, ids, options.clients, options.seconds)
            watching.cancel()
        used.append(memory_bytes(process_id))
        return times, used, cpu_seconds(process_id) - begun_seconds


async def _watch(process_id: int, used: list[int]) -> None:
    while True:
        await asyncio.sleep(5)
        used.append(memory_bytes(process_id))


@contextmanager
def _training(config: CheckpointConfig, options: argparse.Namespace) -> Iterator[None]:
    """Save now and then in a process of its own, as a training does that is under way meanwhile."""
    if not options.seconds_between_saves:
        yield
        return
    context = multiprocessing.get_context("spawn")
    is_ready = context.Event()
    arguments = (config, options.checkpoints + 1, options.seconds_between_saves, is_ready)
    process = context.Process(target=train, args=arguments, daemon=True)
    process.start()
    is_ready.wait()
    try:
        yield
        if process.exitcode is not None:
            raise RuntimeError(f"the training ended with {process.exitcode}")
    finally:
        process.terminate()
        process.join()


def train(config: CheckpointConfig, first: int, seconds_between_saves: float, is_ready: Event) -> None:
    """Save for ever."""
    with CheckpointManager(config, EXPERIMENT) as manager:
        for number in itertools.count(first):
            save(manager, number)
            is_ready.set()
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
        p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
        shown = " | ".join(f"{value * 1000:.0f} ms" for value in (statistics.median(seconds), p95, max(seconds)))
        print(f"| {kind} | {len(seconds):,} | {shown} |")
    first, last, most = (f"{size / 2**20:.0f}" for size in (used[0], used[-1], max(used)))
    print(f"\nThe server's memory was {first} MiB at the start, {last} MiB at the end, and at most {most} MiB.")
    count = sum(map(len, times.values()))
    print(f"An answer took {busy_seconds / count * 1000:.1f} ms of a processor, listings after saves included.")


if __name__ == "__main__":
    main()
