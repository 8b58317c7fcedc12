"""A real training loop: what a save that overlaps with it costs its steps."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Measure, Row, Settings, compare, interleave, settle, timed
from benchmarks.ours import Ours
from benchmarks.peers import FILE_NAME, make_durable
from benchmarks.states import ADAM, State, TimedAdamW, make

STEP = "step time while a save runs in the background"
LOST = "training time lost to a save in the background"
UNTIL_DONE = "time until a save in the background is durable, while training goes on"

_OURS, _LIGHTNING, _UNDISTURBED = "ours", "Lightning AsyncCheckpointIO, torch.save + fsync", "steps without a save"
_SEQUENCE = 64
_MAX_STEPS = 40


def rows(settings: Settings) -> Iterator[Row]:
    """Whole steps beside a save."""
    state = make(ADAM, settings.largest)
    loop = Loop(state, settings.step_seconds)
    ours = Ours(settings.folder / "ours", overlap_copy=True)
    with ours.manager:
        ours.manager.prepare(**state.parts)
        yield from _steps(settings, loop, ours)
        ours.discard()


class Loop:
    """Training of a transformer on noise, in batches that last long enough."""

    def __init__(self, state: State, step_seconds: float) -> None:
        assert isinstance(state.optimizer, TimedAdamW)
        self.state, self.optimizer = state, state.optimizer
        self._batch = self._new_batch(1)
        self.forward_and_backward()
        while (taken := timed(self.forward_and_backward)) < step_seconds:
            grown = len(self._batch) * min(4.0, 1.1 * step_seconds / taken)
            self._batch = self._new_batch(max(len(self._batch) + 1, round(grown)))

    def _new_batch(self, size: int) -> torch.Tensor:
        width = next(self.state.model.parameters()).shape[1]
        return torch.randn(size, _SEQUENCE, width)

    def forward_and_backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.state.model(self._batch).square().mean()
        torch.autograd.backward(loss)

    def step(self) -> None:
        self.forward_and_backward()
        self.optimizer.timed_step()


def _begin_ours(ours: Ours, state: State) -> Any:
    return ours.manager.save_checkpoint_async(**state.parts, epoch=ours.next_epoch())


@dataclass
class _Beside:
    """Steps beside a save, from before its call, so that what the call takes counts, until it is durable."""

    loop: Loop
    begin: Callable[[], Callable[[], bool]]
    prepare: Callable[[], object]
    finish: Callable[[], object]
    steps: list[int] = field(default_factory=list)
    until_done: list[float] = field(default_factory=list)

    def measure(self) -> float:
        """Mean seconds of a step while the save runs."""
        self.prepare()
        self.loop.step()
        started = time.perf_counter()
        is_done = self.begin()
        steps = 0
        while steps == 0 or not (is_done() or steps == _MAX_STEPS):
            self.loop.step()
            steps += 1
        taken = time.perf_counter() - started
        self.finish()
        self.steps.append(steps)
        self.until_done.append(taken)
        return taken / steps

    def lost_seconds(self, means: Sequence[float], undisturbed: float) -> list[float]:
        """How much longer the steps of each measurement took than they take without a save."""
        return [(mean - undisturbed) * steps for mean, steps in zip(means, self.steps, strict=True)]


def _steps(settings: Settings, loop: Loop, ours: Ours) -> Iterator[Row]:
    beside = {_OURS: _beside_ours(loop, ours), _UNDISTURBED: _undisturbed(loop)}
    if find_spec("lightning"):
        beside[_LIGHTNING] = _beside_lightning(loop, settings.folder / "lightning")
    contenders: dict[str, Measure] = {name: side.measure for name, side in beside.items()}
    interleave(contenders, rounds=settings.warm_up, warm_up=0)
    for side in beside.values():
        side.steps.clear()
        side.until_done.clear()
    samples = interleave(contenders, rounds=settings.rounds, warm_up=0)
    state = loop.state
    describe = partial(compare, state=state.shape, size_bytes=state.size_bytes)
    yield describe(samples, _OURS, _UNDISTURBED, name=STEP)
    if _LIGHTNING in beside:
        target = 0.8 if state.size == "1GB" else None
        yield describe(samples, _OURS, _LIGHTNING, name=STEP, target=target)
        yield describe(samples, _LIGHTNING, _UNDISTURBED, name=f"{_LIGHTNING}: {STEP}")
        undisturbed = statistics.median(samples[_UNDISTURBED])
        lost = {name: side.lost_seconds(samples[name], undisturbed) for name, side in beside.items()}
        yield describe(lost, _OURS, _LIGHTNING, name=LOST)
        yield describe({name: side.until_done for name, side in beside.items()}, _OURS, _LIGHTNING, name=UNTIL_DONE)


def _undisturbed(loop: Loop) -> _Beside:
    def begin() -> Callable[[], bool]:
        return lambda: True

    return _Beside(loop, begin, settle, settle)


def _beside_ours(loop: Loop, ours: Ours) -> _Beside:
    def begin() -> Callable[[], bool]:
        done: Callable[[], bool] = _begin_ours(ours, loop.state).done
        return done

    return _Beside(loop, begin, ours.discard, ours.manager.flush)


def _beside_lightning(loop: Loop, folder: Path) -> _Beside:
    from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

    finished = threading.Event()

    class Durable(TorchCheckpointIO):  # type: ignore[misc]  # untyped where it is not installed
        """Their saver of files, but durable; it says when it has finished."""

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            Path(path).parent.mkdir()
            torch.save(checkpoint, path)
            make_durable(Path(path).parent)
            finished.set()

    saver = AsyncCheckpointIO(Durable())

    def begin() -> Callable[[], bool]:
        finished.clear()
        saver.save_checkpoint(loop.state.collected(), folder / FILE_NAME)
        return finished.is_set

    def finish() -> None:
        saver.teardown()
        shutil.rmtree(folder)

    return _Beside(loop, begin, settle, finish)
