"""Rows 3 and 4: power loss at any moment of any operation, and what happens when a barrier is missing.

The real code runs on a :class:`~tests.torture.model_store.Disk`, step by step. After each step the disk may lose power
and come up in any state that POSIX permits; or the process is killed, and the power goes while the next one works. Each
state is given to the real code again, which must find

- every checkpoint as it was before the operation, or as the operation leaves it; once that is acknowledged, the latter;
- none that is listed and broken, unless it was broken before;
- every foreign file untouched;
- nothing that keeps the next save and cleanup from working.

There are two exceptions. A checkpoint whose deletion was acknowledged may come back, whole: that is no loss. And the
marker of a save is not made durable, so a marker that says nothing may stay, and a payload that nobody looks at, of a
save that was never acknowledged. They take no checkpoint's place, and ``ckpt doctor`` shows them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_lib.errors import CheckpointError
from tests.torture.machine import (
    ACTIONS,
    FOREIGN,
    IN_QUARANTINE,
    IN_TRASH,
    RECORD_ALONE,
    Key,
    NothingToDo,
    View,
    on_disk,
    quiet,
    recover,
    start_state,
)
from tests.torture.model_store import Barrier, Disk, Moment, State, source_line
from tests.torture.rows import Outcome, Row

SCENARIOS: list[tuple[str, ...]] = [
    *((name,) for name in ACTIONS),
    ("delete", "empty the trash"),
    ("clean up", "empty the trash", "save"),
    ("save", "edit", "delete"),
    ("delete", "undelete", "edit"),
    ("delete", "undelete", "empty the trash"),
    ("delete", "restore", "empty the trash"),
    ("repair", "repair", "back up", "delete", "restore"),
    ("import", "delete", "import"),
    ("set aside", "remove for good", "remove for good"),
]
"""What is looked at step by step, each from the same start."""
FROM_NOTHING = ("save", "back up", "export")
"""The same, from a disk without a file."""


# --- the judgement ---


@dataclass
class Watch:
    """Runs operations on one disk, and judges every state that it may come up in meanwhile."""

    disk: Disk
    seed: str
    limit: int
    """How many states of one moment are looked at, if there are more."""
    recover: bool = True
    """Whether each state must also take a save and a cleanup."""
    violations: list[str] = field(default_factory=list)
    states: set[int] = field(default_factory=set)
    last_state: State = field(default_factory=dict)
    uncertain: dict[Key, set[object]] = field(default_factory=dict)
    """What a checkpoint may be besides, by operations that are over: deletions, and those that were killed."""
    killed: list[Disk] = field(default_factory=list)
    """The disk after each step of the last operation, as a kill at that moment leaves it to the next process."""
    _judged: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        with on_disk(self.disk) as machine:
            self.known = set(machine.view())
        self.known_before = set(self.known)
        self._coming: set[Key] = set()
        self.between: dict[Key, set[object]] = {}
        self._actions = random.Random(f"{self.seed} actions")  # its own: what is done depends on no limit
        self._losses = random.Random(f"{self.seed} losses")

    def is_chosen(self, share: float) -> bool:
        """A part of all runs, always the same."""
        return random.Random(f"{self.seed} chosen").random() < share

    def run(self, name: str) -> bool:
        """Do it, and judge; false when there was nothing to do."""
        moments: list[Moment] = []
        with on_disk(self.disk) as machine:
            before = machine.view()
            self.killed, self.known_before = [], set(self.known)

            def note() -> None:
                moments.append(self.disk.moment())
                self.killed.append(self.disk.after_kill())

            self.disk.on_change = note
            try:
                ACTIONS[name](machine, self._actions)
                acknowledged = True
            except (CheckpointError, NothingToDo):  # such as the repair of what is damaged in both copies
                acknowledged = False
            self.disk.on_change = lambda: None
            after = machine.view()
        self._coming = after.keys() - before.keys()
        self.between = {key: {before.get(key), after.get(key)} for key in {*before, *after}}
        for key, facts in before.items():
            if key not in after:
                self.uncertain.setdefault(key, set()).add(facts)
        for number, moment in enumerate(moments, start=1):
            self._judge_all(moment, (before, after), f"{name}, step {number} of {len(moments)}")
        if acknowledged:
            self.known |= after.keys() - before.keys()
            self._judge_all(self.disk.moment(), (after,), f"{name}, acknowledged")
        return acknowledged

    def _judge_all(self, moment: Moment, views: tuple[View, ...], where: str) -> None:
        for state in moment.states(self.limit, self._losses):
            digest = hash(frozenset(state.items()))
            self.states.add(digest)
            self.last_state = state
            if (digest, len(views)) not in self._judged:
                self._judged.add((digest, len(views)))
                self.violations += [f"{where}: {found}" for found in self._judge(state, views)]

    def _judge(self, state: State, views: tuple[View, ...]) -> Iterator[str]:
        with on_disk(Disk(state)) as machine:
            try:
                found = machine.view()
                yield from self._compare(found, views)
                yield from (f"{path} was changed" for path, data in FOREIGN.items() if state.get(path, data) != data)
                if self.recover:
                    yield from recover(machine, found, self._is_residue)
            except Exception as error:
                yield f"{type(error).__name__}: {error}"

    def _compare(self, found: View, views: tuple[View, ...]) -> Iterator[str]:
        for key in {*found, *(key for view in views for key in view)}:
            seen, uncertain = {view.get(key) for view in views}, self.uncertain.get(key, set())
            allowed = seen | uncertain
            # On its way out of quarantine, or killed there, which a person ends.
            if any({None, IN_QUARANTINE} <= on_the_way for on_the_way in (seen, uncertain)):
                allowed.add(RECORD_ALONE)
            if None in allowed:  # on its way out, or back in
                allowed.add(IN_TRASH)
            if (facts := found.get(key)) not in allowed:
                yield f"{'/'.join(key)}: {_said(facts)} instead of {' or '.join(sorted(map(_said, allowed)))}"

    def _is_residue(self, path: str) -> bool:
        place, _, name = path.rpartition("/")
        key = (place, name.partition(".")[0])
        is_known = key in self.known and key not in self._coming  # one that was removed for good may be saved anew
        return name.endswith(".saving") or (name.endswith(".pt") and not is_known)


def _said(facts: object) -> str:
    return "nothing" if facts is None else f"a whole one ({hash(facts)})" if isinstance(facts, bytes) else str(facts)


# --- the rows ---


def lose_power(count: int, seed: str, folder: Path) -> Outcome:
    """Row 3: every moment of each scenario, or of half of them for a sample, and then of random histories."""
    outcome, per_action, number = Outcome(), dict[str, int](), 0
    with quiet():
        scenarios = _scenarios()
        if count < ROWS[0].count:
            scenarios = random.Random(seed).sample(scenarios, len(scenarios) // 2)
        for names, start in scenarios:
            watch = Watch(Disk(start), f"{seed} {names}", max(2, count // 200))
            for name in names:
                watch.run(name)
                if len(names) == 1 and (count >= ROWS[0].count or watch.is_chosen(0.2)):
                    _kill_first(outcome, per_action, watch, name, count)
            _add(outcome, per_action, watch, " + ".join(names))
        start = start_state()
        while outcome.injected < count or number < count // 100:
            _history(outcome, per_action, start, f"{seed} history {number}")
            number += 1
    shown = ", ".join(f"{name} {states}" for name, states in sorted(per_action.items()))
    outcome.detail = f"{number} random histories; distinct states: {shown}"
    return outcome


def _kill_first(outcome: Outcome, per_action: dict[str, int], killed: Watch, name: str, count: int) -> None:
    """Kill the process after each step of an operation, or after a few, and lose power while the next one works."""
    steps = range(len(killed.killed))
    for step in steps if count >= ROWS[0].count else random.Random(killed.seed).sample(steps, min(2, len(steps))):
        for follower in ("empty the trash", "save", name):
            watch = _after_kill(killed, step, follower, limit=5)
            _add(outcome, per_action, watch, "after a kill")


def _after_kill(killed: Watch, step: int, follower: str, *, limit: int) -> Watch:
    """The watch over what the next process does after the last operation of ``killed`` was killed at that step."""
    seed = f"{killed.seed} killed at {step}, {follower}"
    watch = Watch(killed.killed[step].after_kill(), seed, limit, killed.recover)
    watch.known = set(killed.known_before)
    watch.uncertain = {key: set(facts) for key, facts in killed.between.items()}
    watch.run(follower)
    return watch


def _scenarios() -> list[tuple[tuple[str, ...], State]]:
    start = start_state()
    return [(FROM_NOTHING, {}), *((names, start) for names in SCENARIOS)]


def _history(outcome: Outcome, per_action: dict[str, int], start: State, seed: str) -> None:
    """Operations one after the other, now and then a loss of power, and the next go on from what that left."""
    source = random.Random(seed)
    watch = Watch(Disk(start), seed, limit=3)
    for number in range(8):
        watch.run(source.choice(list(ACTIONS)))
        if watch.last_state and source.random() < 0.3:
            _add(outcome, per_action, watch, "random histories")
            watch = Watch(Disk(watch.last_state), f"{seed} {number}", limit=3)
    _add(outcome, per_action, watch, "random histories")


def _add(outcome: Outcome, per_action: dict[str, int], watch: Watch, name: str) -> None:
    outcome.injected += len(watch.states)
    per_action[name] = per_action.get(name, 0) + len(watch.states)
    outcome.violations += [f"[{watch.seed}] {violation}" for violation in watch.violations]


def barriers(seed: str) -> dict[Barrier, list[tuple[tuple[str, ...], State]]]:
    """Every place in the code that makes something durable, and the scenarios that come by it."""
    found: dict[Barrier, list[tuple[tuple[str, ...], State]]] = {}
    for names, start in _scenarios():
        watch = Watch(Disk(start), f"{seed} {names}", limit=0)
        for name in names:
            watch.run(name)
        for barrier in watch.disk.barriers:
            found.setdefault(barrier, []).append((names, start))
    return found


def find_violation(barrier: Barrier, scenarios: list[tuple[tuple[str, ...], State]], seed: str) -> str | None:
    """What goes wrong, in one state at least, when that barrier is passed over; ``None`` if nothing does."""
    return next(_violations(barrier, scenarios, seed), None)


def _violations(barrier: Barrier, scenarios: list[tuple[tuple[str, ...], State]], seed: str) -> Iterator[str]:
    for recovers in (False, True):  # what is cheap to see, first
        for names, start in scenarios:
            watch = Watch(Disk(start, ignored=[barrier]), f"{seed} {names}", 20, recovers)
            for name in names:
                watch.run(name)
                yield from watch.violations
    for first in ("delete", "undelete"):
        killed = Watch(Disk(start_state(), ignored=[barrier]), f"{seed} {first}", 1, recover=False)
        killed.run(first)
        for step in range(len(killed.killed)):
            watch = _after_kill(killed, step, "empty the trash", limit=20)
            yield from (f"killed during {first}, step {step}: {violation}" for violation in watch.violations)


def remove_barriers(count: int, seed: str, folder: Path) -> Outcome:
    """Row 4: without any one of the barriers, row 3 fails. ``count`` of them, or all for 0."""
    outcome, caught = Outcome(), list[str]()
    with quiet():
        found = barriers(seed)
        chosen = sorted(found) if not count else random.Random(seed).sample(sorted(found), min(count, len(found)))
        for barrier in chosen:
            violation = find_violation(barrier, found[barrier], seed)
            outcome.injected += 1
            if violation is None:
                outcome.violations.append(f"[{seed}] nothing goes wrong without {describe(barrier, found)}")
            else:
                caught.append(f"{describe(barrier, found)}: {_what_is_wrong(violation)}")
    outcome.detail = "; ".join(caught)
    return outcome


def _what_is_wrong(violation: str) -> str:
    """The violation without the ids, which tell of the moment of the run."""
    found = re.search(r": ([^:]*?) instead of", violation)
    return found[1] if found else violation.rpartition(": ")[0].rpartition(": ")[2]


def describe(barrier: Barrier, among: Collection[Barrier]) -> str:
    """Where a barrier is, by the code's own words: line numbers change too often."""
    line = source_line(barrier)
    if not line:
        return f"{barrier.function} ({barrier.kind})"
    same = [other for other in sorted(among) if other.function == barrier.function and source_line(other) == line]
    number = f", {same.index(barrier) + 1} of {len(same)}" if len(same) > 1 else ""
    return f"{barrier.function} `{line}` ({barrier.kind}{number})"


ROWS = [
    Row(
        3,
        "power loss",
        "what was acknowledged is there, all else whole or as before; the next save and cleanup work",
        "states",
        5_000,
        100,
        lose_power,
    ),
    Row(4, "a missing barrier", "row 3 fails without any one of them", "barriers", 0, 1, remove_barriers),
]
