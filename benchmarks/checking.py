"""Reading everything, and bringing back what is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks import limits
from benchmarks.harness import Measure, Row, Settings, compare, interleave, settle, size_bytes_of, timed
from benchmarks.ours import Ours
from benchmarks.states import ADAM, FEW_LARGE, make

SCRUB = "scrub, 64 checkpoints on the disk alone"
REPAIR = "repair of one damaged chunk"

_FILES = 64
_SCRUB_TIMES = 8
"""How many times the largest size is scrubbed: 8 GB do not stay in any cache between the two."""
_SCRUB_ROUNDS = 3
_SHA256SUM = "sha256sum on all cores"
_HASHLIB = "Python's hashlib on all cores"
"""The same digest with the processor's own instructions, which not every sha256sum uses."""
_HASHLIB_CODE = """
import hashlib, sys
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        print(hashlib.file_digest(file, "sha256").hexdigest(), path)
"""
_RESTORE = "restoring the whole checkpoint from its backup"


def rows(settings: Settings) -> Iterator[Row]:
    """Scrubbing 8 times the largest size, and repairing a state of it."""
    yield from _scrub(settings)
    yield _repair(settings)


def _scrub(settings: Settings) -> Iterator[Row]:
    ours = Ours(settings.folder / "ours")
    each_bytes = size_bytes_of(settings.largest) * _SCRUB_TIMES // _FILES
    state = make(FEW_LARGE, f"{each_bytes // 1000}KB")
    paths = [ours.payload(ours.save(state)) for _ in range(_FILES)]

    def scrub() -> None:
        report = ours.manager.scrub(restart=True)
        if not report or report.bytes_read < each_bytes * _FILES * 0.99:
            raise RuntimeError(f"the scrub did not read everything, or found damage: {report.bytes_read} bytes read")

    hashlib_command = [sys.executable, "-c", _HASHLIB_CODE]
    peers: dict[str, Callable[[], object]] = {
        _SHA256SUM: partial(_run_on_all_cores, ["sha256sum"], paths, files_at_once=1),
        _HASHLIB: partial(_run_on_all_cores, hashlib_command, paths, files_at_once=8),  # Python takes a while to start
    }
    contenders = {"ours": _cold(paths, scrub), **{name: _cold(paths, work) for name, work in peers.items()}}
    samples = interleave(contenders, rounds=min(settings.rounds, _SCRUB_ROUNDS), warm_up=min(settings.warm_up, 1))
    size_bytes = sum(path.stat().st_size for path in paths)
    ours.discard()
    for peer in peers:
        target = 1.05 if settings.largest == "1GB" else None
        yield compare(samples, "ours", peer, name=SCRUB, state=FEW_LARGE, size_bytes=size_bytes, target=target)


def _cold(paths: list[Path], work: Callable[[], object]) -> Measure:
    def measure() -> float:
        limits.drop_cached(paths)
        return timed(work)

    return measure


def _run_on_all_cores(command: list[str], paths: list[Path], *, files_at_once: int) -> None:
    names = b"\0".join(os.fsencode(path) for path in paths)
    xargs = ["xargs", "-0", "-n", str(files_at_once), "-P", str(os.cpu_count())]
    subprocess.run([*xargs, *command], input=names, stdout=subprocess.DEVNULL, check=True)


def _repair(settings: Settings) -> Row:
    ours = Ours(settings.folder / "ours", backup_checkpoints=True)
    state = make(ADAM, settings.largest)
    checkpoint_id = ours.save(state)
    payload = ours.payload(checkpoint_id)

    def repair() -> float:
        damage(payload)
        seconds = timed(partial(ours.manager.repair_checkpoint, checkpoint_id))
        _require_intact(ours, checkpoint_id)
        return seconds

    def restore() -> float:
        damage(payload)
        seconds = timed(partial(ours.manager.restore_checkpoint, checkpoint_id))
        _require_intact(ours, checkpoint_id)
        return seconds

    samples = interleave({"ours": repair, _RESTORE: restore}, rounds=settings.rounds, warm_up=settings.warm_up)
    ours.discard()
    return compare(
        samples,
        "ours",
        _RESTORE,
        name=REPAIR,
        state=state.shape,
        size_bytes=state.size_bytes,
        target=1.1 if state.size == "1GB" else None,
    )


def damage(payload: Path) -> None:
    """Alter one byte in the middle."""
    with payload.open("r+b") as file:
        middle = payload.stat().st_size // 2
        file.seek(middle)
        byte = file.read(1)
        file.seek(middle)
        file.write(bytes([byte[0] ^ 1]))
    settle()


def _require_intact(ours: Ours, checkpoint_id: str) -> None:
    """Also reads both files, so that each round begins with them in the page cache."""
    if not ours.manager.validate_checkpoint(checkpoint_id):
        raise RuntimeError("the checkpoint is still damaged")
