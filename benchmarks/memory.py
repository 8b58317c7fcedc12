"""How much memory a blocking save needs besides the state, measured in a process of its own.

python -m benchmarks.memory ours 1GB
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import peers
from benchmarks.harness import Row, Settings, size_bytes_of
from benchmarks.ours import Ours
from benchmarks.states import ADAM, State, make

PEAK = "peak memory of a blocking save, besides the state"
_TARGET_BYTES = 128 * 2**20


def rows(settings: Settings) -> Iterator[Row]:
    """One row, of bytes; both sides are measured once, for the peak does not vary as times do."""
    ours_bytes, peer_bytes = (_measured_by_child(side, settings) for side in ("ours", "peer"))
    is_target = settings.largest == "1GB"
    yield Row(
        name=PEAK,
        state=ADAM,
        size_bytes=size_bytes_of(settings.largest),
        peer=peers.TORCH_SAVE,
        ours_bytes=ours_bytes,
        peer_bytes=peer_bytes,
        target=_TARGET_BYTES if is_target else None,
        met=ours_bytes <= _TARGET_BYTES if is_target else None,
    )


def _measured_by_child(side: str, settings: Settings) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", side, settings.largest, str(settings.folder)]
    root = Path(__file__).parent.parent
    return int(subprocess.run(command, cwd=root, stdout=subprocess.PIPE, check=True, text=True).stdout)


def peak_bytes(save: Callable[[], object]) -> int:
    """By how much the process grows at most while ``save`` runs."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status_bytes("VmRSS")
    save()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith(f"{name}:"))


def _save_of(side: str, state: State, folder: Path) -> Callable[[], object]:
    if side == "ours":
        return partial(Ours(folder).save, state)
    return partial(peers.torch_save, state, folder)


def main() -> None:
    """Measure one side and print the bytes."""
    side, size, parent = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        # A small save first: modules that are loaded once are no part of what a save needs.
        (Path(folder) / "small").mkdir()
        _save_of(side, make(ADAM, "100KB"), Path(folder) / "small")()
        save = _save_of(side, make(ADAM, size), Path(folder))
        print(peak_bytes(save))


if __name__ == "__main__":
    main()
