"""Rows 22 and 23: saves whose process is dead, far away or stands still, and others that take it for dead."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, VersionConflictError
from ckpt_lib.experiment import claims, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.saving import failover
from ckpt_lib.store import open_store
from ckpt_lib.testing import FaultPlan, faults_injected
from tests.experiment.crashes import OLD, OPERATIONS, PATHS, harm, leftovers
from tests.torture import concurrency
from tests.torture.places import LOCAL, StoredPlace, let_days_pass, places, steps_of
from tests.torture.processes import Child, ChildError
from tests.torture.rows import Outcome, Row, chosen, told

# --- row 22 ---


@dataclass(frozen=True)
class Case:
    """What became of the process that saves, and whether a sweep may end its claim."""

    owner: dict[str, Any]
    """What its claim says of it that is not so."""
    is_killed: bool = False
    is_reaped: bool = True
    abandoned_after_seconds: float = claims.ABANDONED_AFTER_SECONDS
    is_over: bool = True


ELSEWHERE = {"host": "elsewhere", "system": "another boot", "pid": 2**22 + 1}
CASES = {
    "killed": Case({}, is_killed=True),
    "killed and not reaped": Case({}, is_killed=True, is_reaped=False),
    "its number given to another": Case({"started": "1"}),
    "elsewhere": Case(ELSEWHERE, is_over=False),
    "elsewhere, for too long": Case(ELSEWHERE, abandoned_after_seconds=0),
    "standing still": Case({}, is_over=False),
    "standing still for too long": Case({}, abandoned_after_seconds=0),
}
MOMENTS = ("open_write", "write", "commit", "put")
"""Before which operation the saving process stops; the last is the commit of the checkpoint."""


def stale_claims(count: int, seed: str, folder: Path) -> Outcome:
    """Stop processes in the middle of a save, and let another one sweep."""
    outcome = Outcome()
    kinds: Counter[str] = Counter()
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        name, moment = list(CASES)[number % len(CASES)], chance.choice(MOMENTS)
        try:
            wrong = list(_check_stale(CASES[name], moment, folder / str(number)))
        except (CheckpointError, ChildError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        kinds[name] += 1
        outcome.note(f"seed {seed}, claim {number}, {name}, before {moment}", wrong)
    outcome.detail = told(kinds)
    return outcome


def _check_stale(case: Case, moment: str, place: Path) -> Iterator[str]:
    manager = concurrency.manager_at(place)
    earlier = str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=1))
    experiment = Experiment(open_store(str(place)), "run", "run")
    with Child(_save_and_stop, moment, case.owner, place) as owner:
        if not owner.wait_until_stopped():
            yield "it did not stop"
            return
        (claim,) = experiment.index.view().claims
        if case.is_killed:
            os.kill(owner.pid, signal.SIGKILL)
            os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
            if case.is_reaped:
                owner.kill()
        swept = sweep(experiment, abandoned_after_seconds=case.abandoned_after_seconds).claims
        if swept != [claim.checkpoint_id] * case.is_over:
            yield f"swept were {swept}, of {claim.checkpoint_id}"
        later = str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=2))
        answer = claim.checkpoint_id
        if not case.is_killed:
            owner.go_on()
            answer = owner.result()
            if answer != (VersionConflictError.__name__ if case.is_over else claim.checkpoint_id):
                yield f"the saving process ended with {answer}"
        wanted = {earlier, later} | (set() if case.is_over else {answer})
        found = {item.checkpoint_id for item in manager.list_checkpoints()}
        if found != wanted:
            yield f"there are {found}, and not {wanted}"
    yield from (str(report) for report in manager.validate_all() if not report)
    yield from (f"{name} was left behind" for name in concurrency.leftovers(place / "run"))


def _save_and_stop(moment: str, lies: dict[str, Any], place: Path) -> str:
    """Save, stop before the last operation of a kind on the checkpoint's own files, and go on as if nothing was."""
    real = Owner.current()
    Owner.current = lambda: real.model_copy(update=lies)  # type: ignore[method-assign]
    logging.getLogger("ckpt_lib").setLevel(logging.CRITICAL)
    failover.RETRY_DELAYS_SECONDS = ()  # type: ignore[assignment]  # the first attempt is looked at
    puts = 0

    def stop(operation: str, key: str) -> None:
        nonlocal puts
        puts += operation == "put" and "/checkpoint_epoch" in key
        if operation == moment and "/checkpoint_epoch" in key and (operation != "put" or puts == 2):
            os.kill(os.getpid(), signal.SIGSTOP)

    with faults_injected(FaultPlan(between=stop)):
        try:
            manager = concurrency.manager_at(place, save_metadata=False)
            return str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=3))
        except CheckpointError as error:
            return type(error).__name__


# --- row 23 ---

DAYS = 2.0
STORES = ("memory", LOCAL)


def paused_operations(count: int, seed: str, folder: Path) -> Outcome:
    """Let others work at each step of each operation, after so long that they take its process for dead."""
    outcome = Outcome()
    endings: Counter[str] = Counter()
    for number, (kind, name, step) in enumerate(chosen(steps_of(STORES, folder), count, seed)):
        try:
            ending, wrong = _pause(kind, name, step, folder / str(number))
        except CheckpointError as error:
            ending, wrong = "failed", [f"{type(error).__name__}: {error}"]
        endings[ending] += 1
        outcome.note(f"{kind}, {name}, before operation {step}", wrong)
    outcome.detail = told(endings)
    return outcome


def _pause(kind: str, name: str, step: int, folder: Path) -> tuple[str, list[str]]:
    """Do an operation with a pause in it; return how it ended, and what is wrong then."""
    place = next(places(kind, folder))
    saved: list[Manifest] = []
    calls = 0

    def pause(*_: str) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            saved.append(_work(place.another(), kind))

    try:
        made = OPERATIONS[name].act(place.another(FaultPlan(between=pause)))
        ending = "done"
        if isinstance(made, Manifest) and name.endswith("save"):
            saved.append(made)
    except CheckpointError as error:
        ending = f"refused as {type(error).__name__}"
    return ending, list(_check_paused(place.another(), name, saved))


def _work(place: StoredPlace, kind: str) -> Manifest:
    """What others do meanwhile: take the paused one for dead, save with its id, tag what it may be about to delete."""
    if kind != LOCAL:
        let_days_pass(place.store, DAYS)
    _sweep(place)
    saved = place.save(7)
    with contextlib.suppress(CheckpointNotFoundError):  # it was deleted before the pause
        edits.edit(place.experiment(), place.id(OLD), lambda item: item.changed(tags=(*item.tags, "meanwhile")))
    _sweep(place)
    return saved


def _sweep(place: StoredPlace) -> None:
    for path in PATHS:
        sweep(place.experiment(path), abandoned_after_seconds=0)


def _check_paused(place: StoredPlace, name: str, saved: list[Manifest]) -> Iterator[str]:
    """What is seen is whole, and what was acknowledged is there, each under an id of its own."""
    yield from harm(place, OPERATIONS[name], is_acknowledged=False)
    for manifest in saved:
        record = place.experiment().read(manifest.checkpoint_id).record
        if not (isinstance(record, Manifest) and record.is_visible and record.claim == manifest.claim):
            yield f"{manifest.checkpoint_id} was acknowledged and is not there"
    _sweep(place)
    place.save(9)
    yield from harm(place, OPERATIONS[name], is_acknowledged=False)
    for path in PATHS:
        yield from leftovers(place.experiment(path))


ROWS = [
    Row(
        number=22,
        fault="the claim of a save whose process is dead, far away or standing still",
        must_hold="ended only when its owner is known to be dead or did not renew it for a day; the owner is told then",
        unit="claims",
        count=140,
        sample=14,
        run=stale_claims,
    ),
    Row(
        number=23,
        fault="any operation stands still for two days at any step, others take it for dead, and it goes on",
        must_hold="it succeeds or is told so; what is seen is whole, nothing acknowledged is lost, nothing left behind",
        unit="pauses",
        count=0,
        sample=60,
        run=paused_operations,
    ),
]
