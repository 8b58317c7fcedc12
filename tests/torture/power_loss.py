"""Rows 3 and 4: power loss at any moment of any operation, and what happens when a barrier is missing.

The real code runs on the real local store, whose system calls a :class:`~tests.torture.disk.Disk` notes. After each of
them the disk may lose power and come up in any state that POSIX permits; or the process is killed, and the power goes
while the next one works. Each state is put into a store in memory and given to the real code again, which must find

- every checkpoint as it was before the operation, or as the operation leaves it; once that is acknowledged, the latter;
- none that is listed and broken, unless it was broken before;
- every foreign file untouched;
- nothing that keeps the next save and cleanup from working, and nothing that a sweep leaves behind a day later.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_lib.errors import CheckpointError, ProtectedCheckpointError
from tests.torture.disk import Barrier, Disk, Moment, State
from tests.torture.machine import (
    ACTIONS,
    FOREIGN,
    IN_TRASH,
    Key,
    NothingToDo,
    View,
    another_process,
    in_memory,
    on_disk,
    quiet,
    recover,
    start_state,
    wait_long,
)
from tests.torture.rows import Outcome, Row, chosen

Story = tuple[tuple[str, ...], State]
"""Actions, one after the other, and from where."""

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

_numbers = itertools.count()


def new_disk(folder: Path, state: State, *, ignored: Collection[Barrier] = ()) -> Disk:
    """Return a disk in a subfolder of its own."""
    return Disk(_new_place(folder), state, ignored=ignored)


def _new_place(folder: Path) -> Path:
    return folder / f"disk-{next(_numbers)}"


@dataclass
class Watch:
    """Runs operations on one disk, and judges every state that it may come up in meanwhile."""

    disk: Disk
    seed: str
    limit: int
    """How many states of one moment are looked at, if there are more."""
    recover: bool = True
    """Whether each state must also take a save and a cleanup."""
    keeps_killed: bool = False
    """Whether ``killed`` is filled."""
    violations: list[str] = field(default_factory=list)
    states: set[int] = field(default_factory=set)
    last_state: State = field(default_factory=dict)
    uncertain: dict[Key, set[object]] = field(default_factory=dict)
    """What a checkpoint may be besides, by an operation that was killed."""
    killed: list[Callable[[Path], Disk]] = field(default_factory=list)
    """The disk after each step of the last operation, as a kill at that moment leaves it to the next process."""
    _judged: set[tuple[int, int]] = field(default_factory=set)
    _kept: str | None = None
    """What a deletion took back, since no other checkpoint was sound."""

    def __post_init__(self) -> None:
        self.between: dict[Key, set[object]] = {}
        self._actions = random.Random(f"{self.seed} actions")  # its own: what is done depends on no limit
        self._losses = random.Random(f"{self.seed} losses")

    def is_chosen(self, share: float) -> bool:
        """A part of all runs, always the same."""
        return random.Random(f"{self.seed} chosen").random() < share

    def run(self, name: str) -> bool:
        """Do it, and judge; false when there was nothing to do."""
        moments: list[Moment] = []
        with another_process(), on_disk(self.disk) as machine:
            before = machine.view()
            self.killed = []

            def note() -> None:
                moments.append(self.disk.moment())
                if self.keeps_killed:
                    self.killed.append(self.disk.after_kill())

            self.disk.on_change = note
            self._kept = None
            try:
                ACTIONS[name](machine, self._actions)
                acknowledged = True
            except (CheckpointError, NothingToDo) as error:  # such as the repair of what is damaged in both copies
                acknowledged = False
                if isinstance(error, ProtectedCheckpointError):
                    self._kept = error.checkpoint_id
            self.disk.on_change = lambda: None
            after = machine.view()
        self.between = {key: {before.get(key), after.get(key)} for key in {*before, *after}}
        for number, moment in enumerate(moments, start=1):
            self._judge_all(moment, (before, after), f"{name}, step {number} of {len(moments)}")
        if acknowledged:
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
        with another_process(boot="the next one"), in_memory(state) as machine:
            try:
                found = machine.view()
                yield from self._compare(found, views)
                yield from (f"{key} was changed" for key, data in FOREIGN.items() if state.get(key, data) != data)
                if self.recover:
                    yield from recover(machine, found, lambda: wait_long(machine))
            except Exception as error:
                yield f"{type(error).__name__}: {error}"

    def _compare(self, found: View, views: tuple[View, ...]) -> Iterator[str]:
        for key in {*found, *(key for view in views for key in view)}:
            allowed = {view.get(key) for view in views} | self.uncertain.get(key, set())
            if (None in allowed and len(allowed) > 1) or key[1] == self._kept:  # on its way out, or back in
                allowed.add(IN_TRASH)
            if (facts := found.get(key)) not in allowed:
                yield f"{'/'.join(key)}: {_said(facts)} instead of {' or '.join(sorted(map(_said, allowed)))}"


def _said(facts: object) -> str:
    return "nothing" if facts is None else "a whole one" if isinstance(facts, bytes) else str(facts)


# --- the rows ---


def lose_power(count: int, seed: str, folder: Path) -> Outcome:
    """Row 3: every moment of each scenario, or of a quarter of them for a sample, and then of random histories."""
    outcome, per_action, number = Outcome(), dict[str, int](), 0
    is_full = count >= ROWS[0].count
    with quiet():
        scenarios = _scenarios()
        if not is_full:
            scenarios = random.Random(seed).sample(scenarios, len(scenarios) // 4)
        for names, start in scenarios:
            watch = Watch(new_disk(folder, start), f"{seed} {names}", max(2, count // 200))
            watch.keeps_killed = len(names) == 1 and (is_full or watch.is_chosen(0.2))
            for name in names:
                watch.run(name)
            _kill_first(outcome, per_action, watch, names[-1], folder, is_full=is_full)
            _add(outcome, per_action, watch, " + ".join(names))
        start = start_state()
        while outcome.injected < count or number < count // 100:
            _history(outcome, per_action, start, f"{seed} history {number}", folder)
            number += 1
    shown = ", ".join(f"{name} {states}" for name, states in sorted(per_action.items()))
    outcome.detail = f"{number} random histories; distinct states: {shown}"
    return outcome


def _kill_first(
    outcome: Outcome, per_action: dict[str, int], killed: Watch, name: str, folder: Path, *, is_full: bool
) -> None:
    """Kill the process after each step of an operation, or after a few, and lose power while the next one works."""
    steps = range(len(killed.killed))
    for step in steps if is_full else random.Random(killed.seed).sample(steps, min(2, len(steps))):
        for follower in dict.fromkeys(("empty the trash", "save", name)):
            watch = _after_kill(killed, step, follower, folder, limit=5)
            _add(outcome, per_action, watch, "after a kill")


def _after_kill(killed: Watch, step: int, follower: str, folder: Path, *, limit: int) -> Watch:
    """The watch over what the next process does after the last operation of ``killed`` was killed at that step."""
    seed = f"{killed.seed} killed at {step}, {follower}"
    watch = Watch(killed.killed[step](_new_place(folder)), seed, limit, killed.recover)
    watch.uncertain = {key: set(facts) for key, facts in killed.between.items()}
    watch.run(follower)
    return watch


def _scenarios() -> list[Story]:
    start = start_state()
    return [(FROM_NOTHING, {}), *((names, start) for names in SCENARIOS)]


def _history(outcome: Outcome, per_action: dict[str, int], start: State, seed: str, folder: Path) -> None:
    """Operations one after the other, now and then a loss of power, and the next go on from what that left."""
    source = random.Random(seed)
    watch = Watch(new_disk(folder, start), seed, limit=3)
    for number in range(8):
        watch.run(source.choice(list(ACTIONS)))
        if watch.last_state and source.random() < 0.3:
            _add(outcome, per_action, watch, "random histories")
            watch = Watch(new_disk(folder, watch.last_state), f"{seed} {number}", limit=3)
    _add(outcome, per_action, watch, "random histories")


def _add(outcome: Outcome, per_action: dict[str, int], watch: Watch, name: str) -> None:
    watch.disk.remove()
    outcome.injected += len(watch.states)
    per_action[name] = per_action.get(name, 0) + len(watch.states)
    outcome.violations += [f"[{watch.seed}] {violation}" for violation in watch.violations]


NEEDED_BY_THE_CONTRACT = "Publisher.delete"
"""A deletion is made durable because a store promises so. Nothing here relies on it: whatever power loss brings back is
what a record calls gone, and the next sweep removes it.
"""


def barriers(seed: str, folder: Path) -> dict[Barrier, list[Story]]:
    """Every place in the store that makes something durable, and the scenarios that come by it."""
    found: dict[Barrier, list[Story]] = {}
    for names, start in _scenarios():
        watch = Watch(new_disk(folder, start), f"{seed} {names}", limit=0, recover=False)
        for name in names:
            watch.run(name)
        watch.disk.remove()
        for barrier in watch.disk.barriers:
            if NEEDED_BY_THE_CONTRACT not in barrier:
                found.setdefault(barrier, []).append((names, start))
    return found


def _violations(barrier: Barrier, scenarios: list[Story], seed: str, folder: Path) -> Iterator[str]:
    """What goes wrong when that barrier is passed over."""
    for recovers in (False, True):  # what is cheap to see, first
        for names, start in scenarios:
            disk = new_disk(folder, start, ignored=[barrier])
            watch = Watch(disk, f"{seed} {names}", 20, recovers)
            for name in names:
                watch.run(name)
                yield from watch.violations
            disk.remove()


def remove_barriers(count: int, seed: str, folder: Path) -> Outcome:
    """Row 4: without any one of the barriers, row 3 fails. ``count`` of them, or all for 0."""
    outcome, caught = Outcome(), list[str]()
    with quiet():
        found = barriers(seed, folder)
        for barrier in chosen(sorted(found), count, seed):
            violation = next(_violations(barrier, found[barrier], seed, folder), None)
            outcome.injected += 1
            if violation is None:
                outcome.violations.append(f"[{seed}] nothing goes wrong without {barrier}")
            else:
                caught.append(f"{barrier}: {_what_is_wrong(violation)}")
    outcome.detail = "; ".join(caught)
    return outcome


def _what_is_wrong(violation: str) -> str:
    """The violation without the ids, which tell of the moment of the run."""
    found = re.search(r": ([^:]*?) instead of", violation)
    return found[1] if found else violation.rpartition(": ")[2]


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
