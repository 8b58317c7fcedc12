"""Row 43: answers that are lost, at each operation of the store, whatever conditions the store knows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ckpt_lib.errors import CheckpointError, ConfigError, StoreUnavailableError
from ckpt_lib.testing import FaultPlan
from tests.experiment.crashes import OPERATIONS, broken_promises
from tests.torture.places import LOCAL, MISSING, content_of, lacks_conditions, places, steps_of
from tests.torture.rows import Outcome, Row, chosen, told

When = Literal["before", "after"]
KINDS = (*MISSING, LOCAL)


def lose_answers(count: int, seed: str, folder: Path) -> Outcome:
    """Lose each answer of each operation on each kind of store in turn; with a ``count``, so many of them at random."""
    outcome = Outcome()
    times: Counter[str] = Counter()
    moments: tuple[When, ...] = ("before", "after")
    every = [(*step, when) for step in steps_of(KINDS, folder) for when in moments]
    for number, (kind, name, step, when) in enumerate(chosen(every, count, seed)):
        ending, wrong = _lose(kind, name, when, step, folder / str(number))
        times[ending] += 1
        outcome.note(f"{kind}, {name}, {when} operation {step}", wrong)
    for kind, name in itertools.product(filter(lacks_conditions, KINDS), OPERATIONS):
        outcome.violations += [f"{kind}, {name}, without a single writer: {line}" for line in _refuse(kind, name)]
    outcome.detail = f"{told(times)}; {len(OPERATIONS)} operations of the protocol, {len(KINDS)} kinds of store"
    return outcome


def _lose(kind: str, name: str, when: When, step: int, folder: Path) -> tuple[str, list[str]]:
    """Fail one operation of the store, before it is done or when it is: its answer is lost either way."""
    place = next(places(kind, folder))
    plan = FaultPlan(fail_at=step, when=when, error=StoreUnavailableError)
    try:
        OPERATIONS[name].act(place.another(plan))
        ending = "done all the same"
    except CheckpointError as error:
        ending = "refused" if isinstance(error, StoreUnavailableError) else f"refused as {type(error).__name__}"
    except Exception as error:
        return "ended otherwise", [f"{type(error).__name__}: {error}"]
    operation = plan.calls[step - 1]
    if operation.startswith("put") and "/checkpoint_epoch" in operation and ending != "done all the same":
        return ending, [f"{operation} was not asked about again: {ending}"]
    try:
        return ending, broken_promises(place.another(), name, is_acknowledged=ending == "done all the same")
    except CheckpointError as error:
        return ending, [f"afterwards: {type(error).__name__}: {error}"]


def _refuse(kind: str, name: str) -> Iterator[str]:
    """Where two writers cannot be kept apart, and nobody said that there is but one, nothing is written."""
    place = replace(next(places(kind, Path())), single_writer=False)
    before = content_of(place.store)
    try:
        OPERATIONS[name].act(place)
        yield "it was not refused"
    except ConfigError:
        pass
    except CheckpointError as error:
        yield f"refused as {type(error).__name__}: {error}"
    changed = {key for key, _ in content_of(place.store).items() ^ before.items()} - {"e/.ckpt-clock"}
    if changed:
        yield f"changed {sorted(changed)}"


ROWS = [
    Row(
        number=43,
        fault="the answer to any operation is lost, on stores that lack each capability",
        must_hold="done, or a typed error and whole; tried again it succeeds; without conditions only a single writer",
        unit="answers",
        count=0,
        sample=60,
        run=lose_answers,
    )
]
