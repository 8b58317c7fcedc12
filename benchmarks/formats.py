"""Safetensors and compression: what they cost beside the writer of that format, and beside no compression.

Each timed load is followed by one of the same file with one bit turned, its size and times as before: it has to be
refused, or the row would compare loads of which one does not look.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import limits, peers
from benchmarks.harness import Measure, Row, Settings, compare, interleave, settle, timed
from benchmarks.ours import Ours
from benchmarks.states import ADAM, TRANSFORMER, State, make, tensors_in
from ckpt_lib.errors import CorruptCheckpointError

COMPRESSED_SAVE = "durable save with compression"
COMPRESSED_LOAD = "verified load of a compressed checkpoint, file on the disk alone, a new process each time"
SAFETENSORS_SAVE = "durable, hashed save as safetensors"
SAFETENSORS_LOAD = "verified load of safetensors into a model, file in the page cache, a new process each time"

Loads = tuple[Callable[[], object], Callable[[], float]]
"""What loads something small, and what loads the state and returns the seconds that this took."""

_OURS, _PLAIN = "ours", "ours, not compressed"
_TORCH_LOAD = "torch.load, not compressed"
_SAVE_FILE, _LOAD_FILE = "save_file + fsync", "load_file + load_state_dict"
_SAVE_TARGET, _SAVE_TARGET_BF16, _LOAD_TARGET = 2.5, 1.6, 1.0
_SAFETENSORS_SAVE_TARGET, _SAFETENSORS_LOAD_TARGET = 1.3, 1.4


def rows(settings: Settings) -> Iterator[Row]:
    """Weights in two precisions and weights with the state of Adam, at the largest size."""
    weights = make(TRANSFORMER, settings.largest)
    in_bfloat16 = make(TRANSFORMER, settings.largest, dtype=torch.bfloat16)
    for state in (weights, in_bfloat16, make(ADAM, settings.largest)):
        yield from _compressed(
            settings, state, save_target=_SAVE_TARGET if state is not in_bfloat16 else _SAVE_TARGET_BF16
        )
    yield _safetensors_save(settings, weights)
    yield _safetensors_load(settings, weights)


def _compressed(settings: Settings, state: State, *, save_target: float) -> Iterator[Row]:
    packed = Ours(settings.folder / "packed", compression=True)
    plain = Ours(settings.folder / "plain")
    folder = settings.folder / "peer"
    folder.mkdir()
    describe = partial(compare, state=_title(state), size_bytes=state.size_bytes)
    saves = {_OURS: partial(_save, packed, state), _PLAIN: partial(_save, plain, state)}
    samples = interleave(saves, rounds=settings.rounds, warm_up=settings.warm_up)
    yield describe(samples, _OURS, _PLAIN, name=COMPRESSED_SAVE, target=_at_1gb(state, save_target))
    peers.torch_save(state, folder)
    payload, theirs = next(packed.folder.glob("*.pt.*")), folder / peers.FILE_NAME
    loads: dict[str, Measure] = {
        _OURS: partial(_in_a_child, "compressed", packed.folder, state.size),
        _TORCH_LOAD: partial(_in_a_child, "torch.load", theirs, state.size),
    }
    samples = interleave(loads, rounds=settings.rounds, warm_up=settings.warm_up)
    note = f"{payload.stat().st_size / state.size_bytes:.3f} of the size"
    target = _at_1gb(state, _LOAD_TARGET)
    yield describe(samples, _OURS, _TORCH_LOAD, name=COMPRESSED_LOAD, target=target, note=note)
    for ours in (packed, plain):
        ours.discard()
    shutil.rmtree(folder)


def _title(state: State) -> str:
    dtype = state.tensors[0].dtype
    return state.shape if dtype == torch.float32 else f"{state.shape}, {dtype}".replace("torch.", "")


def _at_1gb(state: State, target: float) -> float | None:
    return target if state.size == "1GB" else None


def _save(ours: Ours, state: State) -> float:
    ours.discard()
    return timed(partial(ours.save, state))


def _cold(path: Path, load: Callable[[], object]) -> float:
    limits.drop_cached([path])
    return timed(load)


def require_refusal(path: Path, load: Callable[[], object]) -> None:
    """Turn one bit of a file, and its size and times as they were; raise unless the load says that it is damaged."""
    times = path.stat()
    position, bit = random.randrange(times.st_size), 1 << random.randrange(8)
    _turn(path, position, bit, times)
    try:
        load()
    except CorruptCheckpointError:
        pass
    else:
        raise RuntimeError(f"bit {bit} of byte {position} of {path.name} was turned, and the load did not notice")
    finally:
        _turn(path, position, bit, times)


def _turn(path: Path, position: int, bit: int, times: os.stat_result) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ bit]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _safetensors_save(settings: Settings, state: State) -> Row:
    from safetensors.torch import save_file

    ours = Ours(settings.folder / "ours", format="safetensors", save_rng=False)
    folder = settings.folder / "peer"

    def save_and_sync() -> None:
        save_file(tensors_in(state.model.state_dict()), folder / "model.safetensors")
        peers.make_durable(folder)

    def theirs() -> float:
        folder.mkdir()
        settle()
        try:
            return timed(save_and_sync)
        finally:
            shutil.rmtree(folder)

    contenders: dict[str, Measure] = {_OURS: partial(_save, ours, state), _SAVE_FILE: theirs}
    samples = interleave(contenders, rounds=settings.rounds, warm_up=settings.warm_up)
    ours.discard()
    return compare(
        samples,
        _OURS,
        _SAVE_FILE,
        name=SAFETENSORS_SAVE,
        state=state.shape,
        size_bytes=state.size_bytes,
        target=_at_1gb(state, _SAFETENSORS_SAVE_TARGET),
    )


def _safetensors_load(settings: Settings, state: State) -> Row:
    from safetensors.torch import save_file

    ours = Ours(settings.folder / "ours", format="safetensors", save_rng=False)
    ours.save(state)
    theirs = settings.folder / "theirs.safetensors"
    save_file(tensors_in(state.model.state_dict()), theirs)
    contenders: dict[str, Measure] = {
        _OURS: partial(_in_a_child, "safetensors", ours.folder, state.size),
        _LOAD_FILE: partial(_in_a_child, "load_file", theirs, state.size),
    }
    samples = interleave(contenders, rounds=settings.rounds, warm_up=settings.warm_up)
    ours.discard()
    theirs.unlink()
    return compare(
        samples,
        _OURS,
        _LOAD_FILE,
        name=SAFETENSORS_LOAD,
        state=state.shape,
        size_bytes=state.size_bytes,
        target=_at_1gb(state, _SAFETENSORS_LOAD_TARGET),
    )


def _in_a_child(side: str, path: Path, size: str) -> float:
    command = [sys.executable, "-m", "benchmarks.formats", side, str(path), size]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    root = Path(__file__).parent.parent
    found = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True).stdout
    return float(json.loads(found))


def _load_once(side: str, path: Path, size: str) -> None:
    """Print the seconds of one load of a new process, as a training makes it that resumes.

    Something small is loaded before it, and garbage collected, so that neither side imports a module while the time is
    taken, or looks through what the imports have left.
    """
    with tempfile.TemporaryDirectory() as folder:
        small, large = _LOADS[side](Path(folder), path, size)
        small()
        gc.collect()
        print(large())


def _load_file(folder: Path, path: Path, size: str) -> Loads:
    from safetensors.torch import load_file, save_file

    model = make(TRANSFORMER, size).model
    save_file({"weight": torch.ones(1)}, folder / "small")

    def large() -> float:
        path.read_bytes()
        return timed(lambda: model.load_state_dict(load_file(path)))

    return lambda: load_file(folder / "small"), large


def _torch_load(folder: Path, path: Path, _: str) -> Loads:
    small = folder / "small"
    torch.save({"weight": torch.ones(1)}, small)
    return lambda: torch.load(small), lambda: _cold(path, lambda: torch.load(path, weights_only=True))


def _safetensors(folder: Path, path: Path, size: str) -> Loads:
    model = make(TRANSFORMER, size).model
    ours = Ours(path.parent, format="safetensors")
    payload = next(path.glob("*/model*.safetensors"))

    def large() -> float:
        load = partial(ours.manager.load_checkpoint, "latest", model=model)
        payload.read_bytes()
        seconds = timed(load)
        require_refusal(payload, load)
        return seconds

    return _small(folder, format="safetensors"), large


def _compressed_load(folder: Path, path: Path, _: str) -> Loads:
    ours = Ours(path.parent, compression=True)
    payload = next(path.glob("*.pt.*"))

    def large() -> float:
        seconds = _cold(payload, ours.load)
        require_refusal(payload, ours.load)
        return seconds

    return _small(folder, compression=True), large


def _small(folder: Path, **options: Any) -> Callable[[], object]:
    """Save a small model in the same way, and return what loads it."""
    small, other = make(TRANSFORMER, "1KB"), Ours(folder, **options)
    other.save(small)
    return partial(other.manager.load_checkpoint, "latest", model=small.model)


_LOADS: dict[str, Callable[[Path, Path, str], Loads]] = {
    "safetensors": _safetensors,
    "load_file": _load_file,
    "compressed": _compressed_load,
    "torch.load": _torch_load,
}

if __name__ == "__main__":
    _load_once(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
