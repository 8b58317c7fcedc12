"""Kill trainings in the middle, and compare where they end, resumed, with where they would have ended."""

from __future__ import annotations

from pathlib import Path

from tests.resuming.runs import Trainings
from tests.resuming.setups import SETUPS
from tests.torture.rows import Outcome, Row, chosen


def kill_trainings(count: int, seed: str, folder: Path) -> Outcome:
    """Kill ``count`` times in all, trainings of each kind as often as of any other."""
    names = chosen(list(SETUPS), count, seed)
    outcome, resumed, mid_epoch = Outcome(), 0, 0
    trainings = Trainings(folder)
    try:
        for number, name in enumerate(names):
            series = trainings.killed(name, count // len(names) + (number < count % len(names)), seed)
            outcome.injected += series.kills
            outcome.violations += [f"seed {seed}, {line}" for line in series.wrong]
            resumed, mid_epoch = resumed + len(series.resumed), mid_epoch + series.mid_epoch
    finally:
        trainings.close()
    outcome.detail = f"resumed from {resumed} checkpoints, {mid_epoch} of them in mid-epoch; {len(names)} kinds"
    return outcome


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
