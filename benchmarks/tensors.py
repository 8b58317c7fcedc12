"""What each tensor costs: the state of a mixture of many small experts, where bytes hardly matter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import peers
from benchmarks.harness import Row, Settings, compare, interleave, settle, size_bytes_of, timed
from benchmarks.ours import Ours
from benchmarks.states import State, experts

SAVE = "durable save of many small tensors"
LOAD = "verified load of many small tensors"

_OURS, _LOAD = "ours", "torch.load"
_COUNTS, _COUNTS_OF_A_REHEARSAL = (10_000, 92_160), (100,)
_TARGET = 1.5


def rows(settings: Settings) -> Iterator[Row]:
    """The parameters of two models, and four tensors for each of them; how large these are does not matter."""
    is_real = size_bytes_of(settings.largest) >= 10**9
    for count in _COUNTS if is_real else _COUNTS_OF_A_REHEARSAL:
        yield from _compared(settings, experts(count), target=_TARGET if is_real else None)


def _compared(settings: Settings, state: State, *, target: float | None) -> Iterator[Row]:
    ours, folder = Ours(settings.folder / "ours"), settings.folder / "peer"

    def save() -> float:
        ours.discard()
        return timed(partial(ours.save, state))

    def save_by_torch() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        settle()
        return timed(partial(peers.torch_save, state, folder))

    describe = partial(compare, state=state.shape, size_bytes=state.size_bytes, target=target)
    turns = partial(interleave, rounds=settings.rounds, warm_up=min(1, settings.warm_up))
    yield describe(turns({_OURS: save, peers.TORCH_SAVE: save_by_torch}), _OURS, peers.TORCH_SAVE, name=SAVE)
    (checkpoint_id,) = ours.manager.checkpoint_ids()
    loads = {
        _OURS: lambda: timed(lambda: ours.manager.load_checkpoint(checkpoint_id)),
        _LOAD: lambda: timed(partial(_load, folder / peers.FILE_NAME)),
    }
    yield describe(turns(loads), _OURS, _LOAD, name=LOAD)
    ours.discard()
    shutil.rmtree(folder)


def _load(path: Path) -> object:
    return torch.load(path, weights_only=True)
