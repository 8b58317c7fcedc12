"""What inspecting a large checkpoint reads: time, bytes, and pages of the file that end in the page cache.

    python -m benchmarks.inspecting --size 4GB

Each file is inspected in a process of its own, once its pages have left the page cache. Bytes are counted twice: those
that calls have read, by ``/proc/self/io``, and the pages of the file that are in the page cache afterwards, which also
count what the system has read ahead or for a mapping.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.harness import size_bytes_of
from benchmarks.limits import cached_bytes, drop_cached

_LAYERS = 200
_LIMIT_SHARE, _LIMIT_SECONDS = 0.001, 1.0
_CHILD = """
import json, sys, time
def read_bytes():
    return int(dict(line.split(": ") for line in open("/proc/self/io"))["rchar"])
def peak_bytes():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024
begun = time.perf_counter()
from ckpt_lib import inspect_checkpoint
import ckpt_lib.foreign, ckpt_lib.inspecting.stored, ckpt_lib.foreign.torch_files, ckpt_lib.foreign.safetensors_files
imported, before = time.perf_counter(), read_bytes()
found = inspect_checkpoint(sys.argv[1], stats="--stats" in sys.argv)
seconds = time.perf_counter() - imported
print(json.dumps({
    "imports": imported - begun, "seconds": seconds, "read": read_bytes() - before, "tensors": len(found.tensors),
    "problem": found.problem, "peak": peak_bytes(),
}))
"""


def main() -> None:
    """Measure both kinds of files, and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inspecting", description=__doc__)
    parser.add_argument("--size", type=size_bytes_of, default=size_bytes_of("4GB"), help="of each file, such as 4GB")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk that is measured")
    parser.add_argument("--stats", action="store_true", help="also read the tensors, and tell the memory that takes")
    options = parser.parse_args()
    writers: dict[str, Callable[[dict[str, torch.Tensor], Path], object]] = {
        "torch": lambda state, path: torch.save({"model": state, "epoch": 3}, path),
        "safetensors": save_file,
    }
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.folder) as folder:
        for name, write in writers.items():
            path = Path(folder) / f"large.{name}"
            write(_state(options.size), path)
            _measure(name, path)
            if options.stats:
                _measure(f"{name} --stats", path, "--stats")
            path.unlink()


def _state(size_bytes: int) -> dict[str, torch.Tensor]:
    elements = size_bytes // 4 // _LAYERS
    return {f"layers.{number}.weight": torch.full((elements,), float(number)) for number in range(_LAYERS)}


def _measure(name: str, path: Path, *options: str) -> None:
    drop_cached([path])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path), *options], capture_output=True, text=True, check=True, env=os.environ
    )
    found, size_bytes = json.loads(done.stdout), path.stat().st_size
    shares = found["read"] / size_bytes, cached_bytes(path) / size_bytes
    is_met = options or (max(shares) <= _LIMIT_SHARE and found["seconds"] < _LIMIT_SECONDS)
    print(
        f"{name}: {size_bytes / 1e9:.2f} GB, {found['tensors']} tensors: {found['seconds']:.3f} s after "
        f"{found['imports']:.2f} s of imports; calls read {shares[0]:.4%}, in the page cache {shares[1]:.4%}; "
        f"peak memory {found['peak'] / 2**20:.0f} MiB{'' if is_met else ' MISSED'}{found['problem'] or ''}",
        flush=True,
    )


if __name__ == "__main__":
    main()
