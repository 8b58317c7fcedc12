"""Verified loads, from memory and from the disk, against loads that verify nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import limits, peers
from benchmarks.harness import Measure, Row, Settings, compare, interleave, timed
from benchmarks.ours import Ours
from benchmarks.states import ADAM, TRANSFORMER, State, make

WARM = "verified load into a model, file in the page cache"
COLD = "verified load, file on the disk alone"
COLD_MODEL = "verified load into a model, file on the disk alone"

_OURS = "ours"
_TORCH_LOAD = "torch.load"
_INTO_MODEL = "torch.load + load_state_dict"
_MAPPED = "torch.load(mmap=True) + load_state_dict"
_WARM_TARGET, _COLD_TARGET = 0.25, 0.9


def rows(settings: Settings) -> Iterator[Row]:
    """A model alone at the largest size, warm and cold; a model and its optimizer at every size, warm."""
    yield from _loads(settings, make(TRANSFORMER, settings.largest), cold=True)
    for size in settings.sizes:
        yield from _loads(settings, make(ADAM, size), cold=False)


def _loads(settings: Settings, state: State, *, cold: bool) -> Iterator[Row]:
    stored = _Stored(settings.folder, state)
    is_target = state.shape == TRANSFORMER and state.size == "1GB"
    try:
        yield from _warm(settings, stored, target=_WARM_TARGET if is_target else None)
        if cold:
            yield from _cold(settings, stored, target=_COLD_TARGET if is_target else None)
    finally:
        stored.discard()


class _Stored:
    """One state, saved by us and by every peer."""

    def __init__(self, folder: Path, state: State) -> None:
        self.state = state
        self.ours = Ours(folder / "ours")
        self.checkpoint_id = self.ours.save(state)
        self._folder = folder / "peers"
        self.loads = {peer.name: self._saved_by(peer) for peer in peers.installed() if peer.name != peers.DCP_PLAIN}

    def _saved_by(self, peer: peers.Peer) -> Callable[[], object]:
        folder = self._folder / peer.name.replace(" ", "_")
        folder.mkdir(parents=True)
        peer.make_save(self.state)(folder)
        return partial(peer.make_load(self.state), folder)

    @property
    def torch_folder(self) -> Path:
        return self._folder / peers.TORCH_SAVE.replace(" ", "_")

    def load_ours(self) -> object:
        return self.ours.manager.load_checkpoint(self.checkpoint_id)

    def load_ours_into_model(self) -> object:
        return self.ours.manager.load_checkpoint(self.checkpoint_id, **self.state.parts)

    def files(self) -> list[Path]:
        """Ours and that of ``torch.save``."""
        return [self.ours.payload(self.checkpoint_id), self.torch_folder / peers.FILE_NAME]

    def discard(self) -> None:
        self.ours.discard()
        shutil.rmtree(self._folder)


def _warm(settings: Settings, stored: _Stored, *, target: float | None) -> Iterator[Row]:
    for path in stored.files():
        path.read_bytes()  # a writer around the page cache leaves nothing there
    loads = dict(stored.loads)
    loads[_INTO_MODEL] = loads.pop(peers.TORCH_SAVE)
    loads[_MAPPED] = partial(peers.torch_load, stored.state, stored.torch_folder, mapped=True)
    state = stored.state

    def warm(load: Callable[[], object]) -> float:
        state.renew_optimizer_state()
        return timed(load)

    contenders: dict[str, Measure] = {_OURS: partial(warm, stored.load_ours_into_model)}
    contenders |= {name: partial(warm, load) for name, load in loads.items()}
    samples = interleave(contenders, rounds=settings.rounds_of(state.size), warm_up=settings.warm_up)
    for peer in loads:
        yield compare(
            samples,
            _OURS,
            peer,
            name=WARM if state.optimizer is None else WARM.replace("a model", "model and optimizer"),
            state=state.shape,
            size_bytes=state.size_bytes,
            target=target if peer == _INTO_MODEL else None,
        )


def _cold(settings: Settings, stored: _Stored, *, target: float | None) -> Iterator[Row]:
    state, files = stored.state, stored.files()

    def read_by_torch() -> object:
        return torch.load(files[1], weights_only=True)

    def cold(load: Callable[[], object]) -> float:
        limits.drop_cached(files)
        return timed(load)  # what it returns is gone when the next one drops the pages that it maps

    samples = interleave(
        {
            COLD: partial(cold, stored.load_ours),
            _TORCH_LOAD: partial(cold, read_by_torch),
            COLD_MODEL: partial(cold, stored.load_ours_into_model),
            _INTO_MODEL: partial(cold, stored.loads[peers.TORCH_SAVE]),
        },
        rounds=settings.rounds,
        warm_up=settings.warm_up,
    )
    describe = partial(compare, samples, state=state.shape, size_bytes=state.size_bytes)
    yield describe(COLD, _TORCH_LOAD, name=COLD, target=target)
    yield describe(COLD_MODEL, _INTO_MODEL, name=COLD_MODEL)
