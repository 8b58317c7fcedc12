"""How long a training loop stands still for a save in the background, of each kind, against copying the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks import limits
from benchmarks.asynchronous import MEMCPY
from benchmarks.harness import Measure, Row, Settings, compare, interleave, timed
from benchmarks.ours import Ours
from benchmarks.states import ADAM, make
from benchmarks.training import Loop

DEFAULT = "stall of an asynchronous save in a training loop"
OVERLAPPED = "stall of an asynchronous save that overlaps with forward and backward"
_TARGETS = {DEFAULT: 1.25, OVERLAPPED: 0.3}


def rows(settings: Settings) -> Iterator[Row]:
    """Both kinds of save, and memcpy, in turn."""
    state = make(ADAM, settings.largest)
    loop = Loop(state, settings.step_seconds)
    contenders: dict[str, Measure] = {MEMCPY: partial(limits.warm_seconds, limits.copier(state.tensors))}
    for name in _TARGETS:
        ours = Ours(settings.folder / str(len(contenders)), overlap_copy=name == OVERLAPPED)
        ours.manager.prepare(**state.parts)
        contenders[name] = partial(_stall, loop, ours)
    samples = interleave(contenders, rounds=settings.rounds, warm_up=settings.warm_up)
    for name, target in _TARGETS.items():
        yield compare(
            samples,
            name,
            MEMCPY,
            name=name,
            state=state.shape,
            size_bytes=state.size_bytes,
            target=target if state.size == "1GB" else None,
        )


def _stall(loop: Loop, ours: Ours) -> float:
    """What the call takes, and what the hooks before the optimizer's next step wait for the copy."""
    loop.step()
    call = timed(lambda: ours.manager.save_checkpoint_async(**loop.state.parts, epoch=ours.next_epoch()))
    loop.step()
    ours.manager.flush()
    ours.discard()
    return call + loop.optimizer.waited_seconds
