"""Blocking saves: durable, hashed and listed, against savers that are durable at most."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import limits, peers
from benchmarks.harness import Measure, Row, Settings, compare, interleave, settle, slower, timed
from benchmarks.ours import Ours
from benchmarks.states import ADAM, FEW_LARGE, MANY_SMALL, State, make

SAVE = "durable save with SHA-256, chunk digests and manifest"
BACKUP = "durable save with SHA-256, and a durable backup"
VERIFIED_BACKUP = "durable save with SHA-256, and a durable backup, read back"

_OURS, _WRITE, _HASH, _COPY = "ours", "raw direct write", "raw SHA-256", "memcpy into warm memory"
_READ_BACK, _RECIPE = "ours, read back", "torch.save + fsync, read for SHA-256, copy + fsync, read for SHA-256"
_LIMIT = "the slower of raw direct write and raw SHA-256"
_TARGETS = {peers.TORCH_SAVE: 0.75, peers.DCP: 0.95, _LIMIT: 1.15}
_SMALL_TARGET = 2.0
_BACKUP_TARGET = 0.35


def rows(settings: Settings) -> Iterator[Row]:
    """Every size in the shape of a training run, and the other shapes at the largest size."""
    for size in settings.sizes:
        yield from _saves(settings, make(ADAM, size), peers.installed())
    for shape in (FEW_LARGE, MANY_SMALL):
        yield from _saves(settings, make(shape, settings.largest), peers.installed()[:1])


def _saves(settings: Settings, state: State, others: list[peers.Peer]) -> Iterator[Row]:
    ours = Ours(settings.folder / "ours")
    memory = limits.filled_memory(state.size_bytes)
    copy = limits.copier(state.tensors)
    contenders: dict[str, Measure] = {
        _OURS: partial(_save_ours, ours, state),
        _WRITE: _in_new_folder(settings, lambda folder: limits.write_directly(memory, folder / "raw")),
        _HASH: lambda: timed(partial(limits.hash_all, memory)),
        _COPY: partial(limits.warm_seconds, copy),
        **{peer.name: _in_new_folder(settings, peer.make_save(state)) for peer in others},
    }
    samples = interleave(contenders, rounds=settings.rounds_of(state.size), warm_up=settings.warm_up)
    ours.discard()
    describe = partial(compare, samples, _OURS, name=SAVE, state=state.shape, size_bytes=state.size_bytes)
    yield describe(slower(samples, _WRITE, _HASH), peer_name=_LIMIT, target=_target(state, _LIMIT))
    for peer in contenders:
        if peer != _OURS:
            yield describe(peer, target=_target(state, peer))


def _save_ours(ours: Ours, state: State) -> float:
    ours.discard()
    return timed(partial(ours.save, state))


def _target(state: State, peer: str) -> float | None:
    if state.shape == ADAM and state.size == "1GB":
        return _TARGETS.get(peer)
    return _SMALL_TARGET if state.size == "1MB" and peer == peers.TORCH_SAVE else None


def backup_rows(settings: Settings) -> Iterator[Row]:
    """A save that writes its backup in the same pass, and the same with the backup read back afterwards."""
    state = make(ADAM, settings.largest)
    ours = Ours(settings.folder / "ours", backup_checkpoints=True)

    def save() -> float:
        ours.discard()
        seconds = timed(partial(ours.save, state))
        _check_backup(ours, "written")
        return seconds

    def save_and_read_back() -> float:
        ours.discard()
        seconds = timed(lambda: ours.manager.validate_backup(ours.save(state)))
        _check_backup(ours, "verified")
        return seconds

    recipe = partial(peers.save_and_copy_verified, state)
    contenders = {_OURS: save, _READ_BACK: save_and_read_back, _RECIPE: _in_new_folder(settings, recipe)}
    samples = interleave(contenders, rounds=settings.rounds, warm_up=settings.warm_up)
    ours.discard()
    describe = partial(compare, samples, state=state.shape, size_bytes=state.size_bytes, peer_name=_RECIPE)
    yield describe(_OURS, _RECIPE, name=BACKUP, target=_BACKUP_TARGET if state.size == "1GB" else None)
    yield describe(_READ_BACK, _RECIPE, name=VERIFIED_BACKUP)


def _check_backup(ours: Ours, wanted: str) -> None:
    found = [ours.manager.backup_status(saved).state for saved in ours.manager.checkpoint_ids()]
    if found != [wanted]:
        raise RuntimeError(f"the states of the backups are {found}")


def _in_new_folder(settings: Settings, save: peers.Save) -> Measure:
    """Time a save into an empty folder; what it wrote is gone before the next one is timed."""
    folder: Path = settings.folder / "peer"

    def measure() -> float:
        folder.mkdir()
        settle()
        try:
            return timed(partial(save, folder))
        finally:
            shutil.rmtree(folder)

    return measure
