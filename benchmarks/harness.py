"""Measuring side by side: whatever is compared is run in turn, and what comes out is a row."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Measure = Callable[[], float]
"""Prepares whatever need not be timed, does the work once, cleans up, and returns the seconds that count."""
Samples = dict[str, list[float]]

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Settings:
    """What one run of the benchmarks measures, and where."""

    folder: Path
    sizes: tuple[str, ...] = ("1MB", "100MB", "1GB")
    rounds: int = 7
    warm_up: int = 3
    step_seconds: float = 0.35
    """How long a forward and backward pass of the training loop lasts at least."""

    @property
    def largest(self) -> str:
        """The size at which everything is measured; the others are for saving and loading alone."""
        return max(self.sizes, key=size_bytes_of)

    def rounds_of(self, size: str) -> int:
        """Small states are quick and noisy, so they get more rounds."""
        return self.rounds * (5 if size_bytes_of(size) <= 10**7 else 1)


@dataclass(frozen=True)
class Row:
    """One comparison. Times are medians; ``spread`` holds the fastest and the slowest of each side."""

    name: str
    state: str
    size_bytes: int
    peer: str
    ours_seconds: float | None = None
    peer_seconds: float | None = None
    ours_bytes: int | None = None
    peer_bytes: int | None = None
    ratio: float | None = None
    spread: dict[str, list[float]] = field(default_factory=dict)
    target: float | None = None
    """What ``ratio`` may be at most, or ``ours_bytes`` where memory is measured."""
    met: bool | None = None
    rounds: int = 1
    note: str = ""
    """What else one has to know to read the row."""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What a later run of the same comparison replaces."""
        return self.name, self.state, self.size_bytes, self.peer

    def as_dict(self) -> dict[str, Any]:
        """The row as ``results.json`` holds it."""
        return asdict(self)


def size_bytes_of(size: str) -> int:
    """``"100MB"`` as a number of bytes, in decimal units; raises ``ValueError`` for anything else."""
    number, unit = size[:-2], size[-2:].upper()
    if unit not in UNITS or not number.isdigit() or not int(number):
        raise ValueError(f"a size looks like 100MB, with one of {', '.join(UNITS)}, not {size!r}")
    return int(number) * UNITS[unit]


def timed(call: Callable[[], Any]) -> float:
    """Seconds that one call takes. What it returns is freed after that."""
    started = time.perf_counter()
    found = call()
    seconds = time.perf_counter() - started
    del found
    return seconds


def settle() -> None:
    """Let the disk finish what came before, so that the next one to be timed does not pay for it."""
    os.sync()


def interleave(contenders: Mapping[str, Measure], *, rounds: int, warm_up: int) -> Samples:
    """Run every contender in each round and return the seconds of the rounds after ``warm_up``.

    The order turns by one from round to round and is reversed in every other one, so that nobody is always the first
    or always behind the same other. Memory that a virtual machine touches for the first time, and code that runs for
    the first time, make the first rounds slower by a lot: they do not count.
    """
    samples: Samples = {name: [] for name in contenders}
    for number in range(warm_up + rounds):
        for name in _order(list(contenders), number):
            seconds = contenders[name]()
            if number >= warm_up:
                samples[name].append(seconds)
    return samples


def _order(names: list[str], number: int) -> Iterator[str]:
    turn = number // 2 % len(names)
    turned = names[turn:] + names[:turn]
    return iter(turned if number % 2 == 0 else turned[::-1])


def compare(
    samples: Samples,
    ours: str,
    peer: str,
    *,
    name: str,
    state: str,
    size_bytes: int,
    target: float | None = None,
    peer_name: str = "",
    note: str = "",
) -> Row:
    """The row that sets the medians of two contenders against each other."""
    ours_seconds, peer_seconds = statistics.median(samples[ours]), statistics.median(samples[peer])
    ratio = ours_seconds / peer_seconds
    return Row(
        name=name,
        state=state,
        size_bytes=size_bytes,
        peer=peer_name or peer,
        ours_seconds=ours_seconds,
        peer_seconds=peer_seconds,
        ratio=ratio,
        spread={side: [min(samples[who]), max(samples[who])] for side, who in (("ours", ours), ("peer", peer))},
        target=target,
        met=None if target is None else ratio <= target,
        rounds=len(samples[ours]),
        note=note,
    )


def slower(samples: Samples, *names: str) -> str:
    """The contender with the largest median."""
    return max(names, key=lambda name: statistics.median(samples[name]))
