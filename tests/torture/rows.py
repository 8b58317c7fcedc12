"""What a row of the fault matrix is. Modules beside this one list their rows as ``ROWS``."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Case = TypeVar("Case")


@dataclass
class Outcome:
    """What came of injecting a fault many times."""

    injected: int = 0
    """How many faults were injected, of the kind that the row counts."""
    violations: list[str] = field(default_factory=list)
    """One line for each broken promise, with what is needed to see it again."""
    detail: str = ""
    """What else was counted, for the table: ``"412 before the commit, 588 after"``."""

    def note(self, where: str, broken: Iterable[str]) -> None:
        """Count one fault, and each promise that it broke."""
        self.injected += 1
        self.violations += [f"{where}: {line}" for line in broken]


def chosen(cases: Sequence[Case], count: int, seed: str) -> Sequence[Case]:
    """So many of all cases, at random; all of them for 0."""
    return random.Random(seed).sample(cases, min(count, len(cases))) if count else cases


def told(times: Mapping[str, int]) -> str:
    """How often each of several things was counted, for the table."""
    return ", ".join(f"{number} {name}" for name, number in sorted(times.items()))


def nothing() -> str:
    """What a row lacks that runs everywhere."""
    return ""


@dataclass(frozen=True)
class Row:
    """One fault, what must hold under it, and how often it is injected."""

    number: int
    """As in the table of docs/DURABILITY.md."""
    fault: str
    must_hold: str
    unit: str
    """What is counted: ``"kills"``."""
    count: int
    """How many ``make torture`` injects; 0 where the run itself says how many there are."""
    sample: int
    """How many the default suite injects: seconds at most."""
    run: Callable[[int, str, Path], Outcome]
    """Called with the number, a seed (a text for ``random.Random``) and an empty folder of its own."""
    exclusive: bool = False
    """Whether it needs the machine for itself, as what watches the clock does; others run two at a time."""
    needs_server: bool = False
    """Whether it starts a server: its sample then runs in `make test-servers`."""
    lacks: Callable[[], str] = nothing
    """What this machine lacks for it and how to get that, in words; empty when it can run."""
