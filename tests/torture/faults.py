"""Rows 8, 17 and 18: a store whose operations fail, whose reads differ, and whose writes go wrong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from tests.torture.rows import Outcome, Row, chosen

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


def flip_reads(count: int, seed: str, folder: Path) -> Outcome:
    """Row 17: a bit of a file comes out wrong from the second, third ... reading of that byte on."""
    outcome, refused = Outcome(), 0
    with quiet():
        start = start_state()
        with in_memory(start) as machine:
            before = machine.view()
        files = sorted(path for path in start if path.endswith((".pt", ".json")) and path not in FOREIGN)
        for number in range(count):
            source = random.Random(f"{seed} {number}")
            name, flip = _choose_flip(start, files, source)
            where = f"[{seed} {number}] {name}, {flip}"
            outcome.injected += 1
            with in_memory(start) as machine:
                try:
                    if not _is_as_saved(_read(machine, name, flip)):
                        outcome.violations.append(f"{where}: what was loaded is not what was saved")
                except CheckpointError:
                    refused += 1
                except Exception as error:
                    outcome.violations.append(f"{where}: {type(error).__name__}: {error}")
                outcome.violations += [f"{where}: {found}" for found in _damaged_since(machine, before)]
    outcome.detail = f"{refused} calls were refused, the others not misled"
    return outcome


def _choose_flip(start: State, files: list[str], source: random.Random) -> tuple[str, BitFlip]:
    """A bit that is read, by what is done then, after it was read before if it is read more than once."""
    while True:
        name, path = source.choice(list(READERS)), source.choice(files)
        key = path.removeprefix("exported/")
        flip = BitFlip(source.randrange(len(start[path])), bit=source.randrange(8), key=key, first=10**9)
        with contextlib.suppress(CheckpointError), in_memory(start) as machine:
            _read(machine, name, flip)
        if flip.passes:
            first = source.randint(min(2, flip.passes), flip.passes)
            return name, BitFlip(flip.offset_bytes, bit=flip.bit, key=key, first=first)


def _read(machine: Machine, name: str, flip: BitFlip) -> object:
    with faults_injected(FaultPlan(read_flips=[flip]), scheme="memory"):
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
    outcome = Outcome()
    root = folder / "written"
    write_state(start_state(), root)
    machine = Machine(str(root))
    with quiet():
        sample = machine.save(6)
        size_bytes = (root / "run" / f"{sample}.pt").stat().st_size
        machine.manager(trash_seconds=0).delete_checkpoint(sample)
        before = machine.view()
        for number in range(count):
            source = random.Random(f"{seed} {number}")
            flip = BitFlip(source.randrange(size_bytes), bit=source.randrange(8), key="run/*.pt")
            where = f"[{seed} {number}] {flip}"
            outcome.injected += 1
            try:
                with faults_injected(FaultPlan(write_flips=[flip])):
                    machine.save(7, verify_after_write=True)
                outcome.violations.append(f"{where}: it was committed")
            except CorruptCheckpointError:
                pass
            except Exception as error:
                outcome.violations.append(f"{where}: {type(error).__name__}: {error}")
            if machine.view() != before:
                outcome.violations.append(f"{where}: the store changed")
        machine.save(8, verify_after_write=True)
        if len(machine.view()) != len(before) + 1:
            outcome.violations.append("a sound save was refused")
    return outcome


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
