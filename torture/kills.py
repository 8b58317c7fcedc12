"""Rows 1, 2 and 5 to 7: processes that are killed at work. Nothing acknowledged is lost, and nothing broken is found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckpt_lib.errors import CheckpointError
from torture import strikes
from torture.rows import Outcome, Row
from torture.strikes import Call, End, Fault
from torture.worlds import (
    COPIES,
    DELETIONS,
    OPERATIONS,
    RECOVERIES,
    SAVES,
    Operation,
    World,
    broken_promises,
    build_world,
)

_MEASUREMENTS = 5
_LATEST = 1.15
"""As a part of the usual duration, how late a child may be killed."""

ACKNOWLEDGED, DONE, HALFWAY, UNTOUCHED = "acknowledged", "done but not acknowledged", "halfway", "before any change"


@dataclass
class Campaign:
    """Kills in copies of one world, and what came of them."""

    folder: Path
    original: World = field(init=False)
    before: dict[str, str] = field(init=False)
    outcome: Outcome = field(default_factory=Outcome)
    moments: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.original = build_world(self.folder / "original")
        self.before = self.original.contents()

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    def world(self) -> World:
        """A fresh copy, which takes the place of the last one."""
        return self.original.copied_to(self.folder / "world")

    def strike(self, label: str, operation: Operation, world: World, kill: Callable[[], End]) -> bool:
        """``kill`` someone at an operation, and judge what he left; whether there was someone left to kill."""
        try:
            end = kill()
        except RuntimeError as error:
            self.outcome.violations.append(f"{label}: {error}")
            return False
        if end.is_killed:
            self.outcome.injected += 1
            self.moments[self._moment(operation, world, end.is_acknowledged)] += 1
        broken = broken_promises(world, self.before, operation, is_acknowledged=end.is_acknowledged)
        self.outcome.violations += [f"{label}: {promise}" for promise in broken]
        return end.is_killed

    def _moment(self, operation: Operation, world: World, is_acknowledged: bool) -> str:
        if is_acknowledged:
            return ACKNOWLEDGED
        try:
            if operation.is_done(world):
                return DONE
        except CheckpointError:
            return HALFWAY
        return UNTOUCHED if world.contents() == self.before else HALFWAY

    def finish(self, *details: str) -> Outcome:
        counted = [f"{self.moments[name]} {name}" for name in (UNTOUCHED, HALFWAY, DONE, ACKNOWLEDGED)]
        self.outcome.detail = "; ".join([", ".join(counted), *details])
        return self.outcome


def _act(operation: Operation, world: World) -> Callable[[], object]:
    return lambda: operation.act(world)


# --- by time ---


@dataclass(frozen=True)
class Timing:
    """How long operations take in a child of this process on this machine."""

    campaign: Campaign
    known: dict[str, float] = field(default_factory=dict)

    def delay_seconds(self, name: str, operation: Operation, rng: random.Random) -> float:
        """A random moment of the operation, or just after its usual end."""
        if name not in self.known:
            durations = [
                strikes.duration_seconds(_act(operation, self.campaign.world())) for _ in range(_MEASUREMENTS)
            ]
            self.known[name] = sorted(durations)[_MEASUREMENTS // 2]
        return rng.uniform(0, _LATEST * self.known[name])


def _kills_by_time(
    campaign: Campaign, operations: dict[str, Operation], count: int, seed: str, weights: Sequence[int] | None = None
) -> None:
    timing = Timing(campaign)
    for number in range(count):
        rng = random.Random(f"{seed} time {number}")
        (name,) = rng.choices(list(operations), weights)
        delay_seconds = timing.delay_seconds(name, operations[name], rng)
        world = campaign.world()
        campaign.strike(
            f"{number}, {name} killed after {delay_seconds * 1000:.1f} ms",
            operations[name],
            world,
            lambda world=world, name=name, delay=delay_seconds: strikes.killed_after(  # type: ignore[misc]
                _act(operations[name], world), delay
            ),
        )


def _row_1(count: int, seed: str, folder: Path) -> Outcome:
    with strikes.one_thread():
        campaign = Campaign(folder)
        _kills_by_time(campaign, SAVES, count, seed, weights=[2, 5, 4, 2])
        return campaign.finish()


# --- at system calls ---


def _calls(campaign: Campaign, operation: Operation) -> list[Call]:
    world = campaign.world()
    return strikes.calls_of(_act(operation, world), campaign.trace)


def _kill_at(campaign: Campaign, name: str, operation: Operation, call: Call) -> bool:
    world = campaign.world()
    return campaign.strike(
        f"{name} killed at {call.name} {call.number}",
        operation,
        world,
        lambda: strikes.killed_at(_act(operation, world), call, campaign.trace),
    )


def _kill_at_every(campaign: Campaign, name: str, operation: Operation) -> int:
    """At each call that was counted, and beyond, until one is not reached any more; returns how many there were."""
    calls = _calls(campaign, operation)
    for call in calls:
        _kill_at(campaign, name, operation, call)
    killed = len(calls)
    for last in {call.name: call for call in calls}.values():
        beyond = Call(last.name, max(call.number for call in calls if call.name == last.name) + 1)
        while _kill_at(campaign, name, operation, beyond):
            killed += 1
            beyond = replace(beyond, number=beyond.number + 1)
    return killed


def _kills_at_calls(campaign: Campaign, operations: dict[str, Operation], count: int, seed: str) -> None:
    """At ``count`` calls of all that the operations make."""
    every = [(name, call) for name, operation in operations.items() for call in _calls(campaign, operation)]
    rng = random.Random(f"{seed} calls")
    for name, call in rng.sample(every, min(count, len(every))):
        _kill_at(campaign, name, operations[name], call)


def _row_2(count: int, seed: str, folder: Path) -> Outcome:
    with strikes.one_thread():
        campaign = Campaign(folder)
        if count:
            _kills_at_calls(campaign, OPERATIONS, count, seed)
            return campaign.finish()
        calls = {name: _kill_at_every(campaign, name, operation) for name, operation in OPERATIONS.items()}
        return campaign.finish("calls: " + ", ".join(f"{number} of {name}" for name, number in calls.items()))
