"""Rows 24 to 26: wrong clocks, random retention plans against a model, and every mixture of metrics."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch
from zoneinfo import ZoneInfo

import torch

from ckpt_lib import CheckpointConfig, CheckpointError, CheckpointManager
from ckpt_lib.core.metadata import Metric
from ckpt_lib.core.monitor import Mode, Monitor
from ckpt_lib.policies.ranking import is_better, ranked
from ckpt_lib.policies.retention import (
    KeepAllOf,
    KeepAnyOf,
    KeepAtMost,
    KeepBest,
    KeepEvery,
    KeepNewerThan,
    KeepNewest,
    KeepNot,
    KeepPeriods,
    KeepPinned,
    KeepTagged,
    KeepWithin,
    RetentionPlan,
    RetentionPolicy,
    RetentionRecord,
    plan_retention,
)
from tests.torture import retention_model as model
from tests.torture.rows import Outcome, Row

START = datetime(2024, 3, 1, tzinfo=UTC)
LOSS = Monitor(metric="val_loss", mode="min")
SCORE = Monitor(metric="score", mode="max")
MONITORS: list[list[Monitor]] = [[], [LOSS], [LOSS, SCORE]]
ODD_METRICS: tuple[Metric, ...] = (math.nan, math.inf, -math.inf, None, "text")
CLOCK_STEPS = [timedelta(seconds=0), timedelta(days=366), timedelta(days=-366), timedelta(hours=1), timedelta(hours=-1)]
"""The same second again, a year off, and what daylight saving does to a clock that follows it."""
ZONES: list[tzinfo] = [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")]


# --- policies and histories ---


def random_rule(random: Random) -> RetentionPolicy:
    """Any rule, with small numbers, so that it often decides something."""
    count = random.randint(0, 4)
    by: dict[str, Any] = {
        "metric": random.choice(["val_loss", "score", "absent"]),
        "mode": random.choice(["min", "max"]),
    }
    interval: dict[str, Any] = {random.choice(["epochs", "steps", "hours"]): random.choice([1, 2, 5, 24])}
    names = random.sample(["hourly", "daily", "weekly", "monthly", "yearly"], 2)
    periods: dict[str, Any] = {name: random.randint(1, 3) for name in names}
    makers: list[Callable[[], RetentionPolicy]] = [
        lambda: KeepNewest(count=count),
        lambda: KeepBest(count=count, **by),
        lambda: KeepAtMost(count=count, **by),
        lambda: KeepWithin(budget_bytes=random.choice([0, 10, 40, 100, 300])),
        lambda: KeepEvery(**interval),
        lambda: KeepPeriods(**periods),
        lambda: random_verdict(random),
    ]
    return random.choice(makers)()


def random_verdict(random: Random) -> RetentionPolicy:
    """A rule that judges each checkpoint by itself."""
    age: dict[str, Any] = {random.choice(["seconds", "hours", "days"]): random.choice([1, 3, 30, 4000])}
    tags = tuple(random.sample(["release", "debug", "x"], random.randint(1, 2)))
    makers: list[Callable[[], RetentionPolicy]] = [
        lambda: KeepNewerThan(**age),
        lambda: KeepTagged(tags=tags),
        KeepPinned,
    ]
    return random.choice(makers)()


def random_policy(random: Random, levels: int = 3) -> RetentionPolicy:
    """A rule, or a combination of them, a few levels deep."""
    kind = random.choice(["rule", "rule", "any_of", "all_of", "not"]) if levels > 1 else "rule"
    if kind == "rule":
        return random_rule(random)
    if kind == "not":
        verdicts = tuple(random_verdict(random) for _ in range(random.randint(1, 2)))
        return KeepNot(policy=random.choice([verdicts[0], KeepAnyOf(policies=verdicts), KeepAllOf(policies=verdicts)]))
    parts = tuple(random_policy(random, levels - 1) for _ in range(random.randint(1, 3)))
    return KeepAnyOf(policies=parts) if kind == "any_of" else KeepAllOf(policies=parts)


def has_clock(policy: Any) -> bool:
    """Whether time stamps or the time of the cleanup have a say in it."""
    parts = [*getattr(policy, "policies", ()), *([policy.policy] if policy.kind == "not" else [])]
    return (
        policy.kind in ("newer_than", "periods")
        or getattr(policy, "hours", None) is not None
        or any(has_clock(part) for part in parts)
    )


class History:
    """What happens to an experiment, as far as retention sees it."""

    def __init__(self) -> None:
        self.records: list[RetentionRecord] = []
        self.protected: dict[str, str] = {}
        self.now = START
        self._sequence = 0
        self._step = 0

    def save(self, random: Random, *, healthy: bool = True) -> None:
        """One more checkpoint, now as the clock has it; now and then a run begins again from an earlier epoch."""
        self._sequence += random.choice([1, 1, 1, 3])
        self._step = max(0, self._step + random.choice([1, 3, 7, -10]))
        values = [0.0, -0.0, 1.0, 1.0, 2.0, 3, *ODD_METRICS]
        metrics = {name: random.choice(values) for name in ("val_loss", "score") if random.random() < 0.9}
        self.records.append(
            RetentionRecord(
                checkpoint_id=f"c{self._sequence}",
                sequence=self._sequence,
                epoch=self._step // 3,
                step=self._step,
                timestamp=self.now.astimezone(random.choice(ZONES)),
                size_bytes=random.choice([0, 10, 10, 10, 35, 150]),
                metrics=metrics,
                status=random.choice(["valid", "valid", "unverified"]),
                healthy=healthy,
            )
        )

    def change(self, position: int, **facts: Any) -> None:
        """Damage, heal, verify, pin or tag one of them."""
        self.records[position] = self.records[position].model_copy(update=facts)

    def move_clock(self, step: timedelta) -> None:
        self.now += step

    def execute(self, plan: RetentionPlan) -> None:
        """Carry a plan out."""
        kept = set(plan.kept_ids)
        self.records = [record for record in self.records if record.checkpoint_id in kept]

    def happen(self, random: Random) -> None:
        """One more event, at random."""
        if not self.records or random.random() < 0.5:
            self.move_clock(timedelta(seconds=random.choice([1, 60, 3000, 40_000, 400_000])))
            self.save(random, healthy=random.random() < 0.85)
            return
        if random.random() < 0.3:
            self.move_clock(random.choice(CLOCK_STEPS))
            return
        position = random.randrange(len(self.records))
        if random.random() < 0.1:
            self.protected = {self.records[position].checkpoint_id: "in use"}
            return
        changes: list[dict[str, Any]] = [
            {"status": "damaged"},
            {"status": "valid"},
            {"status": "unverified"},
            {"pinned": random.random() < 0.5},
            {"tags": tuple(random.sample(["release", "debug", "y"], random.randint(0, 2)))},
        ]
        self.change(position, **random.choice(changes))


# --- row 25: plans against the model ---


def plan_violations(
    history: History, policy: RetentionPolicy, monitors: list[Monitor], plan: RetentionPlan
) -> Iterator[str]:
    """What is wrong with a plan for the history as it is."""
    records = history.records
    kept, ids = set(plan.kept_ids), [record.checkpoint_id for record in records]
    expected = model.kept_ids(records, policy, now=history.now, monitors=monitors, protected=history.protected)
    if kept != expected:
        yield f"deletes {sorted(expected - kept)} and keeps {sorted(kept - expected)} against the model"
    if lost := precious(records, monitors, history.protected) - kept:
        yield f"gives up {sorted(lost)}"
    if [decision.checkpoint_id for decision in plan.decisions] != ids[::-1]:
        yield "is not newest first, or not one decision for each"
    if not all(decision.reason for decision in plan.decisions):
        yield "has a decision without a reason"


def precious(records: list[RetentionRecord], monitors: list[Monitor], protected: Iterable[str]) -> set[str]:
    """The last good one, the best good ones, pinned, protected and damaged ones, looked for one by one."""
    found = {record.checkpoint_id for record in records if record.pinned or record.status == "damaged"}
    found |= {record.checkpoint_id for record in records if record.checkpoint_id in protected}
    valid = [record for record in records if record.status == "valid"]
    good = [record for record in valid if record.healthy]
    found |= {record.checkpoint_id for record in (good or valid)[-1:]}
    for monitor in monitors:
        found |= model.best(good, monitor.metric, monitor.mode, 1)
    return found


def plan_at_random(count: int, seed: str, _folder: Path) -> Outcome:
    """``count`` plans in histories of 20 each, carried out one after another; half of them planned once more."""
    outcome = Outcome()
    deleted = 0
    for number in range(math.ceil(count / 20)):
        random = Random(f"{seed} {number}")
        history = History()
        for _ in range(min(20, count - outcome.injected)):
            for _ in range(random.randint(1, 4)):
                history.happen(random)
            policy, monitors = random_policy(random), random.choice(MONITORS)
            plan = _plan(history, policy, monitors)
            outcome.injected += 1
            found = list(plan_violations(history, policy, monitors, plan))
            history.execute(plan)
            deleted += len(plan.deleted_ids)
            if again := _plan(history, policy, monitors).deleted_ids:
                found.append(f"carried out, the same policy gives up {again} as well")
            outcome.violations += [f"seed {seed} {number}, plan {outcome.injected}: {policy} {text}" for text in found]
    outcome.detail = f"{deleted} checkpoints given up"
    return outcome


def _plan(history: History, policy: RetentionPolicy, monitors: list[Monitor]) -> RetentionPlan:
    return plan_retention(history.records, policy, now=history.now, monitors=monitors, protected=history.protected)


# --- row 24: clocks, in a real store ---


class WrongClock:
    """Stands where the library asks for the time."""

    def __init__(self) -> None:
        self.time = START

    def now(self, zone: tzinfo) -> datetime:
        return self.time.astimezone(zone)


def keep_by_wrong_clocks(count: int, seed: str, folder: Path) -> Outcome:
    """Histories of real saves and a real cleanup, with a clock that jumps between and before them."""
    outcome = Outcome()
    clock = WrongClock()
    deleted = 0
    with patch("ckpt_lib.core.facts.datetime", clock), patch("ckpt_lib.maintenance.cleanup.datetime", clock):
        for number in range(count):
            random = Random(f"{seed} {number}")
            store = folder / str(number)
            clock.time = START
            try:
                found, gone = _live_by(clock, random, store)
            except CheckpointError as error:
                found, gone = [f"raises {error!r}"], 0
            outcome.violations += [f"seed {seed} {number}: {text}" for text in found]
            outcome.injected += 1
            deleted += gone
    gc.collect()  # managers hold what they loaded until they are gone
    outcome.detail = f"{deleted} checkpoints deleted"
    return outcome


def _live_by(clock: WrongClock, random: Random, store: Path) -> tuple[list[str], int]:
    """One history: save a few, damage or pin one, resume from one, and clean up by rules that ask for the time."""
    config = CheckpointConfig(
        checkpoint_dir=str(store), backup_checkpoints=False, save_metadata=False, max_checkpoints=1000
    )
    weights = torch.nn.Linear(1, 1)
    losses: dict[str, float] = {}
    writer = CheckpointManager(config, "run")
    for epoch in range(random.randint(3, 6)):
        clock.time += random.choice(CLOCK_STEPS)
        loss = random.choice([1.0, 2.0, 3.0])
        losses[str(writer.save_checkpoint(model=weights, epoch=epoch, metrics={"val_loss": loss}))] = loss
    saved = list(losses)
    found = [] if writer.checkpoint_ids() == saved else ["listed in another order than saved"]
    pinned = random.choice(saved)
    writer.pin_checkpoint(pinned)
    if random.random() < 0.5:
        damaged = saved.pop(random.randrange(len(saved)))
        (payload,) = (store / "run").glob(f"{damaged}.*pt")  # a claim is in its name where the clock was wrong
        _flip_a_bit(payload, random)
    best = min(saved, key=lambda checkpoint_id: losses[checkpoint_id])  # of equals, the first
    source = random.choice(saved)
    precious = {pinned, best, saved[-1], source}
    cleaner = CheckpointManager(config, "run")
    cleaner.load_checkpoint(source, model=weights)
    clock.time += random.choice(CLOCK_STEPS)
    report = cleaner.cleanup_checkpoints(policy=_rule_about_time(random))
    left = CheckpointManager(config, "run").checkpoint_ids()
    if lost := precious - set(left):
        found.append(f"the cleanup took {sorted(lost)}")
    if left != [checkpoint_id for checkpoint_id in losses if checkpoint_id in left]:
        found.append("listed in another order than saved, after the cleanup")
    return found, len(report.deleted_ids)


def _flip_a_bit(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _rule_about_time(random: Random) -> RetentionPolicy:
    policies: list[RetentionPolicy] = [
        KeepNewerThan(seconds=1),
        KeepNewerThan(days=30),
        KeepEvery(hours=24),
        KeepPeriods(daily=1),
        KeepPeriods(hourly=2, yearly=1),
        KeepAllOf(policies=(KeepNewerThan(hours=2), KeepNot(policy=KeepPinned()))),
        KeepAtMost(count=random.randint(0, 1)),
    ]
    return random.choice(policies)


# --- row 26: metrics ---

MISSING: Any = object()
METRICS: tuple[Any, ...] = (1.0, 2.0, math.nan, math.inf, -math.inf, None, "text", MISSING)
MODES: tuple[Mode, ...] = ("min", "max")


def rank_every_order(count: int, seed: str, _folder: Path) -> Outcome:
    """Every sequence of up to five values, ties among them; with a ``count``, so many of them at random."""
    orders: Iterable[tuple[Any, ...]] = itertools.chain.from_iterable(
        itertools.product(METRICS, repeat=length) for length in range(6)
    )
    if count:
        orders = Random(seed).sample(list(orders), count)
    outcome = Outcome()
    for values in orders:
        for mode in MODES:
            outcome.violations += [f"{values} by {mode}: {text}" for text in _rank_violations(values, mode)]
        outcome.injected += 1
    return outcome


def _rank_violations(values: tuple[Any, ...], mode: Mode) -> Iterator[str]:
    monitor = Monitor(metric="m", mode=mode)
    records = [_scored(number, value) for number, value in enumerate(values, start=1)]
    # Of the values in play just two are finite, so that the right order needs no sorting.
    wanted = [n for top in ((1.0, 2.0) if mode == "min" else (2.0, 1.0)) for n, v in enumerate(values, 1) if v == top]
    found = [record.sequence for record in ranked(records[::-1], monitor)]
    if found != wanted:
        yield f"ranked {found}, not {wanted}"
    kept = plan_retention(records, KeepBest(metric="m", mode=mode, count=0), now=START, monitors=[monitor]).kept_ids
    always = dict.fromkeys([f"c{len(values)}"] * bool(values) + [f"c{number}" for number in wanted[:1]])
    if set(kept) != set(always):
        yield f"keeps {kept}, not {tuple(always)}"
    best = values[wanted[0] - 1] if wanted else None
    if any(is_better(None if value is MISSING else value, best, mode) for value in values):
        yield f"something beats {best}"


def _scored(number: int, value: Any) -> RetentionRecord:
    return RetentionRecord(
        checkpoint_id=f"c{number}",
        sequence=number,
        epoch=number,
        step=0,
        timestamp=START,
        size_bytes=1,
        metrics={} if value is MISSING else {"m": value},
        status="valid",
    )


ROWS = [
    Row(
        number=24,
        fault="clock a year or an hour off, or standing still",
        must_hold="order is by sequence; age never deletes the last or best valid, a pinned or a resumed one",
        unit="histories",
        count=1_000,
        sample=15,
        run=keep_by_wrong_clocks,
    ),
    Row(
        number=25,
        fault="random histories and retention policies",
        must_hold="each plan keeps what an independent model keeps, and carrying it out settles it",
        unit="plans",
        count=100_000,
        sample=2_000,
        run=plan_at_random,
    ),
    Row(
        number=26,
        fault="NaN, infinities, None, text, missing metrics and ties, in every order up to five",
        must_hold="never best, never an error, the earlier of equals first",
        unit="orders",
        count=0,
        sample=1_500,
        run=rank_every_order,
    ),
]
