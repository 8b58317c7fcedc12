"""Row 44: every interleaving of two or three operations of the protocol, with crashes, lost answers and days."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.experiment import replacements, worlds
from tests.experiment.explorer import Verdict
from tests.torture.rows import Outcome, Row

STATES_A_WORLD = 150_000
SECONDS_A_WORLD = 60.0
WORLDS = worlds.WORLDS | replacements.WORLDS
CLEANUPS = ("two cleanups", "three cleanups", "two cleanups and a purge")
"""Cleanups that each rely on what another deletes. They come first."""


def explore_all(count: int, _seed: str, _folder: Path) -> Outcome:
    """Explore ``count`` states in all, or each world up to its bound."""
    names = [*CLEANUPS, *(name for name in WORLDS if name not in CLEANUPS)]
    states = STATES_A_WORLD
    if count:
        names, states = names[:1], count
    verdicts = [WORLDS[name]().run(max_states=states, max_seconds=SECONDS_A_WORLD) for name in names]
    outcome = Outcome(injected=sum(verdict.states for verdict in verdicts))
    outcome.violations += [
        f"{name}: {verdict.violation}: {verdict.trace}"
        for name, verdict in zip(names, verdicts, strict=True)
        if verdict.violation
    ]
    outcome.detail = _detail(names, verdicts)
    return outcome


def _detail(names: Sequence[str], verdicts: Sequence[Verdict]) -> str:
    whole = [name for name, verdict in zip(names, verdicts, strict=True) if verdict.is_complete]
    return f"{len(names)} worlds, of which {len(whole)} in full: {', '.join(sorted(whole))}"


ROWS = [
    Row(
        number=44,
        fault="two or three operations at once, each of their steps in every order, with crashes and lost answers",
        must_hold="what is seen is whole, something stays live, no answer is wrong, no id is given twice",
        unit="states",
        count=0,
        sample=2_000,
        run=explore_all,
    )
]
