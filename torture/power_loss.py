"""Rows 3 and 4: power loss at any moment of any operation, and what happens when a barrier is missing.

The real code runs on a :class:`~torture.model_store.Disk`, step by step. After each step the disk may lose power and
come up in any state that POSIX permits. Each of these is given to the real code again, which must find

- every checkpoint as it was before the operation, or as the operation leaves it; once that is acknowledged, the latter;
- none that is listed and broken, unless it was broken before;
- every foreign file untouched;
- nothing that keeps the next save and cleanup from working, and after them no leftovers.

A deletion is the one exception: a checkpoint whose deletion was acknowledged may come back, whole. That is no loss.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, CorruptManifestError
from ckpt_lib.folder import CheckpointFolder
from ckpt_lib.index import Index
from ckpt_lib.integrity import validate
from ckpt_lib.metadata import Manifest
from ckpt_lib.store.registry import registered
from torture.model_store import Barrier, Disk, ModelStore, Moment, State, source_line
from torture.rows import Outcome, Row

SCHEME = "model"
URL = f"{SCHEME}://disk"
PLACES = ("run", "run/backups", "other", "exported")
FOREIGN = {"run/notes.txt": b"a person's", "run/backups/old.pt": b"somebody's", "exported/readme": b"hands off"}
DAY_SECONDS = 86_400.0

Key = tuple[str, str]
"""Where a checkpoint lies, and its id."""
View = dict[Key, object]
"""What each checkpoint is: its manifest and whether its payload is whole."""


MODEL = torch.nn.Linear(8, 8)


@dataclass
class Machine:
    """A disk, and managers that work on it."""

    disk: Disk

    def manager(self, experiment_name: str = "run", **options: Any) -> CheckpointManager:
        defaults: dict[str, Any] = {"checkpoint_dir": URL, "backup_checkpoints": False, "max_checkpoints": 99}
        return CheckpointManager(CheckpointConfig(**(defaults | options)), experiment_name)

    def folder(self, place: str) -> CheckpointFolder:
        return CheckpointFolder(ModelStore(self.disk, URL), place)

    def ids(self, place: str = "run") -> list[str]:
        return sorted(self.folder(place).manifest_entries())

    def save(self, epoch: int, **options: Any) -> str:
        saved = self.manager(**options).save_checkpoint(model=MODEL, epoch=epoch, metrics={"val_loss": 1 / epoch})
        assert saved is not None
        return saved

    def view(self) -> View:
        """Every checkpoint, everywhere, and those that can be brought back."""
        found: View = {}
        for place in PLACES:
            folder = self.folder(place)
            index_view = Index(folder).view()
            found |= {(place, deleted.checkpoint_id): IN_TRASH for deleted in index_view.deleted if index_view.is_complete(deleted)}
            found |= {(place, checkpoint_id): _facts(folder, checkpoint_id) for checkpoint_id in self.ids(place)}
        return found


def _facts(folder: CheckpointFolder, checkpoint_id: str) -> object:
    try:
        manifest = folder.read_manifest(checkpoint_id)
    except CorruptManifestError:
        return "a damaged manifest"
    if not validate(folder, manifest, "run"):
        return "a damaged payload"
    return manifest.to_bytes()


BROKEN = {"a damaged manifest", "a damaged payload"}
IN_TRASH = "one in the trash"


@contextmanager
def _installed() -> Iterator[None]:
    """Let URLs of the model's scheme open what :func:`_use` has chosen, and keep the log still.

    Thousands of states hold the same few manifests, and reading one is most of the work: each is read once.
    """
    logger = logging.getLogger("ckpt_lib")
    disabled, logger.disabled = logger.disabled, True
    read_once = lru_cache(10_000)(lambda data, path: read_each_time(data, path=path))
    read_each_time = Manifest.from_bytes
    try:
        with (
            registered(SCHEME, lambda url: ModelStore(_current[-1], url)),
            patch.object(Manifest, "from_bytes", lambda data, path: read_once(data, path)),
        ):
            yield
    finally:
        logger.disabled = disabled


_current: list[Disk] = []


@contextmanager
def _use(disk: Disk) -> Iterator[Machine]:
    _current.append(disk)
    try:
        yield Machine(disk)
    finally:
        _current.pop()


# --- the operations ---

Action = Callable[[Machine, random.Random], object]


def _damage(machine: Machine, position: int) -> None:
    """What a bad disk does, which no barrier prevents: a byte of a payload changes, durably."""
    folder = machine.folder("run")
    inode = folder.store._inode(folder.payload_path(folder.read_manifest(machine.ids()[position])))
    data = bytearray(inode.data)
    data[len(data) // 2] ^= 0xFF
    inode.data = inode.durable = bytes(data)
    machine.disk.touch(inode)


def _save(machine: Machine, source: random.Random) -> object:
    return machine.save(source.randint(5, 99))


def _save_with_everything(machine: Machine, source: random.Random) -> object:
    return machine.save(source.randint(5, 99), backup_checkpoints=True, max_checkpoints=2, max_backups=1)


def _edit(machine: Machine, source: random.Random) -> object:
    return machine.manager().edit_checkpoint(_any(machine, source), add_tags=[f"tag{source.randint(0, 9)}"])


def _pin(machine: Machine, source: random.Random) -> object:
    return machine.manager().pin_checkpoint(_any(machine, source))


def _delete(machine: Machine, source: random.Random) -> object:
    return machine.manager().delete_checkpoint(_any(machine, source))


def _delete_for_good(machine: Machine, source: random.Random) -> object:
    return machine.manager(trash_seconds=0).delete_checkpoint(_any(machine, source))


def _undelete(machine: Machine, source: random.Random) -> object:
    deleted = [found.checkpoint_id for found in machine.manager().list_deleted()]
    if not deleted:
        raise _NothingToDo
    return machine.manager().undelete_checkpoint(source.choice(deleted))


def _back_up(machine: Machine, source: random.Random) -> object:
    return machine.manager().backup_checkpoint(_any(machine, source, whole=True))


def _restore(machine: Machine, source: random.Random) -> object:
    return machine.manager().restore_checkpoint(_any(machine, source, "run/backups"))


def _repair(machine: Machine, source: random.Random) -> object:
    return machine.manager().repair_checkpoint(_any(machine, source, "run/backups"))


def _export(machine: Machine, source: random.Random) -> object:
    return machine.manager().export_checkpoint(_any(machine, source, whole=True), f"{URL}/exported")


def _import(machine: Machine, source: random.Random) -> object:
    return machine.manager().import_checkpoint(f"{URL}/exported/{_any(machine, source, 'exported')}.pt")


def _clean_up(machine: Machine, source: random.Random) -> object:
    return machine.manager(max_checkpoints=source.randint(1, 3)).cleanup_checkpoints()


def _wait_and_clean_up(machine: Machine, source: random.Random) -> object:
    machine.disk.time_seconds += 1000 * DAY_SECONDS  # every grace period is over
    return machine.manager().cleanup_checkpoints()


def _any(machine: Machine, source: random.Random, place: str = "run", *, whole: bool = False) -> str:
    ids = [found for found in machine.ids(place) if not whole or _facts(machine.folder(place), found) not in BROKEN]
    if not ids:
        raise _NothingToDo
    return source.choice(ids)


class _NothingToDo(Exception):
    """There is no checkpoint for that operation."""


ACTIONS: dict[str, Action] = {
    "save": _save,
    "save, back up, retire": _save_with_everything,
    "edit": _edit,
    "pin": _pin,
    "delete": _delete,
    "delete for good": _delete_for_good,
    "undelete": _undelete,
    "back up": _back_up,
    "restore": _restore,
    "repair": _repair,
    "export": _export,
    "import": _import,
    "clean up": _clean_up,
    "clean up after the grace period": _wait_and_clean_up,
}

SCENARIOS: list[tuple[str, ...]] = [
    *((name,) for name in ACTIONS),
    ("delete", "clean up after the grace period"),
    ("clean up", "clean up after the grace period", "save"),
    ("save", "edit", "delete"),
    ("delete", "undelete", "edit"),
    ("delete", "undelete", "clean up after the grace period"),
    ("delete", "restore", "clean up after the grace period"),
    ("repair", "repair", "back up", "delete", "restore"),
    ("import", "delete", "import"),
]
"""What is looked at step by step, each from the same start."""
FROM_NOTHING = ("save", "back up", "export")
"""The same, from a disk without a file."""


def _start() -> State:
    """Four checkpoints and a deleted one; one without its payload, one damaged, both with a backup; one exported; foreign files."""
    disk = Disk()
    with _use(disk) as machine:
        ids = [machine.save(epoch) for epoch in (1, 2, 3, 4, 5)]
        machine.manager().delete_checkpoint(ids.pop())
        for checkpoint_id in ids[1:3]:
            machine.manager().backup_checkpoint(checkpoint_id)
        other = machine.save(1, experiment_name="other")
        machine.manager("other").export_checkpoint(other, f"{URL}/exported")
        _damage(machine, 2)
    state = disk.state() | FOREIGN
    del state[f"run/{ids[1]}.pt"]
    return state


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
    """What a checkpoint may be besides, by operations that are over: deleted, or killed before they were acknowledged."""
    killed: list[Disk] = field(default_factory=list)
    """The disk after each step of the last operation, as a kill at that moment leaves it to the next process."""
    _judged: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        with _use(self.disk) as machine:
            self.known = set(machine.view())
        self.known_before = set(self.known)
        self.between: dict[Key, set[object]] = {}
        self._actions = random.Random(f"{self.seed} actions")  # its own: what is done depends on no limit
        self._losses = random.Random(f"{self.seed} losses")

    def run(self, name: str) -> bool:
        """Do it, and judge; false when there was nothing to do."""
        moments: list[Moment] = []
        with _use(self.disk) as machine:
            before = machine.view()
            self.killed, self.known_before = [], set(self.known)

            def note() -> None:
                moments.append(self.disk.moment())
                self.killed.append(self.disk.after_kill())

            self.disk.on_change = note
            try:
                ACTIONS[name](machine, self._actions)
                acknowledged = True
            except (CheckpointError, _NothingToDo):  # such as the repair of what is damaged in both copies
                acknowledged = False
            self.disk.on_change = lambda: None
            after = machine.view()
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
        with _use(Disk(state)) as machine:
            try:
                found = machine.view()
                yield from self._compare(found, views)
                yield from (f"{path} was changed" for path, data in FOREIGN.items() if state.get(path, data) != data)
                if self.recover:
                    yield from _recover(machine, found, self.known)
            except Exception as error:
                yield f"{type(error).__name__}: {error}"

    def _compare(self, found: View, views: tuple[View, ...]) -> Iterator[str]:
        for key in {*found, *(key for view in views for key in view)}:
            allowed = {view.get(key) for view in views} | self.uncertain.get(key, set())
            if None in allowed:  # on its way out, or back in
                allowed.add(IN_TRASH)
            if (facts := found.get(key)) not in allowed:
                yield f"{'/'.join(key)}: {_said(facts)} instead of {' or '.join(sorted(map(_said, allowed)))}"


def _said(facts: object) -> str:
    return "nothing" if facts is None else f"a whole one ({hash(facts)})" if isinstance(facts, bytes) else str(facts)


def _recover(machine: Machine, found: View, known: set[Key]) -> Iterator[str]:
    """The next operations work, take nothing away, and leave nothing behind.

    But for this: the marker of a save is not made durable, so a marker that says nothing may stay, and a payload that
    nobody looks at, of a save that was never acknowledged: of none that was ``known``. They take no checkpoint's place.
    """
    saved = machine.save(999)
    machine.manager().cleanup_checkpoints()
    machine.disk.time_seconds += 1000 * DAY_SECONDS
    machine.manager().cleanup_checkpoints()
    now = machine.view()
    if not isinstance(now.pop(("run", saved), None), bytes):
        yield "the next save is not there"
    found = {key: facts for key, facts in found.items() if facts != IN_TRASH}
    if now != found:
        yield "a cleanup changed checkpoints that were to stay"
    expected = {*FOREIGN, *(f"{place}/checkpoint_metadata.json" for place in PLACES)}
    expected |= {f"{place}/{name}{suffix}" for place, name in [*found, ("run", saved)] for suffix in (".json", ".pt")}
    left = sorted(path for path in machine.disk.state() if path not in expected and not _is_residue(path, known))
    if left:
        yield f"left behind: {left}"


def _is_residue(path: str, known: set[Key]) -> bool:
    place, _, name = path.rpartition("/")
    return name.endswith(".saving") or (name.endswith(".pt") and (place, name.partition(".")[0]) not in known)


# --- the rows ---


def lose_power(count: int, seed: str, folder: Path) -> Outcome:
    """Row 3: every moment of each scenario, and then of random histories, until enough states were seen."""
    outcome, per_action, number = Outcome(), dict[str, int](), 0
    with _installed():
        for names, start in _scenarios():
            watch = Watch(Disk(start), f"{seed} {names}", max(2, count // 200))
            for name in names:
                watch.run(name)
                if name == names[0]:
                    _kill_first(outcome, per_action, watch, name, 1 if count < 1000 else len(watch.killed))
            _add(outcome, per_action, watch, " + ".join(names))
        start = _start()
        while outcome.injected < count:
            _history(outcome, per_action, start, f"{seed} history {number}")
            number += 1
    shown = ", ".join(f"{name} {states}" for name, states in sorted(per_action.items()))
    outcome.detail = f"{number} random histories; distinct states: {shown}"
    return outcome


def _kill_first(outcome: Outcome, per_action: dict[str, int], killed: Watch, name: str, count: int) -> None:
    """Kill the process after some of the steps of an operation, and lose power while the next one works."""
    source = random.Random(f"{killed.seed} kills")
    for step in sorted(source.sample(range(len(killed.killed)), min(count, len(killed.killed)))):
        for follower in ("clean up after the grace period", "save", name):
            watch = Watch(killed.killed[step].after_kill(), f"{killed.seed} killed at {step}, {follower}", limit=12)
            watch.known = set(killed.known_before)
            watch.uncertain = {key: set(facts) for key, facts in killed.between.items()}
            watch.run(follower)
            _add(outcome, per_action, watch, "after a kill")


def _scenarios() -> list[tuple[tuple[str, ...], State]]:
    start = _start()
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
    for recover, limit in ((False, 20), (True, 20), (True, 300)):  # what is cheap to see, first
        for names, start in scenarios:
            watch = Watch(Disk(start, ignored=[barrier]), f"{seed} {names}", limit, recover)
            for name in names:
                watch.run(name)
                if watch.violations:
                    return watch.violations[0]
    return None


def remove_barriers(count: int, seed: str, folder: Path) -> Outcome:
    """Row 4: without any one of the barriers, row 3 fails. ``count`` of them, or all for 0."""
    outcome, caught = Outcome(), list[str]()
    with _installed():
        found = barriers(seed)
        chosen = sorted(found) if not count else random.Random(seed).sample(sorted(found), count)
        for barrier in chosen:
            violation = find_violation(barrier, found[barrier], seed)
            outcome.injected += 1
            if violation is None:
                outcome.violations.append(f"[{seed}] nothing goes wrong without {describe(barrier, found)}")
            else:
                caught.append(f"{describe(barrier, found)}: {violation}")
    outcome.detail = "; ".join(caught)
    return outcome


def describe(barrier: Barrier, among: Collection[Barrier]) -> str:
    """Where a barrier is, by the code's own words: line numbers change too often."""
    line = source_line(barrier)
    same = [other for other in sorted(among) if other.function == barrier.function and source_line(other) == line]
    number = f", {same.index(barrier) + 1} of {len(same)}" if len(same) > 1 else ""
    return f"{barrier.function} `{line}` ({barrier.kind}{number})"


ROWS = [
    Row(
        3,
        "power loss",
        "every state that the disk may come up in: acknowledged and whole, or as before; the next save and cleanup work",
        "states",
        5_000,
        300,
        lose_power,
    ),
    Row(4, "a missing barrier", "row 3 fails without any one of them", "barriers", 0, 3, remove_barriers),
]
