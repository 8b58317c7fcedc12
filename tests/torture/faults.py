"""Rows 8, 17 and 18: a store whose operations fail, whose reads differ, and whose writes go wrong."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ckpt_lib.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    IntegrityError,
    StorageFullError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.experiment.layout import payload_suffix
from ckpt_lib.testing import BitFlip, FaultPlan, faults_injected
from tests.torture.disk import State, write_state
from tests.torture.machine import (
    ACTIONS,
    BROKEN,
    FOREIGN,
    IN_QUARANTINE,
    IN_TRASH,
    MODEL,
    Machine,
    NothingToDo,
    View,
    another_process,
    in_memory,
    quiet,
    recover,
    start_state,
)
from tests.torture.places import LOCAL
from tests.torture.rows import Outcome, Row, chosen
from tests.torture.settings import SETTINGS, Setting, everything_installed, setting, told_settings

When = Literal["before", "after"]
FAILURES: tuple[tuple[type[StoreError], When], ...] = (
    *((error, "before") for error in (StoreError, StorageFullError, StorePermissionError, StoreUnavailableError)),
    (StoreUnavailableError, "after"),
)
"""How an operation fails; the last is done, and its answer lost."""


@dataclass(frozen=True)
class _Case:
    """An action with one of its operations failing."""

    name: str
    at: int
    error: type[StoreError]
    when: When
    persistent: bool

    def __str__(self) -> str:
        how = f"{self.when} it was done{', from then on' if self.persistent else ''}"
        return f"{self.name}, operation {self.at}, {self.error.__name__} {how}"

    def plan(self) -> FaultPlan:
        return FaultPlan(fail_at=self.at, when=self.when, error=self.error, persistent=self.persistent)


def _act(machine: Machine, name: str, plan: FaultPlan) -> CheckpointError | None:
    """Do something over a store that follows ``plan``; the error of ours that it ended in. Any other comes out."""
    with faults_injected(plan, scheme="memory"), another_process():
        try:
            ACTIONS[name](machine, random.Random(name))
        except CheckpointError as error:
            return error
    return None


def fail_operations(count: int, seed: str, folder: Path) -> Outcome:
    """Row 8: an error at operation k of every action, for each k, each error, once and from then on."""
    outcome = Outcome()
    with quiet():
        start = start_state()
        with in_memory(start) as machine:
            before = machine.view()
        cases = []
        afters: dict[str, View] = {}
        for name in ACTIONS:
            counted = FaultPlan()
            with in_memory(start) as machine:
                _act(machine, name, counted)
                afters[name] = machine.view()
            ats = range(1, len(counted.calls) + 1)
            cases += [
                _Case(name, at, error, when, persistent)
                for at in ats
                for error, when in FAILURES
                for persistent in (False, True)
            ]
        for case in chosen(cases, count, seed):
            with in_memory(start) as machine:
                outcome.note(str(case), _fail_operation(machine, case, before, afters[case.name]))
    outcome.detail = f"{len(ACTIONS)} operations of the library, each operation of the store in turn"
    return outcome


def _fail_operation(machine: Machine, case: _Case, before: View, after: View) -> Iterator[str]:
    plan = case.plan()
    try:
        error = _act(machine, case.name, plan)
    except NothingToDo:
        error = None  # what fails is taken for a store that holds nothing
    except Exception as unexpected:
        yield f"{type(unexpected).__name__}: {unexpected}"
        return
    try:
        is_done = error is None and not plan.failures
        yield from compare(machine, before, after, is_done=is_done, is_full=case.error is StorageFullError)
        again = _again(machine, case.name)
        yield from ([] if again is None else [f"the next attempt failed: {again!r}"])
        yield from recover(machine, machine.view())
    except Exception as unexpected:
        yield f"afterwards: {type(unexpected).__name__}: {unexpected}"


def compare(machine: Machine, before: View, after: View, *, is_done: bool, is_full: bool = False) -> Iterator[str]:
    """What is there is as it was or as it should become; what is new is whole. A full store gives up its trash."""
    found = machine.view()
    files = machine.files()
    for key in {*before, *found}:
        new = key not in before
        allowed = {before.get(key), after.get(key)} | ({IN_TRASH} if key not in after else set())
        if is_full and before.get(key) == IN_TRASH:
            allowed.add(None)
        if before.get(key) in BROKEN:  # while its backup cannot be read
            allowed.add(IN_QUARANTINE)
        if not new and found.get(key) not in allowed:
            yield f"{'/'.join(key)} is {_said(found.get(key))}"
        if new and found[key] in BROKEN:
            yield f"{'/'.join(key)} is new, and {found[key]!s}"
    if is_done and len(found) != len(after):
        yield f"acknowledged, and {len(found)} checkpoints instead of {len(after)}"
    yield from (f"{path} was changed" for path, data in FOREIGN.items() if files.get(path) != data)


def _said(facts: object) -> str:
    return "not there" if facts is None else "whole, but other than before" if isinstance(facts, bytes) else str(facts)


def _again(machine: Machine, name: str) -> CheckpointError | None:
    """The same action once more; that there is nothing left to do is no failure."""
    try:
        with another_process():
            ACTIONS[name](machine, random.Random(name))
    except (NothingToDo, CheckpointNotFoundError, IntegrityError):
        return None
    except CheckpointError as error:
        return error
    return None


# --- bits ---

READERS: dict[str, Callable[[Machine, random.Random], object]] = {
    "load": lambda machine, source: machine.manager().load_checkpoint(source.choice(machine.ids())),
    "load a part": lambda machine, source: machine.manager().load_checkpoint(
        source.choice(machine.ids()), keys=["model_state_dict"]
    ),
    "resume": lambda machine, source: machine.manager().resume(),
    **{name: ACTIONS[name] for name in ("back up", "restore", "repair", "export", "import", "clean up")},
}


@dataclass(frozen=True)
class _Flips:
    """Machines of one setting, all of which begin in the same state."""

    setting: Setting
    folder: Path
    start: State
    before: View

    @classmethod
    def prepare(cls, setting: Setting, folder: Path) -> _Flips:
        start = start_state(replace(setting, kind="memory" if setting.kind == LOCAL else setting.kind))
        with _machine(setting, folder, start) as machine:
            return cls(setting, folder, start, machine.view())

    def new(self) -> contextlib.AbstractContextManager[Machine]:
        return _machine(self.setting, self.folder, self.start)

    def choose(self, source: random.Random) -> tuple[str, BitFlip]:
        """A bit that is read, by what is done then, after it was read before if it is read more than once."""
        files = sorted(path for path in self.start if "checkpoint_" in path and path not in FOREIGN)
        while True:
            name, path = source.choice(list(READERS)), source.choice(files)
            key = path.removeprefix("exported/")
            flip = BitFlip(source.randrange(len(self.start[path])), bit=source.randrange(8), key=key, first=10**9)
            with contextlib.suppress(CheckpointError), self.new() as machine:
                _read(machine, name, flip)
            if flip.passes:
                first = source.randint(min(2, flip.passes), flip.passes)
                return name, BitFlip(flip.offset_bytes, bit=flip.bit, key=key, first=first)

    def broken(self, name: str, flip: BitFlip) -> Iterator[str]:
        """Every promise that is not kept while that bit comes out wrong."""
        with self.new() as machine:
            try:
                if not _is_as_saved(_read(machine, name, flip)):
                    yield "what was loaded is not what was saved"
            except CheckpointError:
                yield REFUSED
            except Exception as error:
                yield f"{type(error).__name__}: {error}"
            yield from _damaged_since(machine, self.before)


REFUSED = "refused"


@contextlib.contextmanager
def _machine(setting: Setting, folder: Path, start: State) -> Iterator[Machine]:
    """A machine in memory or on the disk."""
    if setting.kind != LOCAL:
        with in_memory(start, setting) as machine:
            yield machine
        return
    write_state(start, folder)
    try:
        yield Machine(str(folder), setting)
    finally:
        shutil.rmtree(folder)


def flip_reads(count: int, seed: str, folder: Path) -> Outcome:
    """Row 17: a bit of a file comes out wrong from the second, third ... reading of that byte on."""
    outcome, refused, struck = Outcome(), 0, Counter[Setting]()
    with quiet(), everything_installed():
        everywhere = [_Flips.prepare(setting(number), folder / str(number)) for number in range(min(count, SETTINGS))]
        for number in range(count):
            source, flips = random.Random(f"{seed} {number}"), everywhere[number % len(everywhere)]
            name, flip = flips.choose(source)
            broken = list(flips.broken(name, flip))
            refused += REFUSED in broken
            struck[flips.setting] += 1
            where = f"[{seed} {number}] {flips.setting}, {name}, {flip}"
            outcome.note(where, (line for line in broken if line != REFUSED))
    outcome.detail = f"{refused} calls were refused, the others not misled{told_settings(struck)}"
    return outcome


def _read(machine: Machine, name: str, flip: BitFlip) -> object:
    scheme = "file" if machine.setting.kind == LOCAL else "memory"
    with faults_injected(FaultPlan(read_flips=[flip]), scheme=scheme):
        return READERS[name](machine, random.Random(f"{name} {flip.offset_bytes}"))


def _is_as_saved(result: object) -> bool:
    """Whether a payload, if it is one, holds the tensors that every checkpoint here holds."""
    if not isinstance(result, dict) or "model_state_dict" not in result:
        return True
    state = result["model_state_dict"]
    wanted = MODEL.state_dict()
    return set(state) == set(wanted) and all(torch.equal(state[name], wanted[name]) for name in wanted)


def _damaged_since(machine: Machine, before: View) -> Iterator[str]:
    """What is damaged in the store and was not; and whether the pillars still stand."""
    found = machine.view()
    for key, facts in found.items():
        if facts in BROKEN and before.get(key) not in BROKEN:
            yield f"{'/'.join(key)} is {facts!s}"
    whole = [key for key, facts in before.items() if key[0] == "run" and isinstance(facts, bytes)]
    if whole and not isinstance(found.get(max(whole)), bytes):
        yield "the newest whole checkpoint is gone"


def flip_writes(count: int, seed: str, folder: Path) -> Outcome:
    """Row 18: a bit goes wrong between the digest and the disk. With ``verify_after_write``, nothing is committed."""
    outcome, struck, used = Outcome(), Counter[Setting](), min(count, SETTINGS)
    with quiet(), everything_installed():
        for number in range(used):
            numbers = range(number, count, used)
            outcome_here = _flip_writes(setting(number), numbers, seed, folder / str(number))
            struck[setting(number)] += len(numbers)
            outcome.injected += outcome_here.injected
            outcome.violations += outcome_here.violations
    outcome.detail = told_settings(struck).removeprefix("; ")
    return outcome


def _flip_writes(setting: Setting, numbers: Iterable[int], seed: str, folder: Path) -> Outcome:
    """As above, all in one experiment: the store is as before after each."""
    outcome = Outcome()
    start = start_state(replace(setting, kind="memory" if setting.kind == LOCAL else setting.kind))
    with _machine(setting, folder, start) as machine:
        sample = machine.save(7)
        files = machine.experiment("run").get(sample).files
        machine.manager(trash_seconds=0).delete_checkpoint(sample)
        before = machine.view()
        for number in numbers:
            source = random.Random(f"{seed} {number}")
            file = source.choice(files)
            key = f"run/checkpoint*{payload_suffix(file.name, sample)}{file.name.partition('/')[2]}"
            flip = BitFlip(source.randrange(file.size_bytes), bit=source.randrange(8), key=key)
            outcome.note(f"[{seed} {number}] {setting}, {flip}", _flip_write(machine, flip, before))
        machine.save(8, verify_after_write=True)
        if len(machine.view()) != len(before) + 1:
            outcome.violations.append(f"{setting}: a sound save was refused")
    return outcome


def _flip_write(machine: Machine, flip: BitFlip, before: View) -> Iterator[str]:
    scheme = "file" if machine.setting.kind == LOCAL else "memory"
    try:
        with faults_injected(FaultPlan(write_flips=[flip]), scheme=scheme):
            machine.save(7, verify_after_write=True)
        yield "it was committed"
    except CorruptCheckpointError:
        pass
    except Exception as error:
        yield f"{type(error).__name__}: {error}"
    if machine.view() != before:
        yield "the store changed"


ROWS = [
    Row(
        8,
        "I/O error at operation k",
        "a typed error; each checkpoint as before or complete; the next attempt works",
        "errors",
        0,
        60,
        fail_operations,
    ),
    Row(
        17,
        "flip between verification and use",
        "what is deserialised, copied or kept is what was verified",
        "flips",
        500,
        60,
        flip_reads,
    ),
    Row(18, "bad write path", "the read-back, when asked for, refuses the commit", "flips", 500, 30, flip_writes),
]
