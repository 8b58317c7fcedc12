"""Rows 1, 2 and 5 to 7: processes that are killed at work. What was acknowledged stays, and nothing is broken."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ckpt_lib.errors import CheckpointError
from tests.torture import kill_methods
from tests.torture.kill_methods import Call, End, Fault
from tests.torture.rows import Outcome, Row
from tests.torture.scenario import (
    COPIES,
    DELETIONS,
    OPERATIONS,
    RECOVERIES,
    SAVES,
    Operation,
    Scenario,
    broken_promises,
    build_scenario,
)

_MEASUREMENTS = 3
_LATEST = 1.15
"""As a part of the usual duration, how late a child may be killed."""
_SOONER, _LATER = 0.9, 1.03
"""How a duration is corrected by each kill that came too late, and by each that did not: machines have other things to
do as well. One kill in five comes too late then."""

ACKNOWLEDGED, DONE, HALFWAY, UNTOUCHED = "acknowledged", "done but not acknowledged", "halfway", "before any change"


@dataclass
class Campaign:
    """Kills in copies of one scenario, and what came of them."""

    folder: Path
    format: str = "torch"
    original: Scenario = field(init=False)
    before: dict[str, str] = field(init=False)
    outcome: Outcome = field(default_factory=Outcome)
    moments: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.original = build_scenario(self.folder / "original", self.format)
        self.before = self.original.contents()

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    def scenario(self) -> Scenario:
        """A fresh copy, which takes the place of the last one."""
        return self.original.copied_to(self.folder / "scenario")

    def strike(self, label: str, operation: Operation, scenario: Scenario, kill: Callable[[], End]) -> bool:
        """``kill`` someone at an operation, and judge what he left; whether there was someone left to kill."""
        try:
            end = kill()
        except RuntimeError as error:
            self.outcome.violations.append(f"{label}: {error}")
            return False
        if end.is_killed:
            self.outcome.injected += 1
            self.moments[self._moment(operation, scenario, end.is_acknowledged)] += 1
        broken = broken_promises(scenario, self.before, operation, is_acknowledged=end.is_acknowledged)
        self.outcome.violations += [f"{label}: {promise}" for promise in broken]
        return end.is_killed

    def _moment(self, operation: Operation, scenario: Scenario, is_acknowledged: bool) -> str:
        if is_acknowledged:
            return ACKNOWLEDGED
        try:
            if operation.is_done(scenario):
                return DONE
        except CheckpointError:
            return HALFWAY
        return UNTOUCHED if scenario.contents() == self.before and not scenario.unfinished() else HALFWAY

    def finish(self, *details: str) -> Outcome:
        counted = [f"{self.moments[name]} {name}" for name in (UNTOUCHED, HALFWAY, DONE, ACKNOWLEDGED)]
        self.outcome.detail = "; ".join([", ".join(counted), *details])
        return self.outcome


def _act(operation: Operation, scenario: Scenario) -> Callable[[], object]:
    return partial(operation.act, scenario)


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
                kill_methods.duration_seconds(_act(operation, self.campaign.scenario())) for _ in range(_MEASUREMENTS)
            ]
            self.known[name] = sorted(durations)[_MEASUREMENTS // 2]
        return rng.uniform(0, _LATEST * self.known[name])

    def learn(self, name: str, *, was_late: bool) -> None:
        self.known[name] *= _SOONER if was_late else _LATER


def _kills_by_time(
    campaign: Campaign, operations: dict[str, Operation], count: int, seed: str, weights: Sequence[int] | None = None
) -> None:
    timing = Timing(campaign)
    for number in range(count):
        rng = random.Random(f"{seed} time {number}")
        (name,) = rng.choices(list(operations), weights)
        delay_seconds = timing.delay_seconds(name, operations[name], rng)
        scenario, late = campaign.scenario(), campaign.moments[ACKNOWLEDGED]
        campaign.strike(
            f"{number}, {name} killed after {delay_seconds * 1000:.1f} ms",
            operations[name],
            scenario,
            partial(kill_methods.killed_after, _act(operations[name], scenario), delay_seconds),
        )
        timing.learn(name, was_late=campaign.moments[ACKNOWLEDGED] > late)


def _row_1(count: int, seed: str, folder: Path) -> Outcome:
    with kill_methods.one_thread():
        campaign = Campaign(folder)
        _kills_by_time(campaign, SAVES, count, seed, weights=[2, 5, 4, 2])
        return campaign.finish()


# --- at system calls ---


def _calls(campaign: Campaign, operation: Operation) -> list[Call]:
    scenario = campaign.scenario()
    return kill_methods.calls_of(_act(operation, scenario), campaign.trace)


def _kill_at(campaign: Campaign, name: str, operation: Operation, call: Call) -> bool:
    scenario = campaign.scenario()
    return campaign.strike(
        f"{name} killed at {call.name} {call.number}",
        operation,
        scenario,
        partial(kill_methods.killed_at, _act(operation, scenario), call, campaign.trace),
    )


def _kill_at_every(campaign: Campaign, name: str, operation: Operation) -> int:
    """At each call that was counted, and beyond, until one is not reached any more; returns how many there were.

    Not beyond those that open files: what comes then only reads.
    """
    calls = _calls(campaign, operation)
    for call in calls:
        _kill_at(campaign, name, operation, call)
    killed = len(calls)
    for last in {call.name: call for call in calls if call.name not in ("open", "openat")}.values():
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
    with kill_methods.one_thread():
        campaign = Campaign(folder)
        if count:
            _kills_at_calls(campaign, OPERATIONS, count, seed)
            return campaign.finish()
        calls = {name: _kill_at_every(campaign, name, operation) for name, operation in OPERATIONS.items()}
        return campaign.finish("calls: " + ", ".join(f"{number} of {name}" for name, number in calls.items()))


# --- deletions and copies, by time and at system calls ---


def _row_of(operations: dict[str, Operation]) -> Callable[[int, str, Path], Outcome]:
    def run(count: int, seed: str, folder: Path) -> Outcome:
        """Half of them by time and half at system calls; all of them by time where there is no ``strace``."""
        with kill_methods.one_thread():
            campaign = Campaign(folder)
            if not kill_methods.strace_is_lacking():
                _kills_at_calls(campaign, operations, count // 2, seed)
            at_calls = campaign.outcome.injected
            _kills_by_time(campaign, operations, count - at_calls, seed)
            return campaign.finish(f"{at_calls} at a system call, {count - at_calls} after a random time")

    return run


# --- recoveries ---


def _row_7(count: int, seed: str, folder: Path) -> Outcome:
    with kill_methods.one_thread():
        campaign = Campaign(folder)
        timing = Timing(campaign)
        functions = {
            name: kill_methods.functions_of(_act(item, campaign.scenario())) for name, item in OPERATIONS.items()
        }
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            crashed = rng.choice(list(OPERATIONS))
            recovery = rng.choice([name for name in RECOVERIES if _can_follow(RECOVERIES[name], OPERATIONS[crashed])])
            scenario = campaign.scenario()
            at = rng.randrange(1, len(functions[crashed]) + 1)
            kill_methods.struck(_act(OPERATIONS[crashed], scenario), Fault(at, kill=True, torn=rng.random() < 0.5))
            delay_seconds = timing.delay_seconds(recovery, RECOVERIES[recovery], rng)
            campaign.strike(
                f"{number}, {crashed} killed at call {at}, {recovery} after {delay_seconds * 1000:.1f} ms",
                _after(OPERATIONS[crashed], RECOVERIES[recovery]),
                scenario,
                partial(kill_methods.killed_after, _act(RECOVERIES[recovery], scenario), delay_seconds),
            )
        return campaign.finish(f"of {len(RECOVERIES)} kinds, each after one of {len(OPERATIONS)} operations was killed")


def _can_follow(recovery: Operation, crashed: Operation) -> bool:
    """What was retired is not there to be mended."""
    return not recovery.mends & crashed.gives_up


def _after(crashed: Operation, recovery: Operation) -> Operation:
    """A recovery in a scenario in which something else was left halfway."""
    return replace(
        recovery,
        gives_up=crashed.gives_up | recovery.gives_up,
        touches=lambda scenario: (*crashed.touches(scenario), *recovery.touches(scenario)),
    )


_INV = "acknowledged: there and valid; else absent or complete; nothing else changed; the next operations work at once"

ROWS = [
    Row(
        number=1,
        fault="kill during save",
        must_hold=_INV,
        unit="kills",
        count=1000,
        sample=12,
        run=_row_1,
    ),
    Row(
        number=2,
        fault="kill at each system call of every operation",
        must_hold=_INV,
        unit="kills",
        count=0,
        sample=16,
        run=_row_2,
        lacks=kill_methods.strace_is_lacking,
    ),
    Row(
        number=5,
        fault="kill during delete, undelete, cleanup",
        must_hold="each checkpoint is un-referenced or intact, never listed and broken",
        unit="kills",
        count=500,
        sample=10,
        run=_row_of(DELETIONS),
    ),
    Row(
        number=6,
        fault="kill during backup, export, import, restore",
        must_hold="the source is untouched; a second run converges",
        unit="kills",
        count=500,
        sample=10,
        run=_row_of(COPIES),
    ),
    Row(
        number=7,
        fault="kill during recovery from another kill",
        must_hold="the second run succeeds",
        unit="kills",
        count=300,
        sample=10,
        run=_row_7,
    ),
]
