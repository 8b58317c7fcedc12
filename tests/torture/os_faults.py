"""Rows 9, 11, 12 and 13: an operating system that refuses: errors, limits, rights, inodes and descriptors.

The real local store runs, in this process with its system calls replaced, or in a fork with limits of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ckpt_lib.errors import CheckpointError, StorageFullError, StoreError, StorePermissionError, StoreUnavailableError
from tests.torture.disk import State, write_state
from tests.torture.faults import compare
from tests.torture.machine import (
    ACTIONS,
    IN_TRASH,
    Machine,
    NothingToDo,
    View,
    another_process,
    quiet,
    recover,
    start_state,
)
from tests.torture.namespaces import in_namespace, resize, tmpfs
from tests.torture.processes import result_of
from tests.torture.rows import Outcome, Row, chosen

NOBODY = 65534
REFUSED = "refused"
"""Not a violation: the error was the one that it should be."""


def _act(machine: Machine, name: str) -> CheckpointError | None:
    """Do something, in a process of its own; the error of ours that it ended in. Any other comes out."""
    try:
        with another_process():
            ACTIONS[name](machine, random.Random(name))
    except CheckpointError as error:
        return error
    except NothingToDo:
        return None
    return None


def _fresh(state: State, root: Path) -> Machine:
    shutil.rmtree(root, ignore_errors=True)
    write_state(state, root)
    return Machine(str(root))


@dataclass(frozen=True)
class _Change:
    """What an action makes of the store when nothing goes wrong."""

    before: View
    after: View


def _change(state: State, name: str, folder: Path) -> _Change:
    machine = _fresh(state, folder / "done")
    before = machine.view()
    _act(machine, name)
    return _Change(before, machine.view())


def _judge(machine: Machine, change: _Change, name: str) -> Iterator[str]:
    yield from compare(machine, change.before, change.after, is_done=False, is_full=True)  # as far as anyone can tell
    with contextlib.suppress(NothingToDo):
        again = _act(machine, name)
        if isinstance(again, StoreError):
            yield f"the next attempt failed: {again!r}"
    yield from recover(machine, machine.view())


# --- row 9 ---


@dataclass
class _FailingCalls:
    """``os.write`` and ``os.fsync``, of which the k-th fails with EIO; and files whose fsync was tried again."""

    at: int = 0
    calls: list[str] = field(default_factory=list)
    failed_files: set[int] = field(default_factory=set)
    retried: bool = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        with (
            patch.object(os, "write", self._wrapped("write", os.write)),
            patch.object(os, "fsync", self._wrapped("fsync", os.fsync)),
        ):
            yield

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            self.calls.append(name)
            found = os.fstat(descriptor)
            is_file = stat.S_ISREG(found.st_mode)
            if name == "fsync" and is_file and found.st_ino in self.failed_files:
                self.retried = True
            if len(self.calls) == self.at:
                if name == "fsync" and is_file:
                    self.failed_files.add(found.st_ino)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, *arguments)

        return call


def fail_writes(count: int, seed: str, folder: Path) -> Outcome:
    """Row 9: EIO from each write and each fsync of every operation in turn."""
    outcome, refused = Outcome(), 0
    with quiet():
        state = start_state()
        cases = []
        for name in ACTIONS:
            counted = _FailingCalls()
            with counted.installed():
                _act(_fresh(state, folder / "w"), name)
            cases += [(name, at, call) for at, call in enumerate(counted.calls, start=1)]
        for name, at, call in chosen(cases, count, seed):
            found = list(_fail_call(state, folder, name, at))
            refused += _note(outcome, f"{name}, call {at} ({call})", found)
    outcome.detail = f"{len(cases)} calls in {len(ACTIONS)} operations; {refused} operations were refused"
    return outcome


def _fail_call(state: State, folder: Path, name: str, at: int) -> Iterator[str]:
    change = _change(state, name, folder)
    machine, failing = _fresh(state, folder / "w"), _FailingCalls(at)
    with failing.installed():
        found = _typed(name, machine, StoreError)
    yield from found
    if failing.retried:
        yield "an fsync that had failed was tried again"
    yield from _judge(machine, change, name)


# --- forks ---


def _in_fork(action: Callable[[], list[str]], fork: Callable[..., Any] = result_of) -> list[str]:
    """Do it in a fork of this process, which may limit itself; the violations that it found."""
    try:
        return list(fork(action))
    except RuntimeError as error:
        return [str(error)]


def _typed(name: str, machine: Machine, *expected: type[CheckpointError]) -> list[str]:
    """Do it, and say so when it ends in another error than one of these."""
    try:
        error = _act(machine, name)
    except Exception as unexpected:
        return [f"{type(unexpected).__name__}: {unexpected}"]
    if error is None:
        return []
    return [REFUSED] if isinstance(error, expected) else [f"{error!r}"]


def _note(outcome: Outcome, where: str, found: list[str]) -> int:
    """Add what was found to the violations; how many times the operation was refused, as it should be."""
    outcome.note(where, (violation for violation in found if violation != REFUSED))
    return found.count(REFUSED)


# --- row 11 ---


def limit_file_size(count: int, seed: str, folder: Path) -> Outcome:
    """Row 11: a limit on the size of files, in every second case, or writes that take only a part of what they get."""
    outcome, refused = Outcome(), 0
    with quiet():
        state = start_state()
        for number in range(count):
            source = random.Random(f"{seed} {number}")
            name = source.choice(["save", "save, back up, retire", "back up", "restore", "export", "import", "edit"])
            machine = _fresh(state, folder / "w")
            change = _change(state, name, folder)
            if number % 2:
                limit_bytes = source.randint(0, 4000)
                where = f"[{seed} {number}] {name}, at most {limit_bytes} bytes"
                found = _in_fork(partial(_with_limit, limit_bytes, name, machine))
            else:
                where = f"[{seed} {number}] {name}, short writes"
                found = _with_short_writes(source, name, machine)
            refused += _note(outcome, where, [*found, *_judge(machine, change, name)])
    outcome.detail = f"{count // 2} limits, by which {refused} operations were refused"
    return outcome


def _with_limit(limit_bytes: int, name: str, machine: Machine) -> list[str]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    return _typed(name, machine, StoreError)


def _with_short_writes(source: random.Random, name: str, machine: Machine) -> list[str]:
    real = os.write

    def write(descriptor: int, data: Any) -> int:
        return real(descriptor, memoryview(data)[: source.randint(1, 700)])

    with patch.object(os, "write", write):
        return _typed(name, machine)


# --- row 12 ---

RIGHTS: dict[str, Callable[[Path], None]] = {
    "read-only experiment": lambda root: (root / "run").chmod(0o555),
    "unreadable experiment": lambda root: (root / "run").chmod(0),
    "read-only store": lambda root: _chmod_all(root, 0o555, 0o444),
    "read-only backups": lambda root: (root / "run" / "backups").chmod(0o555),
    "unreadable files": lambda root: _chmod_all(root, 0o777, 0),
    "read-only export folder": lambda root: (root / "exported").chmod(0o555),
}


def _chmod_all(root: Path, folders: int, files: int) -> None:
    for path in sorted(root.rglob("*"), reverse=True):
        path.chmod(folders if path.is_dir() else files)
    root.chmod(folders)


def take_rights(count: int, seed: str, folder: Path) -> Outcome:
    """Row 12: every operation as a user who may not: a typed error or, where nothing is refused, the operation."""
    outcome, refused = Outcome(), 0
    cases = [(rights, name) for rights in RIGHTS for name in ACTIONS]
    with quiet(), tempfile.TemporaryDirectory(dir=folder.anchor + "tmp") as place:  # where an other user may look
        state = start_state()
        Path(place).chmod(0o755)
        for rights, name in chosen(cases, count, seed):
            root = Path(place) / "w"
            machine, change = _fresh(state, root), _change(state, name, Path(place))
            _chmod_all(root, 0o777, 0o666)
            RIGHTS[rights](root)
            found = _in_fork(partial(_as_nobody, name, machine))
            _chmod_all(root, 0o777, 0o666)
            refused += _note(outcome, f"{rights}, {name}", [*found, *_judge(machine, change, name)])
    outcome.detail = f"{len(RIGHTS)} ways to lack rights, {len(ACTIONS)} operations, {refused} refused"
    return outcome


def _as_nobody(name: str, machine: Machine) -> list[str]:
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    return _typed(name, machine, StorePermissionError)


# --- row 13 ---


def exhaust(count: int, seed: str, folder: Path) -> Outcome:
    """Row 13: no inodes on a file system of its own, in every second case, or no descriptors in a process."""
    outcome, refused = Outcome(), 0
    names = ["save", "save, back up, retire", "back up", "restore", "export", "edit", "delete", "clean up"]
    with quiet():
        state = start_state()
        for number in range(count):
            source = random.Random(f"{seed} {number}")
            name = source.choice(names)
            if number % 2:
                spare = source.randint(0, 8)
                where = f"[{seed} {number}] {name}, {spare} inodes left"
                found = _in_fork(partial(_without_inodes, state, folder / "tmpfs", spare, name), in_namespace)
            else:
                spare = source.randint(0, 8)
                where = f"[{seed} {number}] {name}, {spare} descriptors left"
                machine, change = _fresh(state, folder / "w"), _change(state, name, folder)
                found = _in_fork(partial(_without_descriptors, machine, spare, name))
                found += _judge(machine, change, name)
            refused += _note(outcome, where, found)
    outcome.detail = f"{refused} operations were refused, the others found enough"
    return outcome


def _without_descriptors(machine: Machine, spare: int, name: str) -> list[str]:
    _warm_up(machine)
    before = set(os.listdir("/proc/self/fd"))
    soft = max(map(int, before)) + 1 + spare
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(soft - len(before) - spare - 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    found = _typed(name, machine, StoreUnavailableError)
    for descriptor in held:
        os.close(descriptor)
    return found


def _warm_up(machine: Machine) -> None:
    """Import what is imported late: that a module cannot be opened is not the store's matter."""
    with contextlib.suppress(CheckpointError):
        machine.manager("warm").resume()


def _without_inodes(state: State, root: Path, spare: int, name: str) -> list[str]:
    entries = len(state) + len({str(parent) for path in state for parent in Path(path).parents})
    with tmpfs(root, inodes=entries + 1 + spare):
        write_state(state, root)
        machine = Machine(str(root))
        before = machine.view()
        found = _typed(name, machine, StorageFullError)
        resize(root, inodes=entries + 100)
        now = machine.view()
        kept = {key: facts for key, facts in before.items() if facts != IN_TRASH}  # which a full store gives up
        found += [f"{key} was changed" for key, facts in kept.items() if name == "save" and now.get(key) != facts]
        return found + list(recover(machine, machine.view()))


ROWS = [
    Row(
        9,
        "EIO from write or fsync",
        "fsync never tried again; the operation fails; each checkpoint as before or complete",
        "calls",
        0,
        24,
        fail_writes,
    ),
    Row(11, "short write, limit on file size", "seen before the commit", "cases", 100, 20, limit_file_size),
    Row(
        12,
        "read-only folder, missing rights",
        "a typed error, nothing partial",
        "operations",
        0,
        10,
        take_rights,
    ),
    Row(13, "no inodes, no descriptors", "a typed error, nothing left over", "cases", 20, 6, exhaust),
]
