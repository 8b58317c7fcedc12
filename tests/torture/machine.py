"""What the rows about power loss and failing stores do to a store, and how they look at what came of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import CorruptManifestError
from ckpt_lib.experiment.index import Index
from ckpt_lib.experiment.layout import CheckpointFolder, marker_entries
from ckpt_lib.maintenance.recover import Orphan, adopt_proven, is_proven
from ckpt_lib.maintenance.validate import validate
from ckpt_lib.store import Store, open_store
from ckpt_lib.store.registry import registered
from tests.torture.model_store import Disk, ModelStore, State

MODEL = torch.nn.Linear(8, 8)
PLACES = ("run", "run/backups", "other", "exported")
FOREIGN = {"run/notes.txt": b"a person's", "run/backups/old.pt": b"somebody's", "exported/readme": b"hands off"}
DERIVED = {f"{place}/checkpoint_metadata.json" for place in PLACES}
STORE_OWN = ".ckpt-"
MODEL_URL = "model://disk"

Key = tuple[str, str]
"""Where a checkpoint lies, and its id."""
View = dict[Key, object]
"""What each checkpoint is: the bytes of its manifest if it is whole, or what is wrong with it."""

BROKEN = frozenset(["a damaged manifest", "a damaged payload"])
IN_TRASH = "one in the trash"
IN_QUARANTINE = "one in quarantine"
RECORD_ALONE = "a record of quarantine without a payload"


@dataclass(frozen=True)
class Machine:
    """A store with experiments ``run`` and ``other``, backups and an exported checkpoint."""

    url: str

    def manager(self, experiment_name: str = "run", **options: Any) -> CheckpointManager:
        defaults: dict[str, Any] = {"checkpoint_dir": self.url, "backup_checkpoints": False, "max_checkpoints": 99}
        return CheckpointManager(CheckpointConfig(**(defaults | options)), experiment_name)

    def folder(self, place: str) -> CheckpointFolder:
        return CheckpointFolder(open_store(self.url), place)

    def ids(self, place: str = "run") -> list[str]:
        return sorted(self.folder(place).manifest_entries())

    def save(self, epoch: int, **options: Any) -> str:
        saved = self.manager(**options).save_checkpoint(model=MODEL, epoch=epoch, metrics={"val_loss": 1 / epoch})
        assert saved is not None
        return saved

    def view(self) -> View:
        """Every checkpoint, everywhere, those that can be brought back, and those in quarantine."""
        found: View = {}
        for place in PLACES:
            folder = self.folder(place)
            known = Index(folder).view()
            marked = marker_entries(known.entries.values(), "quarantined")
            found |= {(place, checkpoint_id): facts_in_quarantine(folder, checkpoint_id) for checkpoint_id in marked}
            found |= {(place, gone.checkpoint_id): IN_TRASH for gone in known.deleted if known.is_complete(gone)}
            found |= {(place, checkpoint_id): facts(folder, checkpoint_id) for checkpoint_id in self.ids(place)}
        return found

    def files(self) -> dict[str, bytes]:
        """Every file but for the store's own."""
        return dict(_files(open_store(self.url), ""))


def _files(store: Store, folder: str) -> Iterator[tuple[str, bytes]]:
    for entry in store.entries(folder):
        path = f"{folder}/{entry.name}".lstrip("/")
        if entry.name.startswith(STORE_OWN):
            continue
        if entry.is_folder:
            yield from _files(store, path)
        else:
            with store.open_read(path) as file:
                yield path, file.read()


def facts(folder: CheckpointFolder, checkpoint_id: str) -> object:
    """What a checkpoint is; see :data:`View`."""
    try:
        manifest = folder.read_manifest(checkpoint_id)
    except CorruptManifestError:
        return "a damaged manifest"
    return manifest.to_bytes() if validate(folder, manifest, "run") else "a damaged payload"


def facts_in_quarantine(folder: CheckpointFolder, checkpoint_id: str) -> str:
    """What there is of one that was set aside."""
    try:
        manifest = folder.read_marker(checkpoint_id, "quarantined")
    except CorruptManifestError:
        return "a damaged record of quarantine"
    return RECORD_ALONE if folder.payload_entry(manifest) is None else IN_QUARANTINE


@contextmanager
def on_disk(disk: Disk) -> Iterator[Machine]:
    """A machine on a model of a disk."""
    with registered("model", lambda url: ModelStore(disk, url)):
        yield Machine(MODEL_URL)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the log still, and read each manifest once.

    Thousands of states hold the same few manifests, and reading them again and again would be most of the work.
    """
    logger = logging.getLogger("ckpt_lib")
    disabled, logger.disabled = logger.disabled, True
    read = Manifest.from_bytes
    read_once = lru_cache(10_000)(lambda data, path: read(data, path=path))
    try:
        with patch.object(Manifest, "from_bytes", read_once):
            yield
    finally:
        logger.disabled = disabled


# --- what is done ---

Action = Callable[[Machine, random.Random], object]


class NothingToDo(Exception):  # noqa: N818  # it is none
    """There is no checkpoint for that action."""


def _any(machine: Machine, source: random.Random, place: str = "run", *, whole: bool = False) -> str:
    ids = [found for found in machine.ids(place) if not whole or facts(machine.folder(place), found) not in BROKEN]
    if not ids:
        raise NothingToDo
    return source.choice(ids)


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
        raise NothingToDo
    return machine.manager().undelete_checkpoint(source.choice(deleted))


def _back_up(machine: Machine, source: random.Random) -> object:
    return machine.manager().backup_checkpoint(_any(machine, source, whole=True))


def _restore(machine: Machine, source: random.Random) -> object:
    return machine.manager().restore_checkpoint(_any(machine, source, "run/backups"))


def _repair(machine: Machine, source: random.Random) -> object:
    return machine.manager().repair_checkpoint(_any(machine, source, "run/backups"))


def _export(machine: Machine, source: random.Random) -> object:
    return machine.manager().export_checkpoint(_any(machine, source, whole=True), f"{machine.url}/exported")


def _import(machine: Machine, source: random.Random) -> object:
    exported = f"{machine.url}/exported/{_any(machine, source, 'exported')}.pt"
    return machine.manager().import_checkpoint(exported)


def _set_aside(machine: Machine, source: random.Random) -> object:
    backups = machine.ids("run/backups")
    folder = machine.folder("run")
    damaged = [found for found in machine.ids() if found not in backups and facts(folder, found) in BROKEN]
    if not damaged:
        raise NothingToDo
    return machine.manager().quarantine_checkpoint(source.choice(damaged))


def _remove_for_good(machine: Machine, source: random.Random) -> object:
    found = [item for item in machine.manager().list_quarantined() if not item.is_backup]
    if not found:
        raise NothingToDo
    return machine.manager().delete_quarantined(source.choice(found).checkpoint_id)


def _copy_lost(machine: Machine, source: random.Random) -> Orphan:
    """A person copies a payload from the backups that is lost, as ``cp`` does."""
    folder, backups = machine.folder("run"), machine.folder("run/backups")
    entries = folder.store.entries(folder.path)
    # What is in the trash or in quarantine has its payload still, which he does not overwrite.
    kept = marker_entries(entries, "deleted").keys() | marker_entries(entries, "quarantined").keys()
    lost = sorted({*machine.ids("run/backups")} - {*machine.ids(), *kept})
    if not lost:
        raise NothingToDo
    name = f"{source.choice(lost)}.pt"
    with backups.store.open_read(backups.path_of(name)) as file:
        payload = file.read()
    with folder.lock() as held:
        held.put(folder.path_of(name), payload, durable=False)
    entry = folder.store.stat(folder.path_of(name))
    assert entry is not None
    return Orphan(folder, name, entry.version)


def _put_back(machine: Machine, source: random.Random) -> object:
    """What was copied gets its manifest, as the doctor gives it."""
    orphan = _copy_lost(machine, source)
    manifest = machine.folder("run/backups").read_manifest(orphan.checkpoint_id)
    if not is_proven(orphan, manifest):  # it cannot be read any more
        raise NothingToDo
    assert adopt_proven(orphan, manifest)
    return manifest


def _examine(machine: Machine, source: random.Random) -> object:
    """The doctor treats whatever there is, with something that was copied."""
    with suppress(NothingToDo):
        _copy_lost(machine, source)
    report = machine.manager().doctor(fix=True)
    if not report.done:
        raise NothingToDo
    return report


def _clean_up(machine: Machine, source: random.Random) -> object:
    return machine.manager(max_checkpoints=source.randint(1, 3)).cleanup_checkpoints()


def _clean_up_for_good(machine: Machine, source: random.Random) -> object:
    return machine.manager(trash_seconds=0).cleanup_checkpoints()


ACTIONS: dict[str, Action] = {
    "doctor": _examine,
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
    "set aside": _set_aside,
    "remove for good": _remove_for_good,
    "put back": _put_back,
    "clean up": _clean_up,
    "empty the trash": _clean_up_for_good,
}


def start_state() -> State:
    """Nine checkpoints: two whole, one without its payload and one damaged, both with a backup, one damaged without,
    one deleted, one in quarantine, one of which only the backup is left, one exported from another experiment; and
    foreign files.
    """
    disk = Disk()
    with on_disk(disk) as machine:
        _, headless, damaged, hopeless, deleted, aside, lost, _ = (machine.save(epoch) for epoch in range(1, 9))
        machine.manager().delete_checkpoint(deleted)
        for checkpoint_id in (headless, damaged, lost):
            machine.manager().backup_checkpoint(checkpoint_id)
        other = machine.save(1, experiment_name="other")
        machine.manager("other").export_checkpoint(other, f"{machine.url}/exported")
    gone = {f"run/{name}" for name in (f"{headless}.pt", f"{lost}.pt", f"{lost}.json")}
    state = _with_damage(disk.state(), damaged, hopeless, aside)
    disk = Disk({path: data for path, data in state.items() if path not in gone})
    with on_disk(disk) as machine:
        machine.manager().quarantine_checkpoint(aside)
    return {**disk.state(), **FOREIGN}


def _with_damage(state: State, *ids: str) -> State:
    paths = [f"run/{checkpoint_id}.pt" for checkpoint_id in ids]
    return {**state, **{path: state[path][:-1] + bytes([state[path][-1] ^ 0xFF]) for path in paths}}


def write_state(state: State, root: Path) -> None:
    """Put the files of a state into a folder."""
    for path, data in state.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


# --- what must hold afterwards ---


def recover(machine: Machine, found: View, residue: Callable[[str], bool] = lambda path: False) -> Iterator[str]:
    """The next save and cleanup work, take nothing away, and leave nothing behind but for allowed ``residue``."""
    saved = machine.save(999)
    machine.manager().cleanup_checkpoints()
    machine.manager(trash_seconds=0).cleanup_checkpoints()
    now = machine.view()
    if not isinstance(now.pop(("run", saved), None), bytes):
        yield "the next save is not there"
    found = {key: was for key, was in found.items() if was != IN_TRASH or not key[0].startswith("run")}
    if now != found:
        yield f"a cleanup changed {sorted(key for key in {*now, *found} if now.get(key) != found.get(key))}"
    expected = {*FOREIGN, *DERIVED, *(f"run/{saved}{suffix}" for suffix in (".json", ".pt"))}
    for (place, checkpoint_id), was in found.items():
        payload = f"{place}/{checkpoint_id}.pt"
        marks = {IN_TRASH: ".deleted", IN_QUARANTINE: ".quarantined", RECORD_ALONE: ".quarantined"}
        mark = marks.get(was) if isinstance(was, str) else None
        expected |= {payload, f"{place}/.{checkpoint_id}{mark}" if mark else f"{place}/{checkpoint_id}.json"}
    if left := sorted(path for path in machine.files() if path not in expected and not residue(path)):
        yield f"left behind: {left}"
