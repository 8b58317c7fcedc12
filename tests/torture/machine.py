"""What the rows about power loss and failing stores do to a store, and how they look at what came of it."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core import owners
from ckpt_lib.core.manifest import Manifest, parse_record
from ckpt_lib.experiment import experiment as experiments
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.store import open_store
from ckpt_lib.store.local import LocalStore, folders
from ckpt_lib.store.memory import MemoryStore
from ckpt_lib.store.registry import registered
from ckpt_lib.testing.store_contract import get
from tests.torture.disk import Disk, State
from tests.torture.settings import Setting, slug

MODEL = torch.nn.Linear(8, 8)
PLACES = ("run", "run/backups", "other", "exported")
FOREIGN = {"run/notes.txt": b"a person's", "run/backups/old.pt": b"somebody's", "exported/readme": b"hands off"}
BARE = "exported/bare.pt"
"""A payload without a manifest, as people pass them on."""
DERIVED = {f"{place}/checkpoint_metadata.json" for place in PLACES}
STORE_OWN = ".ckpt-"
PLAIN = Setting(kind="memory")
LONG_SECONDS = 2 * 24 * 3600.0
"""After which nobody believes in an unfinished claim any more."""

Key = tuple[str, str]
"""Where a checkpoint lies, and its id."""
View = dict[Key, object]
"""What each checkpoint is: the bytes of its manifest if it is whole, or what is wrong with it."""

BROKEN = frozenset(["a damaged manifest", "a damaged payload"])
IN_TRASH = "one in the trash"
IN_QUARANTINE = "one in quarantine"


@dataclass(frozen=True)
class Machine:
    """A store with experiments ``run`` and ``other``, backups and an exported checkpoint."""

    url: str
    setting: Setting = PLAIN
    """What it saves in, and what its stores lack; one on a disk lacks nothing either."""

    def manager(self, experiment_name: str = "run", **options: Any) -> CheckpointManager:
        defaults: dict[str, Any] = {
            "checkpoint_dir": self.url,
            "backup_checkpoints": False,
            "max_checkpoints": 99,
            "max_backups": 99,
            **self.setting.options,
        }
        return CheckpointManager(CheckpointConfig(**(defaults | options)), experiment_name)

    def experiment(self, place: str) -> Experiment:
        if place == "exported":  # a store of its own: in memory, none lies in another
            return Experiment(open_store(f"{self.url}/{place}"), "", "run", single_writer=self._is_alone)
        return Experiment(open_store(self.url), place, "run", single_writer=self._is_alone)

    @property
    def _is_alone(self) -> bool:
        return bool(self.setting.options["single_writer"])

    def ids(self, place: str = "run") -> list[str]:
        """Return every checkpoint that readers see, and those whose manifest cannot be read."""
        view = self.experiment(place).index.view()
        unreadable = [str(error.checkpoint_id) for error in view.unreadable]
        return sorted([*(item.checkpoint_id for item in view.usable), *unreadable])

    def exported_payload(self, checkpoint_id: str) -> str:
        """The file or folder to import, which has a claim in its name where nothing else keeps names apart."""
        url = f"{self.url}/exported"
        names = {entry.key.partition("/")[0] for entry in open_store(url).list("", recursive=True)}
        (name,) = (name for name in names if name.startswith(checkpoint_id) and not name.endswith(".json"))
        return f"{url}/{name}"

    def save(self, epoch: int, **options: Any) -> str:
        saved = self.manager(**options).save_checkpoint(model=MODEL, epoch=epoch, metrics={"val_loss": 1 / epoch})
        assert saved is not None
        return saved

    def view(self) -> View:
        """Every checkpoint, everywhere, those that can be brought back, and those in quarantine."""
        found: View = {}
        for place in PLACES:
            experiment = self.experiment(place)
            known = experiment.index.view()
            found |= {(place, str(error.checkpoint_id)): "a damaged manifest" for error in known.unreadable}
            found |= {(place, gone.checkpoint_id): IN_TRASH for gone in known.deleted if experiment.is_complete(gone)}
            found |= {(place, item.checkpoint_id): _facts(experiment, item) for item in known.manifests}
        return found

    def state(self) -> dict[str, bytes]:
        """Every file, by its key."""
        store, exported = open_store(self.url), open_store(f"{self.url}/exported")
        found = {f"exported/{entry.key}": get(exported, entry.key) for entry in exported.list("", recursive=True)}
        return found | {entry.key: get(store, entry.key) for entry in store.list("", recursive=True)}

    def files(self) -> dict[str, bytes]:
        """Every file but for the store's own."""
        return {key: data for key, data in self.state().items() if not key.rpartition("/")[2].startswith(STORE_OWN)}


def _facts(experiment: Experiment, manifest: Manifest) -> object:
    """What a checkpoint is; see :data:`View`. Whether it is about to leave, and how often it was written, is nothing
    that a reader sees.
    """
    if manifest.quarantined:
        return IN_QUARANTINE
    if not _is_intact(experiment, manifest):
        return "a damaged payload"
    return manifest.model_copy(update={"state": "live", "revision": "0" * 16}).to_bytes()


_known_intact: set[tuple[str, bytes]] = set()


def _is_intact(experiment: Experiment, manifest: Manifest) -> bool:
    """Whether it validates; the same bytes are read once, since thousands of states hold the same few payloads."""
    try:
        content = b"".join(get(experiment.store, experiment.key(file.name)) for file in manifest.files)
    except FileNotFoundError:
        return False
    found = (manifest.payload.sha256, content)
    if found in _known_intact:
        return True
    if is_intact := bool(validate(experiment, manifest)):
        _known_intact.add(found)
    return is_intact


def facts(experiment: Experiment, checkpoint_id: str) -> object:
    """What the checkpoint of an id is; see :data:`View`."""
    view = experiment.index.view()
    found = [item for item in view.manifests if item.checkpoint_id == checkpoint_id]
    return _facts(experiment, found[0]) if found else "a damaged manifest"


# --- where it runs ---


@contextmanager
def on_disk(disk: Disk) -> Iterator[Machine]:
    """A machine on a disk that may lose power."""
    with (
        registered("file", lambda url: LocalStore(url, system=disk)),
        patch.object(folders, "_durable", disk.durable_folders),
    ):
        yield Machine(str(disk.root))


@contextmanager
def in_memory(state: State, setting: Setting = PLAIN) -> Iterator[Machine]:
    """A machine whose files are in memory, where each operation is done or not."""
    machine = Machine(f"memory://{slug(setting.kind)}/machine", setting)
    exported = f"{machine.url}/exported"
    try:
        for key, data in state.items():
            url, name = (exported, key.removeprefix("exported/")) if key.startswith("exported/") else (machine.url, key)
            MemoryStore(url).put(name, data)
        yield machine
    finally:
        for url in (machine.url, exported):
            MemoryStore._contents.pop(url.removeprefix("memory://"), None)


def wait_long(machine: Machine) -> None:
    """Let the clock of a store in memory go on until all that is unfinished is abandoned."""
    store = open_store(machine.url)
    assert isinstance(store, MemoryStore)
    clock = store.clock
    store.clock = lambda: clock() + LONG_SECONDS


_numbers = itertools.count(1)


@contextmanager
def another_process(*, boot: str = "") -> Iterator[None]:
    """What is done meanwhile is done by a process of its own, which is dead afterwards; or after another ``boot``."""
    number = next(_numbers)
    with patch.object(owners, "_start", lambda _: f"process {number}"):
        if not boot:
            yield
            return
        with patch.object(owners, "_system", lambda: boot):
            yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the log still, and read each manifest once.

    Thousands of states hold the same few manifests, and reading them again and again would be most of the work.
    """
    logger = logging.getLogger("ckpt_lib")
    disabled, logger.disabled = logger.disabled, True
    read_once = lru_cache(10_000)(lambda data, path: parse_record(data, path=path))
    try:
        with patch.object(experiments, "parse_record", lambda data, *, path: read_once(data, path)):
            yield
    finally:
        logger.disabled = disabled


# --- what is done ---

Action = Callable[[Machine, random.Random], object]


class NothingToDo(Exception):  # noqa: N818  # it is none
    """There is no checkpoint for that action."""


def _any(machine: Machine, source: random.Random, place: str = "run", *, whole: bool = False) -> str:
    ids = [item for item in machine.ids(place) if not whole or facts(machine.experiment(place), item) not in BROKEN]
    return _chosen(ids, source)


def _chosen(ids: list[str], source: random.Random) -> str:
    if not ids:
        raise NothingToDo
    return source.choice(ids)


def _undelete(machine: Machine, source: random.Random) -> object:
    deleted = [found.checkpoint_id for found in machine.manager().list_deleted()]
    return machine.manager().undelete_checkpoint(_chosen(deleted, source))


def _set_aside(machine: Machine, source: random.Random) -> object:
    backups = machine.ids("run/backups")
    folder = machine.experiment("run")
    damaged = [found for found in machine.ids() if found not in backups and facts(folder, found) in BROKEN]
    return machine.manager().quarantine_checkpoint(_chosen(damaged, source))


def _remove_for_good(machine: Machine, source: random.Random) -> object:
    found = [item.checkpoint_id for item in machine.manager().list_quarantined() if not item.is_backup]
    return machine.manager().delete_quarantined(_chosen(found, source))


def _examine(machine: Machine, source: random.Random) -> object:
    report = machine.manager().doctor(fix=True)
    if not report.done:
        raise NothingToDo
    return report


ACTIONS: dict[str, Action] = {
    "doctor": _examine,
    "save": lambda machine, source: machine.save(source.randint(5, 99)),
    "save, back up, retire": lambda machine, source: machine.save(
        source.randint(5, 99), backup_checkpoints=True, max_checkpoints=2, max_backups=1
    ),
    "edit": lambda machine, source: machine.manager().edit_checkpoint(
        _any(machine, source), add_tags=[f"tag{source.randint(0, 9)}"]
    ),
    "pin": lambda machine, source: machine.manager().pin_checkpoint(_any(machine, source)),
    "delete": lambda machine, source: machine.manager().delete_checkpoint(_any(machine, source)),
    "delete for good": lambda machine, source: machine.manager(trash_seconds=0).delete_checkpoint(
        _any(machine, source)
    ),
    "undelete": _undelete,
    "back up": lambda machine, source: machine.manager().backup_checkpoint(_any(machine, source, whole=True)),
    "restore": lambda machine, source: machine.manager().restore_checkpoint(_any(machine, source, "run/backups")),
    "repair": lambda machine, source: machine.manager().repair_checkpoint(_any(machine, source, "run/backups")),
    "export": lambda machine, source: machine.manager().export_checkpoint(
        _any(machine, source, whole=True), f"{machine.url}/exported"
    ),
    "import": lambda machine, source: machine.manager().import_checkpoint(
        machine.exported_payload(_any(machine, source, "exported"))
    ),
    "import a bare payload": lambda machine, source: machine.manager().import_checkpoint(f"{machine.url}/{BARE}"),
    "set aside": _set_aside,
    "remove for good": _remove_for_good,
    "clean up": lambda machine, source: machine.manager(max_checkpoints=source.randint(1, 3)).cleanup_checkpoints(),
    "empty the trash": lambda machine, source: machine.manager(trash_seconds=0).cleanup_checkpoints(),
}


def start_state(setting: Setting = PLAIN) -> State:
    """Nine checkpoints: two whole, one without its payload and one damaged, both with a backup, one damaged without,
    one deleted, one in quarantine, one of which only the backup is left, one exported from another experiment; a
    payload without a manifest, if it is one file; and foreign files.
    """
    with in_memory({}, setting) as machine:
        whole, headless, damaged, hopeless, deleted, aside, lost, _ = (machine.save(epoch) for epoch in range(1, 9))
        machine.manager().delete_checkpoint(deleted)
        for checkpoint_id in (headless, damaged, lost):
            machine.manager().backup_checkpoint(checkpoint_id)
        other = machine.save(20, experiment_name="other")
        machine.manager("other").export_checkpoint(other, f"{machine.url}/exported")
        state = _with_damage(machine.state(), damaged, hopeless, aside)
    gone = {*_payload_keys(state, headless), *_payload_keys(state, lost), f"run/{lost}.json"}
    bare = {BARE: state[f"run/{whole}.pt"]} if setting == PLAIN else {}
    with in_memory({key: data for key, data in state.items() if key not in gone}, setting) as machine:
        machine.manager().quarantine_checkpoint(aside)
        return {**machine.state(), **bare, **FOREIGN}


def _payload_keys(state: State, checkpoint_id: str) -> list[str]:
    """The files of a payload in the experiment ``run``."""
    manifest = f"run/{checkpoint_id}.json"
    return sorted(key for key in state if key.startswith(f"run/{checkpoint_id}") and key != manifest)


def _with_damage(state: State, *ids: str) -> State:
    keys = [_payload_keys(state, checkpoint_id)[0] for checkpoint_id in ids]
    return {**state, **{key: state[key][:-1] + bytes([state[key][-1] ^ 0xFF]) for key in keys}}


# --- what must hold afterwards ---


def recover(machine: Machine, found: View, wait: Callable[[], object] = lambda: None) -> Iterator[str]:
    """The next save and cleanup work at once, take nothing away and, when ``wait`` is over, leave nothing behind."""
    saved = machine.save(999)
    _clean_up_everything(machine)
    now = machine.view()
    if not isinstance(now.pop(("run", saved), None), bytes):
        yield "the next save is not there"
    found = {key: was for key, was in found.items() if was != IN_TRASH or not key[0].startswith("run")}
    now = {key: is_now for key, is_now in now.items() if is_now != IN_TRASH or not key[0].startswith("run")}
    if now != found:
        yield f"a cleanup changed {sorted(key for key in {*now, *found} if now.get(key) != found.get(key))}"
    wait()
    _clean_up_everything(machine)
    expected = _expected_files(machine)
    if left := sorted(key for key in machine.files() if key not in expected and not _may_stay(key)):
        yield f"left behind: {left}"


def _clean_up_everything(machine: Machine) -> None:
    machine.manager().cleanup_checkpoints()
    manager = machine.manager(trash_seconds=0)
    manager.cleanup_checkpoints()
    manager.cleanup_backups()


def _expected_files(machine: Machine) -> set[str]:
    """The files that a record names, and those of ids that are gone, which stay for a day."""
    expected = {*FOREIGN, *DERIVED, BARE}
    for place in PLACES:
        view = machine.experiment(place).index.view()
        expected |= {
            f"{place}/{error.checkpoint_id}{suffix}" for error in view.unreadable for suffix in (".json", ".pt")
        }
        for manifest in (*view.manifests, *view.deleted):
            names = [f"{manifest.checkpoint_id}.json", *(file.name for file in manifest.files)]
            expected |= {f"{place}/{name}" for name in names}
        expected |= {f"{place}/{claim.checkpoint_id}.json" for claim in view.claims if claim.state == "gone"}
    return expected


def _may_stay(key: str) -> bool:
    """Pointers stay, so that copies know each other; of an export that was cut off, so does its payload."""
    place, _, name = key.rpartition("/")
    return place.endswith(("/uids", "/keys")) or (place == "exported" and name.endswith(".pt"))
