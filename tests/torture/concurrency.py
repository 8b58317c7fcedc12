"""Several processes that want the same: eight writers, eight racers for one name, two that saw different listings."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, Self

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, VersionConflictError
from ckpt_lib.experiment import keys
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import BACKUPS_NAME, CLOCK_NAME, SNAPSHOT_NAME, payload_owner
from ckpt_lib.experiment.sweep import is_named, sweep
from ckpt_lib.experiment.view import View
from ckpt_lib.maintenance.backup_status import VERIFIED_NAME
from ckpt_lib.maintenance.scrub import RECORD_NAME
from ckpt_lib.policies.retention import KeepAtMost
from ckpt_lib.store import ABSENT, Store, open_store
from ckpt_lib.store.checks import OWN_FOLDER
from ckpt_lib.store.local.probe import TEMPORARY_SUFFIX
from tests.torture.processes import Child, ChildError, at_once, patched, set_clock
from tests.torture.rows import Outcome, Row

PROCESSES = 8
SAVES_A_RUN = 1_000
YEAR_SECONDS = 365.0 * 24 * 3600


def manager_at(folder: Path, experiment_name: str = "run", **options: Any) -> CheckpointManager:
    """A manager that keeps everything and copies nothing, unless told otherwise."""
    defaults: dict[str, Any] = {"max_checkpoints": 10_000, "backup_checkpoints": False}
    return CheckpointManager(CheckpointConfig(checkpoint_dir=str(folder), **(defaults | options)), experiment_name)


def leftovers(folder: Path) -> list[str]:
    """What lies in an experiment's folder, or among its backups, after a sweep, and belongs to no checkpoint."""
    places = [place for place in (folder, folder / BACKUPS_NAME) if place.is_dir()]
    return [str(path.relative_to(folder)) for place in places for path in _needless(place)]


def _needless(place: Path) -> Iterable[Path]:
    experiment = Experiment(open_store(str(place.parent)), place.name, "run")
    sweep(experiment)
    for path in sorted(place.iterdir()):
        if path.name == OWN_FOLDER:
            yield from path.glob(f"*{TEMPORARY_SUFFIX}")
        elif path.name.startswith("checkpoint_epoch"):
            if not _is_needed(experiment, path.name):
                yield path
        elif path.name not in {SNAPSHOT_NAME, BACKUPS_NAME, RECORD_NAME, VERIFIED_NAME, CLOCK_NAME, "keys", "uids"}:
            yield path


def _is_needed(experiment: Experiment, name: str) -> bool:
    """Whether a checkpoint needs a file. The record of an id that has ended stays for a day, so that nobody gets it."""
    if name.endswith(".json"):
        record = experiment.read(name.removesuffix(".json")).record
        return isinstance(record, Manifest) or (record is not None and record.state == "gone")
    checkpoint_id = payload_owner(name)
    record = experiment.read(checkpoint_id).record if checkpoint_id else None
    return isinstance(record, Manifest) and is_named(record, name)


# --- row 19 ---


def eight_writers(count: int, seed: str, folder: Path) -> Outcome:
    """``count`` saves in runs of a thousand, to one experiment or five; in some processes the clock is a year off."""
    outcome = Outcome()
    saves_left, run = count, 0
    while saves_left > 0:
        saves = min(SAVES_A_RUN, saves_left)
        experiments = 5 if run % 5 else 1
        place = folder / f"run {run}"
        reports = at_once(PROCESSES, _write, place, f"{seed} {run}", saves, experiments, timeout_seconds=600)
        outcome.injected += saves
        outcome.violations += [f"run {run}: {line}" for line in _check_written(place, reports, saves, experiments)]
        saves_left -= saves
        run += 1
    outcome.detail = f"{run} runs"
    return outcome


def _write(number: int, place: Path, seed: str, saves: int, experiments: int) -> list[tuple[str, str]]:
    """One writer's share of the saves; the experiment and the id of each, in order."""
    chance = random.Random(f"{seed} {number}")
    skew_seconds = chance.choice([0, 0, -YEAR_SECONDS, YEAR_SECONDS])
    true_time = time.time
    set_clock(lambda: true_time() + skew_seconds)
    names = [f"experiment{which}" for which in range(experiments)]
    managers = {name: manager_at(place, name) for name in names}
    saved = []
    for _ in range(len(range(number, saves, PROCESSES))):
        name = chance.choice(names)
        # One epoch and a few steps: most of them want the same id.
        model, step, metrics = torch.nn.Linear(2, 1), chance.randrange(2), {"val_loss": chance.random()}
        checkpoint_id = managers[name].save_checkpoint(model=model, epoch=1, step=step, metrics=metrics)
        saved.append((name, str(checkpoint_id)))
    return saved


def _check_written(place: Path, reports: list[Any], saves: int, experiments: int) -> Iterable[str]:
    yield from (str(report) for report in reports if not isinstance(report, list))
    writers = [report for report in reports if isinstance(report, list)]
    if (total := sum(map(len, writers))) != saves:
        yield f"{total} of {saves} saves were acknowledged"
    for name in {name for writer in writers for name, _ in writer}:
        manager = manager_at(place, name)
        orders = [[found for where, found in writer if where == name] for writer in writers]
        acknowledged = [checkpoint_id for order in orders for checkpoint_id in order]
        found = manager.list_checkpoints()
        sequences = {item.checkpoint_id: item.sequence for item in found}  # of writers that know nothing of each other
        if sorted(acknowledged) != sorted(sequences):
            twice = [item for item, times in Counter(acknowledged).items() if times > 1]
            yield f"{name}: acknowledged and stored differ: {set(acknowledged) ^ set(sequences)}, twice {twice}"
        for order in orders:
            numbers = [sequences.get(item, 0) for item in order]
            if numbers != sorted(set(numbers)):
                yield f"{name}: a writer's own saves are out of order, or tie"
        yield from (f"{name}: {report}" for report in manager.validate_all(deep=False) if not report)
        yield from _check_snapshot(manager, place / name, set(sequences))
        yield from (f"{name}: {left} was left behind" for left in leftovers(place / name))


def _check_snapshot(manager: CheckpointManager, folder: Path, stored: set[str]) -> Iterable[str]:
    """It may lag behind while the writers run, but names nothing that is not there; the next change completes it."""

    def named() -> set[str]:
        content = json.loads((folder / SNAPSHOT_NAME).read_bytes())
        return {item["checkpoint_id"] for item in content["checkpoints"]}

    if not named() <= stored:
        yield f"{folder.name}: the snapshot names {named() - stored}"
    manager.edit_checkpoint("latest", add_tags=["last"])
    if named() != stored:
        yield f"{folder.name}: the snapshot lacks {stored - named()}"


# --- row 21 ---

RACES = ("same key", "no key", "key of the store")
"""What is raced for: one save that all repeat, a save each, and one key, to create and to replace."""


def one_name(count: int, seed: str, folder: Path) -> Outcome:
    """Eight processes at one barrier want one name: of the same epoch, step and second, in a folder not there yet."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(PROCESSES)
    reports = at_once(PROCESSES, _race, count, seed, folder, barrier, timeout_seconds=60 + count)
    failures = [str(report) for report in reports if not isinstance(report, list)]
    if failures:
        return Outcome(violations=failures)
    times = Counter(RACES[race % len(RACES)] for race in range(count))
    outcome = Outcome(injected=count, detail=", ".join(f"{number} for {race}" for race, number in times.items()))
    for race in range(count):
        answers = [report[race] for report in reports]
        wrong = _check_race(RACES[race % len(RACES)], folder, f"race{race}", answers)
        outcome.violations += [f"seed {seed}, race {race}: {line}" for line in wrong]
    return outcome


def _race(number: int, count: int, seed: str, folder: Path, barrier: Barrier) -> list[str]:
    """What one racer got in each race: an id, a name, or the error that told it that it had lost."""
    store = open_store(str(folder))
    answers = []
    keys._POLL_SECONDS = 0.01  # the other seven wait for the one that was first
    for race in range(count):
        chance = random.Random(f"{seed} {race} {number}")
        kind, name = RACES[race % len(RACES)], f"race{race}"
        set_clock(lambda race=race: 1.8e9 + race)  # type: ignore[misc]
        manager = manager_at(folder, name)
        barrier.wait(60)
        time.sleep(chance.choice([0, chance.uniform(0, 0.004)]))  # now and then, one is a little late
        try:
            if kind == "key of the store":
                answers.append(_race_for_a_key(store, f"{name}/wanted", str(number).encode(), barrier))
            else:
                model, key = torch.nn.Linear(2, 1), "the same" if kind == "same key" else None
                answers.append(str(manager.save_checkpoint(model=model, epoch=1, step=2, idempotency_key=key)))
        except CheckpointError as error:
            answers.append(type(error).__name__)
    return answers


def _race_for_a_key(store: Store, key: str, data: bytes, barrier: Barrier) -> str:
    """Which of two writes succeeded: that of a key which is not there, and that of one which all have seen."""
    won = ""
    with contextlib.suppress(VersionConflictError):
        store.put(key, data, if_version=ABSENT)
        won += "created "
    barrier.wait(60)
    seen = store.stat(key)
    barrier.wait(60)
    with contextlib.suppress(VersionConflictError):
        store.put(key, data * 2, if_version=seen.version if seen else ABSENT)
        won += "replaced"
    return won


def _check_race(kind: str, folder: Path, name: str, answers: list[str]) -> Iterable[str]:
    if kind == "key of the store":
        winners = [sum(what in answer for answer in answers) for what in ("created", "replaced")]
        last = [str(number) * 2 for number, answer in enumerate(answers) if "replaced" in answer]
        if winners != [1, 1] or last != [(folder / name / "wanted").read_text()]:
            yield f"{answers}, and it holds {(folder / name / 'wanted').read_text()}"
        names = [left for left in leftovers(folder / name) if left != "wanted"]
    else:
        found = manager_at(folder, name).checkpoint_ids()
        wanted = 1 if kind == "same key" else PROCESSES
        if not len(found) == len(set(answers)) == wanted or set(found) != set(answers):
            yield f"{kind}: stored are {found}, the answers were {answers}"
        names = leftovers(folder / name)
    if names:
        yield f"{kind}: {names} left behind"


# --- row 30 ---

LISTINGS = 10
"""After how many listings of the first process, at most, the other one comes in between."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was acknowledged."""

    checkpoint_id: str
    sequence: int
    loss: float


def stale_listing(count: int, seed: str, folder: Path) -> Outcome:
    """One process has listed the folder and is about to decide when another pins and saves; then the first goes on."""
    outcome = Outcome()
    operations: Counter[str] = Counter()
    for case in range(count):
        chance = random.Random(f"{seed} {case}")
        operation, moment = chance.choice(["save", "clean up"]), chance.randrange(LISTINGS)
        try:
            wrong = list(_check_stale(chance, operation, moment, folder / str(case)))
        except (CheckpointError, ChildError) as error:
            wrong = [f"{type(error).__name__}: {error}"]
        operations[operation] += 1
        outcome.note(f"seed {seed}, case {case}, {operation}, listing {moment}", wrong)
    outcome.detail = ", ".join(f"{times} times {operation}" for operation, times in sorted(operations.items()))
    return outcome


def _check_stale(chance: random.Random, operation: str, moment: int, place: Path) -> Iterable[str]:
    """What is wrong after an operation in whose middle another process was at work."""
    keep = chance.randint(1, 3)
    first, other = manager_at(place, max_checkpoints=keep), manager_at(place)
    saved = [_save(other, chance) for _ in range(chance.randint(1, 5))]
    first.list_checkpoints()
    to_pin = chance.choice(saved).checkpoint_id
    with Interruption(moment, _pin_and_save, place, to_pin, chance.random()) as interruption:
        if operation == "save":
            saved.append(_save(first, chance))
        else:
            first.cleanup_checkpoints(policy=KeepAtMost(count=keep))
        is_pinned, later = interruption.result()
    saved += later
    found = {item.checkpoint_id for item in other.list_checkpoints()}
    if is_pinned and to_pin not in found:
        yield f"{to_pin} had been pinned and was deleted"
    newest, best = max(item.sequence for item in saved), min(item.loss for item in saved)
    if not any(item.sequence == newest and item.checkpoint_id in found for item in saved):
        yield f"none of the newest is there: {saved}"
    if not any(item.loss == best and item.checkpoint_id in found for item in saved):
        yield f"none of the best is there: {saved}"
    yield from (str(item) for item in other.validate_all() if not item)


def _save(manager: CheckpointManager, chance: random.Random) -> Saved:
    loss = round(chance.random(), 2)
    checkpoint_id = str(manager.save_checkpoint(model=torch.nn.Linear(2, 1), epoch=1, metrics={"val_loss": loss}))
    return Saved(checkpoint_id, manager.get_checkpoint(checkpoint_id).sequence, loss)


def _pin_and_save(place: Path, to_pin: str, seed: float) -> tuple[bool, list[Saved]]:
    """What the other process does: whether it could still pin the checkpoint, and what it saved."""
    manager, chance = manager_at(place), random.Random(seed)
    is_pinned = True
    try:
        manager.pin_checkpoint(to_pin)
    except CheckpointNotFoundError:
        is_pinned = False
    return is_pinned, [_save(manager, chance) for _ in range(chance.randint(1, 3))]


class Interruption:
    """Lets another process do its work right after this one's ``moment``-th listing, before that is used."""

    PATIENCE_SECONDS = 30.0

    def __init__(self, moment: int, function: Callable[..., Any], *arguments: Any) -> None:
        self._listings_left = moment
        self._go = multiprocessing.get_context("fork").Event()
        self._child = Child(_when_told, self._go, function, *arguments)
        self._patch = patched(Index, "view", self._viewing(Index.view))

    def __enter__(self) -> Self:
        self._patch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.__exit__(None, None, None)
        self._child.__exit__()

    def _viewing(self, view: Callable[[Index], View]) -> Callable[[Index], View]:
        def viewed(index: Index) -> View:
            found = view(index)
            self._listings_left -= 1
            if self._listings_left == -1:
                self._go.set()
                deadline = time.monotonic() + self.PATIENCE_SECONDS
                while self._child.is_alive and time.monotonic() < deadline:
                    time.sleep(0.001)
            return found

        return viewed

    def result(self) -> Any:
        """What the other process returned; it begins now, when there were not so many listings."""
        self._go.set()
        return self._child.result()


def _when_told(go: Event, function: Callable[..., Any], *arguments: Any) -> Any:
    go.wait(60)
    return function(*arguments)


ROWS = [
    Row(
        number=19,
        fault="eight processes save at once, with clocks a year apart",
        must_hold="as many records as saves, ids unique, each writer's own in order, all valid, nothing left behind",
        unit="saves",
        count=5 * SAVES_A_RUN,
        sample=80,
        run=eight_writers,
    ),
    Row(
        number=21,
        fault="eight processes want one name",
        must_hold="one winner and seven who get its id, a suffix or a typed refusal",
        unit="races",
        count=600,
        sample=9,
        run=one_name,
    ),
    Row(
        number=30,
        fault="another process commits between listing and deciding",
        must_hold="the newest, the best and what was pinned meanwhile stay",
        unit="cases",
        count=100,
        sample=12,
        run=stale_listing,
    ),
]
