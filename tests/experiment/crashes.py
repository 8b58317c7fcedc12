"""A small experiment on a local disk, everything that may be done to it, and what must hold after a crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.experiment import claims, commit, copies, deletion, edits, files
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.store.local import LocalStore
from ckpt_lib.store.local.system import System

OLD, DELETED, DAMAGED, NEWEST, DEAD, LOST = range(1, 7)
"""The checkpoints, by epoch: one that is deleted, one that is damaged at home, a claim whose owner died while it
uploaded, and one that was purged at home. The damaged one and the lost one have a backup."""
PATHS = {"home": "e", "backups": "e/backups", "other": "other"}


@dataclass(frozen=True)
class Place:
    """A store that holds the experiment, its backups, and another experiment."""

    root: Path
    system: System = field(default_factory=System)
    started: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @cached_property
    def _experiments(self) -> dict[str, Experiment]:
        """They know nothing of what others of this place have done."""
        store = LocalStore(str(self.root), system=self.system)
        return {name: Experiment(store, path, "e") for name, path in PATHS.items()}

    def experiment(self, name: str = "home") -> Experiment:
        return self._experiments[name]

    def id(self, epoch: int) -> str:
        return str(CheckpointId(epoch, 100, self.started + timedelta(seconds=epoch)))

    def get(self, epoch: int, name: str = "home") -> Manifest:
        return self.experiment(name).get(self.id(epoch))

    def state(self, epoch: int, name: str = "home") -> str | None:
        record = self.experiment(name).read(self.id(epoch)).record
        return record.state if record else None

    def save(self, epoch: int, key: str | None = None) -> Manifest:
        facts = CheckpointFacts(
            epoch, 100, "Net", "e", timestamp=self.started + timedelta(seconds=epoch), idempotency_key=key
        )
        return commit.save(self.experiment(), facts, _write, format_name="torch", suffix=".pt", verify=False)


def _write(payload: commit.Payload) -> None:
    with payload.open() as stream:
        for block in _BLOCKS:
            stream.write(block)


_BLOCKS = (b"weights ", b"of a model")


def prepare(place: Place) -> None:
    """Build the experiment."""
    home, backups = place.experiment(), place.experiment("backups")
    for epoch in (OLD, DELETED, DAMAGED, NEWEST, LOST):
        made = place.save(epoch)
        if epoch in (DAMAGED, LOST):
            copies.copy(home, made, backups)
    deletion.delete_all(home, [place.id(LOST)])
    deletion.purge(home, grace_seconds=0)
    deletion.delete_all(home, [place.id(DELETED)])
    home.store.put(home.key(place.get(DAMAGED).payload.name), b"weightz of a model")
    wanted = CheckpointId.parse(place.id(DEAD))
    held = claims.claim_new(home, wanted, "d" * 32, ".pt")
    home.store.put(home.key(held.claim.files[0]), b"half")
    long_ago = held.claim.owner.model_copy(update={"pid": 2**22 + 1})
    home.put_record(held.claim.changed(owner=long_ago), held.found.version)


@dataclass(frozen=True)
class Operation:
    """Something during which the process is killed or the power fails."""

    act: Callable[[Place], object]
    is_done: Callable[[Place], object]
    """Whether all is as it must be once the operation was acknowledged."""
    takes: int = 0
    """The epoch of the checkpoint that it may take away."""


def _is_gone(place: Place) -> bool:
    record = place.experiment().read(place.id(DELETED)).record
    return record is None or record.state == "gone"


def _saved(place: Place) -> int:
    return [item.epoch for item in place.experiment().index.manifests()].count(7)


def _repair(place: Place) -> None:
    home, backups, damaged = place.experiment(), place.experiment("backups"), place.get(DAMAGED)
    with backups.store.open_read(backups.key(place.get(DAMAGED, "backups").payload.name)) as sound:
        assert files.replace_file(home, damaged, damaged.payload, files.blocks_of(sound))


def _edit(place: Place) -> None:
    edits.edit(place.experiment(), place.id(OLD), lambda item: item.changed(tags=("new",)))


def _quarantine(place: Place) -> None:
    home = place.experiment()
    edits.quarantine(home, home.read(place.id(DAMAGED)), {"files": []})


def _import(place: Place) -> None:
    copies.copy(place.experiment("backups"), place.get(LOST, "backups"), place.experiment("other"), new_id=True)


OPERATIONS: dict[str, Operation] = {
    "save": Operation(lambda place: place.save(7), lambda place: _saved(place) > 0),
    "idempotent save": Operation(lambda place: place.save(7, "key"), lambda place: _saved(place) == 1),
    "edit": Operation(_edit, lambda place: place.get(OLD).tags == ("new",)),
    "quarantine": Operation(_quarantine, lambda place: place.get(DAMAGED).quarantined),
    "delete": Operation(
        lambda place: deletion.delete_all(place.experiment(), [place.id(OLD)], relied_on=[place.id(NEWEST)]),
        lambda place: place.state(OLD) == "deleted",
        takes=OLD,
    ),
    "delete for good": Operation(
        lambda place: deletion.delete_all(
            place.experiment(), [place.id(OLD)], relied_on=[place.id(NEWEST)], for_good=True
        ),
        lambda place: place.state(OLD) in ("purging", "gone"),
        takes=OLD,
    ),
    "undelete": Operation(
        lambda place: deletion.undelete(place.experiment(), place.id(DELETED)), lambda place: place.get(DELETED)
    ),
    "purge": Operation(lambda place: deletion.purge(place.experiment(), grace_seconds=0), _is_gone),
    "sweep": Operation(lambda place: sweep(place.experiment()), lambda place: place.state(DEAD) == "gone"),
    "backup": Operation(
        lambda place: copies.copy(place.experiment(), place.get(OLD), place.experiment("backups")),
        lambda place: place.get(OLD, "backups"),
    ),
    "restore": Operation(
        lambda place: copies.copy(
            place.experiment("backups"), place.get(LOST, "backups"), place.experiment(), asked=True
        ),
        lambda place: place.get(LOST),
    ),
    "import": Operation(_import, lambda place: place.get(LOST, "other")),
    "repair": Operation(_repair, lambda place: not _damages(place.experiment(), place.get(DAMAGED))),
}


def _damages(experiment: Experiment, manifest: Manifest) -> list[str]:
    return [damage.message for file in manifest.files for damage in files.find_stored_damages(experiment, file)]


def broken_promises(place: Place, name: str, *, is_acknowledged: bool) -> list[str]:
    """What does not hold after a crash. The process that crashed must be known to be dead."""
    operation = OPERATIONS[name]
    found = list(harm(place, operation, is_acknowledged))
    if is_acknowledged and not operation.is_done(place):
        found.append("acknowledged and not done")
    operation.act(place)
    if not operation.is_done(place):
        found.append("not done when it was tried again")
    place.save(9)
    found += harm(place, operation, is_acknowledged)
    for path in PATHS:
        found += leftovers(place.experiment(path))
    return found


def harm(place: Place, operation: Operation, is_acknowledged: bool) -> Iterator[str]:
    """Half a checkpoint that readers see, and what was acknowledged before and is not there."""
    for name in PATHS:
        experiment = place.experiment(name)
        view = experiment.index.view()
        yield from (f"{name}: unreadable: {error}" for error in view.unreadable)
        for manifest in view.manifests:
            is_excused = name == "home" and manifest.epoch == DAMAGED
            if not is_excused and (damages := _damages(experiment, manifest)):
                yield f"{name}: seen and broken: {manifest.checkpoint_id}: {damages}"
    kept = {("home", OLD), ("home", DAMAGED), ("home", NEWEST), ("backups", DAMAGED), ("backups", LOST)}
    for name, epoch in kept - {("home", operation.takes)}:
        if place.state(epoch, name) not in ("live", "leaving"):
            yield f"{name}: gone: {epoch}"


def leftovers(experiment: Experiment) -> Iterator[str]:
    """What a sweep and a purge do not clear."""
    sweep(experiment)
    deletion.purge(experiment, grace_seconds=0)
    view = experiment.index.view()
    yield from (f"left: {claim.checkpoint_id} is {claim.state}" for claim in view.claims if claim.state != "gone")
    named = {experiment.key(file.name) for item in view.manifests for file in item.files}
    yield from (f"left: {key}" for key in view.entries if key.endswith(".pt") and key not in named)
