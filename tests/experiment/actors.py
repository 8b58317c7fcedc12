"""The actors that are explored: each calls the real functions."""

from __future__ import annotations

import contextlib
from typing import Any

from ckpt_lib.core.facts import CheckpointFacts
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import StorageFullError
from ckpt_lib.experiment import commit, copies, deletion, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.files import replace_file
from ckpt_lib.experiment.sweep import sweep
from tests.experiment.contents import U, X, manifest
from tests.experiment.explorer import MOMENT, Actor

REPORT = {"files": ["damaged"]}


def save(uid: str, *, epoch: int = 1, key: str | None = None, files: int = 1) -> Actor:
    def write(payload: commit.Payload) -> None:
        for number in range(files):
            with payload.open("" if files == 1 else f"part{number}") as stream:
                stream.write(uid.encode())

    def actor(experiment: Experiment) -> Any:
        facts = CheckpointFacts(epoch, 0, "Net", "e", uid=uid, timestamp=MOMENT, idempotency_key=key)
        made = commit.save(experiment, facts, write, format_name="torch", suffix=".pt" if files == 1 else "/")
        return ("saved" if made.uid == uid else "earlier"), made.checkpoint_id, made.uid

    return actor


def copy(uid: str = U, *, asked: bool = True, new_id: bool = False, checkpoint_id: str = X) -> Actor:
    """Copy from a folder beside this one, which nobody changes unless a world says so."""

    def actor(experiment: Experiment) -> Any:
        source = Experiment(experiment.store, "source", "e")
        made = copies.copy(source, manifest(checkpoint_id, uid), experiment, asked=asked, new_id=new_id)
        return made and ("saved", made.checkpoint_id, made.uid)

    return actor


def sweeper(experiment: Experiment) -> Any:
    sweep(experiment)
    return ("swept",)


def purge(experiment: Experiment) -> Any:
    return "purged", len(deletion.purge(experiment, grace_seconds=0))


def delete(checkpoint_id: str = X, *relied_on: str, for_good: bool = False) -> Actor:
    def actor(experiment: Experiment) -> Any:
        outcome = deletion.delete_all(experiment, [checkpoint_id], relied_on=relied_on, for_good=for_good)
        return "deleted", len(outcome.deleted)

    return actor


def delete_both(one: str, two: str, *relied_on: str, for_good: bool = False) -> Actor:
    def actor(experiment: Experiment) -> Any:
        outcome = deletion.delete_all(experiment, [one, two], relied_on=relied_on, for_good=for_good)
        return "deleted", len(outcome.deleted)

    return actor


def undelete(checkpoint_id: str = X) -> Actor:
    return lambda experiment: ("back", deletion.undelete(experiment, checkpoint_id).checkpoint_id)


def edit(checkpoint_id: str = X, **facts: Any) -> Actor:
    def actor(experiment: Experiment) -> Any:
        edits.edit(experiment, checkpoint_id, lambda item: item.changed(**facts))
        return ("edited",)

    return actor


def tag(name: str) -> Actor:
    def actor(experiment: Experiment) -> Any:
        edits.edit(experiment, X, lambda item: item.changed(tags=tuple(sorted({*item.tags, name}))))
        return "edited", name

    return actor


def quarantine(checkpoint_id: str) -> Actor:
    def actor(experiment: Experiment) -> Any:
        found = experiment.read(checkpoint_id)
        if not (isinstance(found.record, Manifest) and found.record.is_visible):
            return None
        return "set aside", edits.quarantine(experiment, found, REPORT) is not None

    return actor


def read(experiment: Experiment) -> Any:
    """Read a checkpoint as a load does: a file that is gone means that its checkpoint is."""
    try:
        found = experiment.get(X)
        with experiment.store.open_read(experiment.key(found.files[0].name)) as reader:
            return ("whole",) if reader.read_at(0, 99) == found.uid.encode() else ("CORRUPT",)
    except FileNotFoundError:
        return ("not found",)


def repair(experiment: Experiment) -> Any:
    found = experiment.get(X)
    return "repaired", replace_file(experiment, found, found.files[0], [found.uid.encode()])


def without_room(one: Actor) -> Actor:
    """Go on after an error of a full store."""

    def actor(experiment: Experiment) -> Any:
        with contextlib.suppress(StorageFullError):
            return one(experiment)

    return actor


def then(*actors: Actor) -> Actor:
    def actor(experiment: Experiment) -> Any:
        return [one(experiment) for one in actors][-1]

    return actor
