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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CheckpointError, CorruptManifestError
from ckpt_lib.folder import CheckpointFolder
from ckpt_lib.integrity import validate
from ckpt_lib.store.registry import registered
from torture.model_store import Barrier, Disk, ModelStore, Moment, State, source_line
from torture.rows import Outcome, Row

SCHEME = "model"
URL = f"{SCHEME}://disk"
PLACES = ("run", "run/backups", "exported")
FOREIGN = {"run/notes.txt": b"a person's", "run/backups/old.pt": b"somebody's", "exported/readme": b"hands off"}
DAY_SECONDS = 86_400.0

Key = tuple[str, str]
"""Where a checkpoint lies, and its id."""
View = dict[Key, object]
"""What each checkpoint is: its manifest and whether its payload is whole."""


@dataclass
class Machine:
    """A disk, and managers that work on it."""

    disk: Disk

    def manager(self, **options: Any) -> CheckpointManager:
        defaults: dict[str, Any] = {"checkpoint_dir": URL, "backup_checkpoints": False, "max_checkpoints": 99}
        return CheckpointManager(CheckpointConfig(**(defaults | options)), "run")

    def folder(self, place: str) -> CheckpointFolder:
        return CheckpointFolder(ModelStore(self.disk, URL), place)

    def ids(self, place: str = "run") -> list[str]:
        return sorted(self.folder(place).manifest_entries())

    def save(self, epoch: int, **options: Any) -> str:
        model = torch.nn.Linear(8, 8)
        saved = self.manager(**options).save_checkpoint(model=model, epoch=epoch, metrics={"val_loss": 1 / epoch})
        assert saved is not None
        return saved

    def view(self) -> View:
        """Every checkpoint, everywhere."""
        return {
            (place, checkpoint_id): _facts(self.folder(place), checkpoint_id)
            for place in PLACES
            for checkpoint_id in self.ids(place)
        }


def _facts(folder: CheckpointFolder, checkpoint_id: str) -> object:
    try:
        manifest = folder.read_manifest(checkpoint_id)
    except CorruptManifestError:
        return "a damaged manifest"
    if not validate(folder, manifest, "run"):
        return "a damaged payload"
    return manifest.to_bytes()


BROKEN = {"a damaged manifest", "a damaged payload"}


@contextmanager
def _installed() -> Iterator[None]:
    """Let URLs of the model's scheme open what :func:`_use` has chosen, and keep the log still."""
    logger = logging.getLogger("ckpt_lib")
    disabled, logger.disabled = logger.disabled, True
    try:
        with registered(SCHEME, lambda url: ModelStore(_current[-1], url)):
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


def _back_up(machine: Machine, source: random.Random) -> object:
    return machine.manager().backup_checkpoint(_any(machine, source))


def _restore(machine: Machine, source: random.Random) -> object:
    return machine.manager().restore_checkpoint(_any(machine, source, "run/backups"))


def _repair(machine: Machine, source: random.Random) -> object:
    return machine.manager().repair_checkpoint(_any(machine, source, "run/backups"))


def _export(machine: Machine, source: random.Random) -> object:
    return machine.manager().export_checkpoint(_any(machine, source), f"{URL}/exported")


def _import(machine: Machine, source: random.Random) -> object:
    return machine.manager().import_checkpoint(f"{URL}/exported/{_any(machine, source, 'exported')}.pt")


def _clean_up(machine: Machine, source: random.Random) -> object:
    return machine.manager(max_checkpoints=source.randint(1, 3)).cleanup_checkpoints()


def _wait_and_clean_up(machine: Machine, source: random.Random) -> object:
    machine.disk.time_seconds += 1000 * DAY_SECONDS  # every grace period is over
    return machine.manager().cleanup_checkpoints()


def _any(machine: Machine, source: random.Random, place: str = "run") -> str:
    ids = machine.ids(place)
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
    ("delete", "restore"),
    ("repair", "back up", "delete", "restore"),
]
"""What is looked at step by step, each from the same start."""


def _start() -> State:
    """Four checkpoints, one without its payload, one damaged, both with a backup; one exported; foreign files."""
    disk = Disk()
    with _use(disk) as machine:
        ids = [machine.save(epoch) for epoch in (1, 2, 3, 4)]
        for checkpoint_id in ids[1:3]:
            machine.manager().backup_checkpoint(checkpoint_id)
        machine.manager().export_checkpoint(ids[0], f"{URL}/exported")
        _damage(machine, 2)
    state = disk.state() | FOREIGN
    del state[f"run/{ids[1]}.pt"]
    return state


# --- the judgement ---


@dataclass
class Watch:
    """Runs operations on one disk, and judges every state that it may come up in meanwhile."""

    disk: Disk
    source: random.Random
    limit: int
    """How many states of one moment are looked at, if there are more."""
    recover: bool = True
    """Whether each state must also take a save and a cleanup."""
    violations: list[str] = field(default_factory=list)
    states: set[int] = field(default_factory=set)
    last_state: State = field(default_factory=dict)
    _graves: dict[Key, set[object]] = field(default_factory=dict)
    _judged: set[tuple[int, int]] = field(default_factory=set)

    def run(self, name: str) -> bool:
        """Do it, and judge; false when there was nothing to do."""
        moments: list[Moment] = []
        with _use(self.disk) as machine:
            before = machine.view()
            self.disk.on_change = lambda: moments.append(self.disk.moment())
            try:
                ACTIONS[name](machine, self.source)
                acknowledged = True
            except (CheckpointError, _NothingToDo):  # such as the repair of what is damaged in both copies
                acknowledged = False
            self.disk.on_change = lambda: None
            after = machine.view()
        for key, facts in before.items():
            if key not in after:
                self._graves.setdefault(key, set()).add(facts)
        for number, moment in enumerate(moments, start=1):
            self._judge_all(moment, (before, after), f"{name}, step {number} of {len(moments)}")
        if acknowledged:
            self._judge_all(self.disk.moment(), (after,), f"{name}, acknowledged")
        return acknowledged

    def _judge_all(self, moment: Moment, views: tuple[View, ...], where: str) -> None:
        for state in moment.states(self.limit, self.source):
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
                yield from (f"{path} was changed" for path, data in FOREIGN.items() if state.get(path) != data)
                if self.recover:
                    yield from _recover(machine, found)
            except Exception as error:
                yield f"{type(error).__name__}: {error}"

    def _compare(self, found: View, views: tuple[View, ...]) -> Iterator[str]:
        for key in {*found, *(key for view in views for key in view)}:
            allowed = {view.get(key) for view in views} | self._graves.get(key, set())
            if (facts := found.get(key)) not in allowed:
                yield f"{'/'.join(key)}: {_said(facts)} instead of {' or '.join(map(_said, allowed))}"


def _said(facts: object) -> str:
    return "nothing" if facts is None else "a whole one" if isinstance(facts, bytes) else str(facts)


def _recover(machine: Machine, found: View) -> Iterator[str]:
    """The next operations work, take nothing away, and leave nothing behind."""
    saved = machine.save(999)
    machine.manager().cleanup_checkpoints()
    machine.disk.time_seconds += 1000 * DAY_SECONDS
    machine.manager().cleanup_checkpoints()
    now = machine.view()
    if not isinstance(now.pop(("run", saved), None), bytes):
        yield "the next save is not there"
    if now != found:
        yield "a cleanup changed checkpoints that were to stay"
    expected = {*FOREIGN, "run/checkpoint_metadata.json", f"run/{saved}.json", f"run/{saved}.pt"}
    expected |= {f"{place}/{checkpoint_id}{suffix}" for place, checkpoint_id in found for suffix in (".json", ".pt")}
    if leftovers := sorted(path for path in machine.disk.state() if path not in expected):
        yield f"left behind: {leftovers}"


# --- the rows ---


def lose_power(count: int, seed: str, folder: Path) -> Outcome:
    """Row 3: every moment of each scenario, and then of random histories, until enough states were seen."""
    outcome, per_action = Outcome(), dict[str, int]()
    with _installed():
        start, limit = _start(), max(4, count // 60)
        for names in SCENARIOS:
            watch = Watch(Disk(start), random.Random(f"{seed} {names}"), limit)
            for name in names:
                watch.run(name)
            _add(outcome, per_action, watch, " + ".join(names), f"scenario {names}")
        number = 0
        while outcome.injected < count:
            _history(outcome, per_action, start, f"{seed} history {number}")
            number += 1
    shown = ", ".join(f"{name} {states}" for name, states in sorted(per_action.items()))
    outcome.detail = f"{number} random histories; distinct states: {shown}"
    return outcome


def _history(outcome: Outcome, per_action: dict[str, int], start: State, seed: str) -> None:
    """Operations one after the other, now and then a loss of power, and the next go on from what that left."""
    source = random.Random(seed)
    watch = Watch(Disk(start), source, limit=4)
    for _ in range(8):
        watch.run(source.choice(list(ACTIONS)))
        if source.random() < 0.3:
            _add(outcome, per_action, watch, "random histories", seed)
            watch = Watch(Disk(watch.last_state or start), source, limit=4)
    _add(outcome, per_action, watch, "random histories", seed)


def _add(outcome: Outcome, per_action: dict[str, int], watch: Watch, name: str, seed: str) -> None:
    outcome.injected += len(watch.states)
    per_action[name] = per_action.get(name, 0) + len(watch.states)
    outcome.violations += [f"[{seed}] {violation}" for violation in watch.violations]


def barriers() -> dict[Barrier, list[tuple[str, ...]]]:
    """Every place in the code that makes something durable, and the scenarios that come by it."""
    found: dict[Barrier, list[tuple[str, ...]]] = {}
    for names in SCENARIOS:
        disk = Disk(_start())
        with _use(disk) as machine:
            for name in names:
                _attempt(machine, name, names)
        for barrier in disk.barriers:
            found.setdefault(barrier, []).append(names)
    return found


def _attempt(machine: Machine, name: str, names: tuple[str, ...]) -> None:
    raise NotImplementedError
