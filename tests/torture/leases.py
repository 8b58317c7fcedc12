"""Leases of owners that are dead, far away, or stood still for too long: when they end, and what ends with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointManager
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, LeaseLostError
from ckpt_lib.experiment import commit
from ckpt_lib.experiment.layout import CheckpointFolder
from ckpt_lib.policies.retention import KeepNewest
from ckpt_lib.saving import failover
from ckpt_lib.store import leases, open_store
from ckpt_lib.store.folder_lock import LOCK_NAME
from tests.torture.concurrency import leftovers, manager_at
from tests.torture.processes import Child, ChildError, patched, set_clock
from tests.torture.rows import Outcome, Row

LONG_SECONDS = 60.0
SHORT_SECONDS = 0.6
"""As short as a process can renew in time on a machine that does other things as well."""
SLACK_SECONDS = 20.0
"""Less than the long lease, and more than a busy machine takes to do anything that should be done at once."""


def lease_of(folder: Path, token: str) -> Path:
    return folder / f"{leases.LEASE_PREFIX}{token}" / "lease"


def planted_lease(folder: Path) -> Path:
    """The file of a lease that nobody here has taken, empty; its token is ``"0" * 16``."""
    lease = lease_of(folder, "0" * 16)
    lease.parent.mkdir()
    lease.touch()
    return lease


def lock_token(folder: Path) -> str:
    """Whose the lock is, or ``""``."""
    try:
        last = max(os.listdir(folder / LOCK_NAME), key=int, default=None)
        content = (folder / LOCK_NAME / last).read_bytes() if last else leases.FREE
    except FileNotFoundError:
        return ""
    return "" if content == leases.FREE else str(json.loads(content)["token"])


# --- row 22 ---


def _rewritten(lease: Path, **changes: object) -> None:
    content = json.loads(lease.read_bytes())
    content["owner"] |= changes
    lease.write_text(json.dumps(content))


def _other_host(folder: Path, token: str, chance: random.Random) -> None:
    """It may be alive there, whatever runs here under its number, and whatever its clock says."""
    lease = lease_of(folder, token)
    _rewritten(lease, host="elsewhere", system=f"another boot/{chance.randrange(2**32)}", pid=2**22 + 1)
    moment = time.time() + chance.choice([-1, 0, 1]) * 365 * 24 * 3600
    os.utime(lease, (moment, moment))


def _reused_pid(folder: Path, token: str, _: random.Random) -> None:
    _rewritten(lease_of(folder, token), started="1")


def _emptied(folder: Path, token: str, _: random.Random) -> None:
    lease_of(folder, token).write_bytes(b"")


def _unreadable(folder: Path, token: str, chance: random.Random) -> None:
    lease_of(folder, token).write_bytes(chance.randbytes(100))


def _removed(folder: Path, token: str, _: random.Random) -> None:
    shutil.rmtree(lease_of(folder, token).parent)


def _untouched(folder: Path, token: str, _: random.Random) -> None:
    """The owner stands still."""


EXPIRING: tuple[Callable[[Path, str, random.Random], None], ...] = (_other_host, _emptied, _unreadable, _untouched)
AT_ONCE: tuple[Callable[[Path, str, random.Random], None], ...] = (_reused_pid, _removed)


def stale_leases(count: int, seed: str, folder: Path) -> Outcome:
    """Owners that stopped while they had the lock, and what became of their leases."""
    outcome = Outcome()
    kinds: Counter[str] = Counter()
    cases = ("killed", "killed, not reaped", "renewed", *(case.__name__.strip("_") for case in (*EXPIRING, *AT_ONCE)))
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        case = cases[number % len(cases)]
        place = folder / str(number) / "run"
        try:
            wrong = list(_check_stale(case, place, chance))
        except (CheckpointError, ChildError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        kinds[case.replace("_", " ")] += 1
        outcome.injected += 1
        outcome.violations += [f"seed {seed}, lease {number}, {case}: {line}" for line in wrong]
    outcome.detail = ", ".join(f"{times} {kind}" for kind, times in sorted(kinds.items()))
    return outcome


def _check_stale(case: str, place: Path, chance: random.Random) -> Iterable[str]:
    changes = {change.__name__.strip("_"): change for change in (*EXPIRING, *AT_ONCE)}
    expires = case == "renewed" or changes.get(case) in EXPIRING
    lease_seconds = SHORT_SECONDS if expires else LONG_SECONDS
    with patched(leases, "LEASE_SECONDS", lease_seconds), Child(_stop_with_lock, place) as owner:
        owner.wait_until_stopped()
        token = lock_token(place)
        _litter(place)
        if case == "killed":
            owner.kill()
        elif case == "killed, not reaped":
            os.kill(owner.pid, signal.SIGKILL)
        elif case == "renewed":
            yield from _check_renewed(place, token)
            _other_host(place, token, chance)
        else:
            changes[case](place, token, chance)
        begun = time.monotonic()
        with Child(_take_over, place) as other:
            other.result()
        waited_seconds = time.monotonic() - begun
        if not expires and waited_seconds > SLACK_SECONDS:
            yield f"the lock was free at once and was taken after {waited_seconds:.1f} s"
        if expires and not 0.95 * lease_seconds < waited_seconds < lease_seconds + SLACK_SECONDS:
            yield f"the lease of {lease_seconds} s was broken after {waited_seconds:.2f} s"
        before = contents(place)
        if not case.startswith("killed"):
            owner.go_on()
            if (answer := owner.result()) != LeaseLostError.__name__:
                yield f"the owner was not told that it had lost its lease, but {answer}"
        if contents(place) != before:
            yield f"the owner wrote after it had lost its lease: {difference(before, contents(place))}"
    yield from (f"{name} was left behind" for name in leftovers(place) if name not in {"taken", "first"})


def _stop_with_lock(place: Path) -> str:
    """The owner: begins a file, takes the lock, stops, and goes on as if nothing had happened."""
    store = open_store(str(place.parent))
    pending = store.open_write("run")
    try:
        pending.write(b"late")
        with store.lock("run") as held:
            held.put("run/first", b"1")
            os.kill(os.getpid(), signal.SIGSTOP)
            held.publish(pending, "run/late")
    except CheckpointError as error:
        return type(error).__name__
    finally:
        pending.discard()
    return "nothing"


def _litter(place: Path) -> None:
    """What a process leaves that is killed while it takes a lease away from another."""
    broken = place / f"{leases.BROKEN_PREFIX}{secrets.token_hex(8)}-{secrets.token_hex(4)}"
    broken.mkdir()
    for name in ("lease", "free", "0"):
        (broken / name).touch()


def _check_renewed(place: Path, token: str) -> Iterable[str]:
    """As long as somebody renews the lease, wherever that is, nobody breaks it."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(SHORT_SECONDS / 8):
            os.utime(lease_of(place, token))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with Child(_watch, place, token) as watcher:
            if watcher.result():
                yield "a lease that was renewed was taken to be over"
    finally:
        over.set()
        thread.join()


def _watch(place: Path, token: str) -> bool:
    """Whether the lease looks as if it were over, at any time during three of it."""
    store = open_store(str(place.parent))
    until = time.monotonic() + 3 * SHORT_SECONDS
    with store._open("run") as directory:  # type: ignore[attr-defined]
        while time.monotonic() < until:
            if leases.is_over(directory, token):
                return True
            time.sleep(0.01)
    return False


def _take_over(place: Path) -> None:
    store = open_store(str(place.parent))
    with store.lock("run") as held:
        held.put("run/taken", b"1")
        held.sweep()


def contents(folder: Path) -> dict[str, str]:
    """Each file below ``folder`` with the digest of its bytes, without what belongs to leases."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".ckpt-" not in str(path.relative_to(folder))
    }


def difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted({name for name, _ in before.items() ^ after.items()})


# --- row 23 ---

CALLS = ("open", "write", "fsync", "link", "unlink", "rename", "replace", "mkdir", "rmdir", "stat", "utime")
"""An owner stops before one of these."""
PATIENCE = 40
"""The owner stops before one of so many calls, or of half as many since it got the lock; an operation may end first."""
NOW = 1.8e9


def paused_owners(count: int, seed: str, folder: Path) -> Outcome:
    """Stop a process in the middle of an operation, let others take over, and wake it up."""
    outcome = Outcome()
    moments: Counter[str] = Counter()
    # A save that loses its lease begins anew, and what that writes is its own: here the first attempt is looked at.
    with patched(leases, "LEASE_SECONDS", SHORT_SECONDS), patched(failover, "RETRY_DELAYS_SECONDS", ()):
        attempt = 0
        while outcome.injected < count and attempt < 10 * count:
            chance = random.Random(f"{seed} {attempt}")
            operation = chance.choice(list(OPERATIONS))
            try:
                moment, wrong = _check_paused(operation, chance, folder / str(attempt))
            except (CheckpointError, ChildError) as error:
                moment, wrong = "failed", [f"{type(error).__name__}: {error}"]
            outcome.injected += bool(moment)
            moments[moment] += 1
            outcome.violations += [f"seed {seed}, attempt {attempt}, {operation}, {moment}: {line}" for line in wrong]
            attempt += 1
    del moments[""]
    outcome.detail = ", ".join(f"{times} {moment}" for moment, times in sorted(moments.items()))
    return outcome


def _save_one(manager: CheckpointManager) -> str:
    return str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=1))


def _build(place: Path) -> list[str]:
    """Three checkpoints, of one second: the second has a backup and is damaged, the third was deleted."""
    set_clock(lambda: NOW)
    manager = manager_at(place, trash_seconds=600)
    ids = [_save_one(manager) for _ in range(3)]
    manager.backup_checkpoint(ids[1])
    payload = place / "run" / f"{ids[1]}.pt"
    data = bytearray(payload.read_bytes())
    data[len(data) // 2] ^= 1
    payload.write_bytes(data)
    manager.delete_checkpoint(ids[2])
    manager.export_checkpoint(ids[0], place / "exported")
    return ids


OPERATIONS: dict[str, Callable[[CheckpointManager, list[str], Path], object]] = {
    "save": lambda manager, ids, place: _save_one(manager),
    "delete": lambda manager, ids, place: manager.delete_checkpoint(ids[0]),
    "undelete": lambda manager, ids, place: manager.undelete_checkpoint(ids[2]),
    "edit": lambda manager, ids, place: manager.edit_checkpoint(ids[0], add_tags=["late"]),
    "clean up": lambda manager, ids, place: manager.cleanup_checkpoints(policy=KeepNewest(count=1)),
    "repair": lambda manager, ids, place: manager.repair_checkpoint(ids[1]),
    "restore": lambda manager, ids, place: manager.restore_checkpoint(ids[1]),
    "back up": lambda manager, ids, place: manager.backup_checkpoint(ids[0]),
    "import": lambda manager, ids, place: manager.import_checkpoint(place / "exported"),
}


def _check_paused(operation: str, chance: random.Random, place: Path) -> tuple[str, list[str]]:
    """At what moment the owner stood still, ``""`` if it ended before, and what is wrong."""
    with Child(_build, place) as builder:
        ids = builder.result()
    folder = place / "run"
    has_lock = chance.random() < 0.6
    call = chance.randint(1, PATIENCE // 2 if has_lock else PATIENCE)
    with Child(_stop_before, call, has_lock, operation, ids, place) as owner:
        if not owner.wait_until_stopped():
            owner.result()
            return "", []
        token = lock_token(folder) or lock_token(folder / "backups")
        with Child(_work, place, ids) as other:
            done = other.result()
        before = contents(place)
        owner.go_on()
        answer, told = owner.result()
        after = contents(place)
    wrong = []
    if answer not in {"done", LeaseLostError.__name__}:
        wrong.append(f"it ended with {answer}: {told}")
    # One that is told so has written nothing, wherever it stood; one that had the lock has written nothing anyway.
    if before != after and (token or answer == LeaseLostError.__name__):
        wrong.append(f"{answer}, but it has changed {difference(before, after)}")
    if operation == "save" and answer == "done":
        done.append(told)
    return ("with the lock" if token else "without the lock"), wrong + list(_check_all_whole(place, ids, done))


def _stop_before(call: int, has_lock: bool, operation: str, ids: list[str], place: Path) -> tuple[str, str]:
    """The owner: does an operation, and stops before the ``call``-th of its system calls, since it had the lock."""
    set_clock(lambda: NOW)
    manager = manager_at(place, trash_seconds=0, save_metadata=False)
    with _stopping(call, has_lock):
        try:
            return "done", str(OPERATIONS[operation](manager, ids, place))
        except (CheckpointError, OSError) as error:
            return type(error).__name__, str(error)


@contextlib.contextmanager
def _stopping(at: int, has_lock: bool) -> Iterator[None]:
    calls, thread = (-10_000 if has_lock else 0), threading.get_ident()

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if threading.get_ident() == thread:  # the thread that renews is no part of the operation
                calls += 1
                if calls == at:
                    os.kill(os.getpid(), signal.SIGSTOP)
            result = function(*arguments, **options)
            if calls < 0 and function.__name__ == "link" and arguments[1].startswith(LOCK_NAME):  # the lock is taken
                calls = 0
            return result

        return call

    with contextlib.ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(patched(os, name, wrap(getattr(os, name))))
        yield


def _work(place: Path, ids: list[str]) -> list[str]:
    """What another process does meanwhile, until nothing is left of the paused one; the ids that must be there then."""
    set_clock(lambda: NOW)
    manager = manager_at(place, trash_seconds=600, save_metadata=False)
    folders = [manager._folder, manager._backups]
    saved = _insist(lambda: _save_one(manager))
    for checkpoint_id in ids:
        with contextlib.suppress(CheckpointNotFoundError):  # the owner got so far
            _insist(lambda name=checkpoint_id: manager.edit_checkpoint(name, add_tags=["on time"]))  # type: ignore[misc]
            _insist(lambda name=checkpoint_id: manager.delete_checkpoint(name))  # type: ignore[misc]
            _insist(lambda name=checkpoint_id: manager.undelete_checkpoint(name))  # type: ignore[misc]
    until = time.monotonic() + 1.5 * SHORT_SECONDS
    while time.monotonic() < until:
        for folder in folders:
            _insist(lambda folder=folder: _sweep(folder))  # type: ignore[misc]
        time.sleep(SHORT_SECONDS / 10)
    return [saved]


def _sweep(folder: CheckpointFolder) -> None:
    commit.sweep(folder, folder.store.entries(folder.path), grace_seconds=600)


def _insist(action: Callable[[], Any]) -> Any:
    """Do it, again and again if a busy machine lets even this short lease run out."""
    while True:
        try:
            return action()
        except LeaseLostError:
            continue


def _check_all_whole(place: Path, ids: list[str], there: list[str]) -> Iterable[str]:
    """What is listed is whole, but for the one that was damaged at first, and what was acknowledged is there."""
    manager = manager_at(place)
    manager.cleanup_checkpoints(policy=KeepNewest(count=1000))
    manager.empty_trash()
    found = manager.list_checkpoints()
    yield from (
        f"{name} was acknowledged and is gone" for name in there if name not in [item.checkpoint_id for item in found]
    )
    sequences = [item.sequence for item in found]
    if len(set(sequences)) != len(sequences):
        yield f"a sequence was given twice: {sequences}"
    yield from (str(item) for item in manager.validate_all() if not item and item.checkpoint_id != ids[1])
    yield from (str(item) for item in manager.validate_all_backups() if not item)
    yield from (f"{left} was left behind" for left in leftovers(place / "run"))


ROWS = [
    Row(
        number=22,
        fault="a lease whose owner is dead, far away or standing still, or that cannot be read",
        must_hold="broken only when it has expired or its owner is known to be dead; the owner is fenced out",
        unit="leases",
        count=100,
        sample=9,
        run=stale_leases,
    ),
    Row(
        number=23,
        fault="an owner stands still past its lease, others work, and it goes on",
        must_hold="it is told so, and writes nothing",
        unit="pauses",
        count=50,
        sample=2,
        run=paused_owners,
    ),
]
