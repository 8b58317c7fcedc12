"""Everything at once: eight processes that save, load, clean up, copy, edit, delete and repair in one experiment."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import multiprocessing
import random
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.metadata import CheckpointMetadata
from ckpt_lib.errors import CheckpointNotFoundError, ProtectedCheckpointError
from ckpt_lib.experiment import edits
from ckpt_lib.experiment.layout import SNAPSHOT_NAME
from ckpt_lib.formats import Payload
from ckpt_lib.policies.retention import KeepAnyOf, KeepAtMost, KeepNewest, KeepTagged, RetentionPolicy
from tests.torture.concurrency import PROCESSES, YEAR_SECONDS, leftovers
from tests.torture.processes import ChildError, at_once, set_clock
from tests.torture.rows import Outcome, Row

KEPT = 4
"""Every policy in use keeps at least so many of the newest."""
TRASH_SECONDS = 0.7
"""Short, so that some come back from the trash and others are removed from it."""
POLICIES: tuple[RetentionPolicy | None, ...] = (
    None,
    KeepNewest(count=KEPT),
    KeepAtMost(count=KEPT + 2),
    KeepAnyOf(policies=(KeepNewest(count=KEPT), KeepTagged(tags=("kept",)))),
)
STALL_SECONDS = 150.0
"""A process that is still not done so long after the end hangs; longer than it may wait for a lock."""
IN_USE_SECONDS = 3.0
"""For how long what a run has resumed from is kept; short, so that it goes afterwards."""


@dataclass
class Diary:
    """What one process did, and what it found wrong."""

    saved: dict[str, int] = field(default_factory=dict)
    """Acknowledged ids, with their sequence where it could still be asked for, else 0."""
    deleted: set[str] = field(default_factory=set)
    """Ids that it asked to delete."""
    pinned: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def everything_at_once(count: int, seed: str, folder: Path) -> Outcome:
    """``count`` seconds of it."""
    newest = multiprocessing.get_context("fork").Value("q", 0)
    with contextlib.closing(Worker(PROCESSES, seed, folder, newest)) as first:
        first.save()  # from now on there is always a latest
    reports = at_once(PROCESSES, _work, seed, folder, newest, count, timeout_seconds=count + STALL_SECONDS)
    diaries = [first.diary, *(report for report in reports if isinstance(report, Diary))]
    outcome = Outcome(injected=count)
    outcome.violations += [f"seed {seed}: {report}" for report in reports if isinstance(report, ChildError)]
    outcome.violations += [f"seed {seed}: {line}" for diary in diaries for line in diary.violations]
    if len(diaries) == PROCESSES + 1:
        outcome.violations += [f"seed {seed}, at the end: {line}" for line in _check_end(folder, diaries)]
    total: Counter[str] = sum((diary.counts for diary in diaries), Counter())
    outcome.detail = ", ".join(f"{times} times {name}" for name, times in sorted(total.items()))
    return outcome


def _work(number: int, seed: str, folder: Path, newest: Synchronized[int], seconds: float) -> Diary:
    """The life of one process; a clock that is a year off is nothing to it."""
    true_time, skew_seconds = time.time, random.Random(f"{seed} {number}").choice([0, 0, -YEAR_SECONDS, YEAR_SECONDS])
    set_clock(lambda: true_time() + skew_seconds)
    edits.IN_USE_SECONDS = IN_USE_SECONDS
    with contextlib.closing(Worker(number, seed, folder, newest)) as worker:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            worker.act()
        worker.act("flush")
    return worker.diary


class _Complaints(logging.Handler):
    """Nothing is to be logged but what the worker expects: what follows a save fails in the log only."""

    def __init__(self, diary: Diary) -> None:
        super().__init__(logging.WARNING)
        self._diary = diary
        self.may_come_from_backup: str | None = None
        """The id of a checkpoint that was asked for, and may have been deleted before it was."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self.may_come_from_backup and text.startswith(f"{self.may_come_from_backup} is not whole in "):
            return
        if record.exc_info and record.exc_info[1]:
            text += "".join(traceback.format_exception(record.exc_info[1]))
        self._diary.violations.append(f"logged: {text}")


class Worker:
    """One process: a manager, and what has to be true whenever it looks."""

    def __init__(self, number: int, seed: str, folder: Path, newest: Synchronized[int]) -> None:
        self._number = number
        self._folder = folder
        self._chance = random.Random(f"{seed} worker {number}")
        self._newest = newest
        self._saves = 0
        self._resumed: tuple[str, float] | None = None
        self.diary = Diary()
        self.manager = CheckpointManager(
            CheckpointConfig(
                checkpoint_dir=str(folder),
                max_checkpoints=KEPT + 2,
                max_backups=3,
                backup_checkpoints=number % 2 == 0,
                trash_seconds=TRASH_SECONDS,
            ),
            "run",
        )
        self._complaints = _Complaints(self.diary)
        logging.getLogger("ckpt_lib").addHandler(self._complaints)
        logging.getLogger("ckpt_lib").propagate = False

    def close(self) -> None:
        logging.getLogger("ckpt_lib").removeHandler(self._complaints)
        logging.getLogger("ckpt_lib").propagate = True

    def act(self, name: str = "") -> None:
        """Do something, by chance, and note whatever must not have happened."""
        name = name or self._chance.choice(ACTIONS)
        self.diary.counts[name.replace("_", " ")] += 1
        try:
            getattr(self, name)()
            self._look_around()
        except Exception:
            self.diary.violations.append(f"process {self._number}, {name}: {traceback.format_exc()}")
        if self._chance.random() < 0.2:
            time.sleep(self._chance.expovariate(100))

    def _must(self, is_so: bool, what: str) -> None:
        if not is_so:
            self.diary.violations.append(f"process {self._number}: {what}")

    def _look_around(self) -> None:
        """Latest never goes back, and what this process has resumed from just now or has pinned is there."""
        before = self._newest.value
        there = self.manager.list_checkpoints()
        self._must(bool(there), "there is no latest")
        if there:
            self._must(
                there[-1].sequence >= before, f"the latest is {there[-1].sequence}, and {before} was acknowledged"
            )
        ids = {item.checkpoint_id for item in there}
        gone = self.diary.pinned - ids
        self._must(not gone, f"{gone} are pinned, and gone")
        if self._resumed is not None:
            checkpoint_id, until = self._resumed
            if time.monotonic() > until:
                self._resumed = None
            else:
                self._must(checkpoint_id in ids, f"it resumed from {checkpoint_id}, which is gone")

    # --- what there is to do ---

    def save(self) -> None:
        self._acknowledged(str(self.manager.save_checkpoint(**self._state())))

    def save_in_the_background(self) -> None:
        handles = [self.manager.save_checkpoint_async(**self._state()) for _ in range(2)]
        for handle in handles:
            self._acknowledged(str(handle.result()))

    def _state(self) -> dict[str, Any]:
        """A state in which everything tells what belongs together."""
        self._saves += 1
        token = 1000 * self._number + self._saves % 1000
        model = torch.nn.Linear(64, 128)
        torch.nn.init.constant_(model.weight, token)
        loss = self._chance.choice([math.nan, self._chance.random(), self._chance.random()])
        tags = [tag for tag in ("kept", "tried") if self._chance.random() < 0.1]
        return {"model": model, "epoch": 1, "step": token, "metrics": {"val_loss": loss}, "tags": tags}

    def _acknowledged(self, checkpoint_id: str) -> None:
        self.diary.saved[checkpoint_id] = 0
        with contextlib.suppress(CheckpointNotFoundError):  # deleted by name already
            sequence = self.manager.get_checkpoint(checkpoint_id).sequence
            self.diary.saved[checkpoint_id] = sequence
            with self._newest.get_lock():
                self._newest.value = max(self._newest.value, sequence)

    def _check_payload(self, payload: Payload) -> None:
        """Its tensors are views of a file that may be deleted or repaired while we look at them."""
        if self._chance.random() < 0.3:
            time.sleep(self._chance.uniform(0, 0.05))
        weight = payload["model_state_dict"]["weight"]
        self._must(bool((weight == payload["step"]).all()), f"{payload['checkpoint_id']} holds something else")

    def load(self) -> None:
        for _ in range(3):
            payload = self.manager.load_checkpoint()
            self._check_payload(payload)

    def load_the_best(self) -> None:
        with contextlib.suppress(CheckpointNotFoundError):  # when someone deleted the only one with a loss
            payload = self.manager.load_checkpoint("best")
            self._check_payload(payload)

    def load_any(self) -> None:
        """Load one by its id, which comes from its backup where a policy has deleted it since it was listed."""
        found = self._any()
        self._complaints.may_come_from_backup = found.checkpoint_id
        try:
            with contextlib.suppress(CheckpointNotFoundError):
                self._check_payload(self.manager.load_checkpoint(found.checkpoint_id))
        finally:
            self._complaints.may_come_from_backup = None

    def resume(self) -> None:
        model, begun = torch.nn.Linear(64, 128), time.monotonic()
        payload = self.manager.resume(model)
        if payload is None:
            self._must(False, "there is nothing to resume from")
            return
        self._resumed = payload["checkpoint_id"], begun + IN_USE_SECONDS
        self._must(bool((model.weight == payload["step"]).all()), "what was restored is something else")
        self._must(not payload["passed_over"], f"passed over: {payload['passed_over']}")

    def _any(self) -> CheckpointMetadata:
        return self._chance.choice(self.manager.list_checkpoints())

    def clean_up(self) -> None:
        self.manager.cleanup_checkpoints(policy=self._chance.choice(POLICIES), dry_run=self._chance.random() < 0.1)

    def empty_the_trash(self) -> None:
        self.manager.empty_trash()

    def validate(self) -> None:
        report = self.manager.validate_checkpoint("latest", deep=self._chance.random() < 0.5)
        self._must(report.is_valid, str(report))
        for report in (*self.manager.validate_all(deep=False), *self.manager.validate_all_backups(deep=False)):
            self._must(report.is_valid, f"{report.checkpoint_id}: {report.message}")

    def scrub(self) -> None:
        report = self.manager.scrub(restart=self._chance.random() < 0.5)
        damaged = [str(item) for item in (*report.checkpoints, *report.backups) if not item]
        self._must(not damaged, f"scrub found {damaged}")

    def back_up(self) -> None:
        with contextlib.suppress(CheckpointNotFoundError):
            self.manager.backup_checkpoint(self._any().checkpoint_id, verify_existing=self._chance.random() < 0.3)

    def restore(self) -> None:
        if backups := self.manager.backup_ids():
            with contextlib.suppress(CheckpointNotFoundError):
                self.manager.restore_checkpoint(self._chance.choice(backups))

    def repair(self) -> None:
        with contextlib.suppress(CheckpointNotFoundError):
            report = self.manager.repair_checkpoint(self._any().checkpoint_id)
            self._must(not report.damages, f"repaired {report.damages}")

    def export(self) -> None:
        destination = self._folder / f"exported {self._number}"
        with contextlib.suppress(CheckpointNotFoundError):
            found = self._any()
            path = self.manager.export_checkpoint(found.checkpoint_id, destination)
            plain = torch.load(path, weights_only=True)
            self._must(bool((plain["model_state_dict"]["weight"] == found.step).all()), f"{path} is another one")

    def edit(self) -> None:
        with contextlib.suppress(CheckpointNotFoundError):
            added, removed = self._chance.sample(["kept", "tried"], 2)
            self.manager.edit_checkpoint(self._any().checkpoint_id, add_tags=[added], remove_tags=[removed])

    def pin(self) -> None:
        for checkpoint_id in list(self.diary.pinned)[:-1]:
            self.diary.pinned.discard(checkpoint_id)
            self.manager.unpin_checkpoint(checkpoint_id)
            self._claim(checkpoint_id).unlink()
        with contextlib.suppress(CheckpointNotFoundError, FileExistsError):
            found = self._any()
            # Whoever has pinned it takes the pin away when he likes: one process at a time.
            self._claim(found.checkpoint_id).touch(exist_ok=False)
            self.manager.pin_checkpoint(found.checkpoint_id)
            self.diary.pinned.add(found.checkpoint_id)

    def _claim(self, checkpoint_id: str) -> Path:
        (self._folder / "pins").mkdir(exist_ok=True)
        return self._folder / "pins" / checkpoint_id

    def delete(self) -> None:
        there = [item.checkpoint_id for item in self.manager.list_checkpoints()][:-1]
        if not there:  # there is a latest, always
            return
        checkpoint_id = self._chance.choice(there)
        self.diary.deleted.add(checkpoint_id)
        with contextlib.suppress(CheckpointNotFoundError, ProtectedCheckpointError):
            self.manager.delete_checkpoint(checkpoint_id)

    def undelete(self) -> None:
        if deleted := self.manager.list_deleted():
            with contextlib.suppress(CheckpointNotFoundError):
                self.manager.undelete_checkpoint(self._chance.choice(deleted).checkpoint_id)

    def look(self) -> None:
        self.manager.get_checkpoint_summary()
        self._must(self.manager.get_latest_checkpoint() is not None, "there is no latest")
        if (self._folder / "run" / SNAPSHOT_NAME).exists():
            json.loads((self._folder / "run" / SNAPSHOT_NAME).read_bytes())

    def flush(self) -> None:
        self.manager.flush()


ACTIONS = (
    *(4 * ["save"] + 3 * ["load"] + 2 * ["clean_up", "delete", "undelete", "back_up", "load_any"]),
    *("save_in_the_background", "resume", "empty_the_trash", "validate", "scrub", "restore", "repair", "export"),
    "load_the_best",
    *("edit", "pin", "look"),
)


def _check_end(folder: Path, diaries: Iterable[Diary]) -> Iterable[str]:
    """Nothing acknowledged is lost that no policy had to give up, and one cleanup leaves only checkpoints."""
    config = CheckpointConfig(checkpoint_dir=str(folder), max_checkpoints=KEPT + 2, max_backups=3, trash_seconds=0)
    manager = CheckpointManager(config, "run")
    saved = {name: sequence for diary in diaries for name, sequence in diary.saved.items()}
    if len(saved) != sum(len(diary.saved) for diary in diaries):
        yield "an id was given twice"
    deleted = {name for diary in diaries for name in diary.deleted}
    least = sorted(saved.values())[-KEPT]
    newest = [name for name in saved if saved[name] > least]  # of those that tie, other facts decide
    there = set(manager.checkpoint_ids())
    yield from (f"{name}, one of the newest, is gone" for name in newest if name not in there | deleted)
    yield from (f"{name} is pinned and gone" for diary in diaries for name in diary.pinned if name not in there)
    manager.cleanup_checkpoints()
    yield from (str(item) for item in (*manager.validate_all(), *manager.validate_all_backups()) if not item)
    yield from (f"{left} was left behind" for left in leftovers(folder / "run"))


ROWS = [
    Row(
        number=20,
        fault="eight processes save, load, clean up, copy, edit, delete, undelete, repair and scrub at once",
        must_hold="nothing in use is deleted, latest is never missing, nothing acknowledged is lost, no deadlock",
        unit="seconds",
        count=300,
        sample=4,
        run=everything_at_once,
    )
]
