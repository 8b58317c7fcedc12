"""``ckpt serve`` in a process of its own, and what that process takes."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckpt_lib import CheckpointConfig

_SECONDS_TO_START = 60


@contextmanager
def served(config: CheckpointConfig, folder: Path) -> Iterator[tuple[str, str, int]]:
    """Run ``ckpt serve``; yield the address, a token and the process id. Its own files go to ``folder``."""
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
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://\S+/api/v1", log.read_text(encoding="utf-8")):
            return found[0]
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')}")


def anonymous_bytes(process_id: int) -> int:
    """Return the memory of a process that no file backs."""
    lines = Path(f"/proc/{process_id}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("RssAnon:"))


def cpu_seconds(process_id: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def columns(seconds: Sequence[float]) -> str:
    """Return the median, the 95th percentile and the slowest of some times, as columns of a Markdown table."""
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return " | ".join(f"{value * 1000:,.0f} ms" for value in (statistics.median(seconds), p95, max(seconds)))
