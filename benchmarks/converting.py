"""What converting a checkpoint takes: seconds, and the anonymous memory of a process that does nothing else.

    python -m benchmarks.converting --size 4GB

Makes a checkpoint of weights and the state of Adam, saved plain and compressed, and converts each to the formats of
other programs, with and without a cast. Each conversion runs in a child that samples ``Anonymous`` of
``/proc/self/smaps_rollup``: memory that no file backs, and that the system cannot take back. Prints Markdown, with what
``torch.load`` and ``torch.save`` take for the first of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import size_bytes_of
from benchmarks.states import ADAM, make
from ckpt_lib import CheckpointConfig, CheckpointManager, convert_checkpoint

_PERIOD_SECONDS = 0.02
_PLAIN, _COMPRESSED, _FOREIGN = "ours", "ours, compressed", "torch.save"
_CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (_PLAIN, "x.pt", {}),
    (_PLAIN, "x.pt", {"dtype": "bf16"}),
    (_PLAIN, "w.safetensors", {"only": "model", "dtype": "bf16"}),
    (_PLAIN, "x.ckpt", {}),
    (_COMPRESSED, "x.pt", {}),
    (_FOREIGN, "x.ckpt", {"dtype": "bf16"}),
)
PEER = "torch.load and torch.save"


def anonymous_bytes() -> int:
    """The memory of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("Anonymous:"))


def measured(work: Callable[[], object]) -> tuple[float, int]:
    """The seconds that work takes, and by how much the anonymous memory grows at most while it runs."""
    before, samples, done = anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(_PERIOD_SECONDS):
            samples.append(anonymous_bytes() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started, max(samples)
    finally:
        done.set()
        thread.join()


def sources(size: str, folder: Path) -> dict[str, Path]:
    """Save a state of this size in each way; return where each lies."""
    state = make(ADAM, size)
    found = {}
    for name, compression in ((_PLAIN, False), (_COMPRESSED, True)):
        config = CheckpointConfig(
            checkpoint_dir=str(folder / name), compression=compression, backup_checkpoints=False, save_rng=False
        )
        manager = CheckpointManager(config, "converting")
        manager.save_checkpoint(**state.parts, epoch=0)
        found[name] = next((folder / name / "converting").glob("*.pt*"))
    found[_FOREIGN] = folder / "script.pt"
    torch.save(state.collected(), found[_FOREIGN])
    del state, manager
    gc.collect()  # the hooks of a model and an optimizer refer to each other
    return found


def rows(options: argparse.Namespace) -> Iterator[tuple[str, str, float, int]]:
    """Yield source, target, seconds and bytes of each conversion."""
    with tempfile.TemporaryDirectory(prefix="converting-", dir=options.folder) as folder:
        paths = sources(options.size, Path(folder))
        for source, name, wanted in (*_CASES, (_FOREIGN, PEER, {})):
            target = Path(folder) / "out" / name
            found = _in_a_child(paths[source], target, wanted)
            shown = ", ".join([PEER if name == PEER else name, *map(str, wanted.values())])
            yield source, shown, *found
            for file in target.parent.glob("*.*"):
                if file.is_file():
                    file.unlink()


def _in_a_child(source: Path, target: Path, wanted: dict[str, Any]) -> tuple[float, int]:
    command = [sys.executable, "-m", "benchmarks.converting", "--child", str(source), str(target), json.dumps(wanted)]
    root = Path(__file__).parent.parent
    found = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True, text=True).stdout
    seconds, size_bytes = json.loads(found)
    return seconds, size_bytes


def _convert(source: str, target: str, wanted: str) -> None:
    """Measure one conversion, after a small one: modules that are loaded once are no part of it."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"weight": torch.ones(10)}, f"{folder}/a.pt")
        convert_checkpoint(f"{folder}/a.pt", f"{folder}/b.pt", dtype="bf16")
    Path(target).parent.mkdir(exist_ok=True)
    if Path(target).name == PEER:
        print(json.dumps(measured(lambda: torch.save(torch.load(source, weights_only=True), f"{target}.pt"))))
    else:
        print(json.dumps(measured(lambda: convert_checkpoint(source, target, **json.loads(wanted)))))


def main() -> None:
    """Print the table, or the numbers of one conversion."""
    if sys.argv[1:2] == ["--child"]:
        _convert(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="4GB", help="the size of the state, such as 4GB")
    parser.add_argument("--folder", help="a folder on the disk to measure")
    options = parser.parse_args()
    print(f"a state of {size_bytes_of(options.size) / 1e9:.3g} GB\n")
    print("| from | to | seconds | anonymous memory, MiB |\n|---|---|---|---|")
    for source, target, seconds, size_bytes in rows(options):
        print(f"| {source} | {target} | {seconds:.2f} | {size_bytes / 2**20:.0f} |", flush=True)


if __name__ == "__main__":
    main()
