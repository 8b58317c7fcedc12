"""Kill trainings in the middle, and compare where they end, resumed, with where they would have ended."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.resuming.runs import Series, Trainings
from tests.resuming.setups import SETUPS
from tests.torture.rows import Outcome, Row, chosen


def kill_trainings(count: int, seed: str, folder: Path) -> Outcome:
    """Kill ``count`` times in all, trainings of each kind as often as of any other."""
    names = chosen(list(SETUPS), count, seed)
    outcome, resumed, mid_epoch = Outcome(), 0, 0
    with _trainings(folder / "first") as trainings:
        for number, name in enumerate(names):
            times = count // len(names) + (number < count % len(names))
            series = _series(trainings, folder / name, name, times, f"{seed} {name}")
            outcome.injected += series.kills
            outcome.violations += [f"seed {seed}, {line}" for line in series.wrong]
            resumed, mid_epoch = resumed + len(series.resumed), mid_epoch + series.mid_epoch
    outcome.detail = f"resumed from {resumed} checkpoints, {mid_epoch} of them in mid-epoch: {', '.join(names)}"
    return outcome


def _series(trainings: Trainings, place: Path, name: str, times: int, seed: str) -> Series:
    place.mkdir()
    whole = trainings.to_the_end(name, place / "whole")
    return trainings.killed(name, place, times, whole, random.Random(seed))


@contextmanager
def _trainings(folder: Path) -> Iterator[Trainings]:
    found = Trainings(folder)
    try:
        yield found
    finally:
        found.close()


ROWS = [
    Row(
        number=48,
        fault="kill in the middle of a training, at a random batch: 0 to 2 loader workers, two ranks",
        must_hold="the resumed run is bit-equal to an uninterrupted one",
        unit="kills",
        count=200,
        sample=2,
        run=kill_trainings,
    )
]
