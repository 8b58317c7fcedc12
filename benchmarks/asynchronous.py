"""How long an asynchronous save holds the training up before it goes on by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save

from benchmarks import limits
from benchmarks.harness import Measure, Row, Settings, compare, interleave, settle, timed
from benchmarks.ours import Ours
from benchmarks.peers import torch_checkpointing_manager
from benchmarks.states import ADAM, State, make

STALL = "stall of an asynchronous save that copies at once"
FIRST = "stall of the first asynchronous save that copies at once, once prepared"

MEMCPY = "memcpy into warm memory"
_FRESH, _SHARED = "DCP async_save, as it comes", "DCP async_save, kept shared memory"
_SNAPSHOT, _TORCH_CHECKPOINTING = "torchsnapshot async_take", "torch_checkpointing"
_TARGETS = {MEMCPY: 1.25, _FRESH: 0.35, _SHARED: 1.1}


def rows(settings: Settings) -> Iterator[Row]:
    """The stall of the first save and of later ones, against copying and against others that copy."""
    state = make(ADAM, settings.largest)
    later = Ours(settings.folder / "later")
    with ExitStack() as stack:
        stack.enter_context(later.manager)
        later.manager.prepare(**state.parts)
        others = _others(settings.folder / "peer", state, stack)
        ours: dict[str, Measure] = {
            STALL: partial(stall_of, later, state),
            FIRST: _first_save(settings.folder / "first", state),
        }
        samples = interleave({**ours, **others}, rounds=settings.rounds, warm_up=settings.warm_up)
        later.discard()
    for name in ours:
        for peer in others:
            target = _TARGETS.get(peer) if state.size == "1GB" else None
            yield compare(samples, name, peer, name=name, state=state.shape, size_bytes=state.size_bytes, target=target)


def _others(folder: Path, state: State, stack: ExitStack) -> dict[str, Measure]:
    """What is measured beside us; ``stack`` closes it."""
    copy = limits.copier(state.tensors)
    stager = DefaultStager(
        StagingOptions(False, True, False, False)
    )  # not pinned, shared, not in a thread: all CPU has
    stack.callback(stager.close)
    others: dict[str, Measure] = {
        MEMCPY: partial(limits.warm_seconds, copy),
        _FRESH: _stall_of_peer(folder, partial(_dcp_save, state, folder)),
        _SHARED: _stall_of_peer(folder, partial(_dcp_save, state, folder, async_stager=stager)),
    }
    if find_spec("torchsnapshot"):
        others[_SNAPSHOT] = _stall_of_peer(folder, partial(_snapshot_save, state, folder))
    if find_spec("torch_checkpointing"):
        manager = torch_checkpointing_manager(asynchronous=True)
        stack.callback(manager.close)
        manager.prewarm_staging(state.collected())
        others[_TORCH_CHECKPOINTING] = _stall_of_peer(
            folder, lambda: manager.save(str(folder / "checkpoint"), state.collected()).result
        )
    return others


def stall_of(ours: Ours, state: State) -> float:
    """Seconds that one call of ``save_checkpoint_async`` takes; the save is over when this returns."""
    ours.discard()
    saves: list[Any] = []
    seconds = timed(lambda: saves.append(ours.manager.save_checkpoint_async(**state.parts, epoch=ours.next_epoch())))
    ours.manager.flush()  # what follows a save is over as well, so that nothing runs beside the next contender
    if saves[0].result() is None:
        raise RuntimeError("nothing was saved")
    return seconds


def _first_save(folder: Path, state: State) -> Measure:
    def measure() -> float:
        ours = Ours(folder)
        with ours.manager:
            ours.manager.prepare(**state.parts)
            seconds = stall_of(ours, state)
            ours.discard()
        return seconds

    return measure


def _stall_of_peer(folder: Path, begin: Callable[[], Callable[[], object]]) -> Measure:
    """Time ``begin``, which returns what waits for the rest of the save."""

    def measure() -> float:
        folder.mkdir()
        settle()
        waits: list[Callable[[], object]] = []
        seconds = timed(lambda: waits.append(begin()))
        waits[0]()
        shutil.rmtree(folder)
        return seconds

    return measure


def _dcp_save(state: State, folder: Path, **options: Any) -> Callable[[], object]:
    future: Any = async_save(state.collected(), checkpoint_id=folder / "dcp", no_dist=True, **options)
    wait: Callable[[], object] = future.result
    return wait


def _snapshot_save(state: State, folder: Path) -> Callable[[], object]:
    from torchsnapshot import Snapshot, StateDict

    pending = Snapshot.async_take(str(folder / "snapshot"), {"state": StateDict(**state.collected())})
    wait: Callable[[], object] = pending.wait
    return wait
