"""Pointers that are damaged: as good as none, since the manifests hold what they say."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ckpt_lib.core.manifest import Manifest
from ckpt_lib.errors import StoreError, VersionConflictError
from ckpt_lib.experiment import copies, deletion, pointers
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.layout import key_name, manifest_name, uid_name
from ckpt_lib.store.base import ABSENT
from ckpt_lib.store.memory import MemoryStore
from ckpt_lib.testing.faulty_store import FaultPlan, FaultyStore
from tests.experiment.small import Clock, names, read, save, state_of

DAMAGES = ["first bit", "checkpoint id", "empty"]


def damage(experiment: Experiment, name: str, kind: str = "first bit") -> None:
    data = bytearray(read(experiment, name))
    match kind:
        case "first bit":
            data[0] ^= 1
        case "checkpoint id":  # still JSON, and no id
            data = data.replace(b"checkpoint_epoch", b"chdckpoint_epoch")
        case "empty":
            data = bytearray()
    experiment.store.put(experiment.key(name), bytes(data))
    assert pointers.read(experiment, name).is_damaged


def deleted_copy(experiment: Experiment) -> tuple[Experiment, Manifest]:
    """Return a source and its copy here, which was deleted; a second checkpoint is live."""
    source = Experiment(experiment.store, "source", "e")
    copied = copies.copy(source, save(source, idempotency_key="k"), experiment)
    assert copied
    save(experiment, 2)
    deletion.delete_all(experiment, [copied.checkpoint_id])
    return source, copied


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_retry_finds_the_checkpoint_whose_key_has_a_damaged_pointer(experiment: Experiment, kind: str) -> None:
    """Live or deleted, by the key in its manifest; once that is gone, the pointer is replaced."""
    first = save(experiment, idempotency_key="k")
    damage(experiment, key_name("k"), kind)
    assert save(experiment, 2, idempotency_key="k") == first
    deletion.delete_all(experiment, [first.checkpoint_id])
    assert save(experiment, 2, idempotency_key="k").uid == first.uid
    deletion.delete_all(experiment, [first.checkpoint_id])
    deletion.purge(experiment, grace_seconds=0, asked=True)
    again = save(experiment, 2, idempotency_key="k")
    assert again.uid != first.uid
    assert pointers.read(experiment, key_name("k")).pointer is not None
    assert save(experiment, 3, idempotency_key="k") == again


def test_a_damaged_record_does_not_stop_later_saves_of_its_key(experiment: Experiment) -> None:
    """The key then stands for what the retry saves; the damaged record stays for a repair."""
    first = save(experiment, idempotency_key="k")
    name = manifest_name(first.checkpoint_id)
    broken = read(experiment, name)[:-20]
    experiment.store.put(experiment.key(name), broken)
    again = save(experiment, 2, idempotency_key="k")
    assert again.uid != first.uid
    assert save(experiment, 3, idempotency_key="k") == again
    assert read(experiment, name) == broken


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_pointer_stops_no_purge(experiment: Experiment, kind: str) -> None:
    """Neither that of a key nor that of a ``uid``; what was purged stays away from then on."""
    source, copied = deleted_copy(experiment)
    pointers.put(experiment, key_name("k"), pointers.Pointer(checkpoint_id=copied.checkpoint_id, uid=copied.uid), None)
    damage(experiment, key_name("k"), kind)
    damage(experiment, uid_name(copied.uid), kind)
    assert deletion.purge(experiment, grace_seconds=0)
    assert state_of(experiment, copied.checkpoint_id) == "gone"
    assert copies.copy(source, source.get(copied.checkpoint_id), experiment) is None


def test_a_copy_with_a_damaged_pointer_is_no_second_one(store: MemoryStore, clock: Clock) -> None:
    """It is found by its ``uid``, also where it has got another id and its own is free by now."""
    home, source = Experiment(store, "e", "e"), Experiment(store, "source", "e")
    first, made = save(home), save(source)
    copied = copies.copy(source, made, home, new_id=True)
    assert copied
    deletion.delete_all(home, [first.checkpoint_id])
    clock.now += timedelta(days=2)
    deletion.purge(home, grace_seconds=0)
    assert state_of(home, made.checkpoint_id) is None
    damage(home, uid_name(made.uid))
    assert copies.copy(source, made, home, new_id=True) == copied
    assert home.index.manifests() == [copied]


def test_a_damaged_pointer_is_mended(experiment: Experiment) -> None:
    """For what carries its key or ``uid``; without such a checkpoint, the file goes."""
    source, copied = deleted_copy(experiment)
    damage(experiment, uid_name(copied.uid))
    assert pointers.mend(experiment, uid_name(copied.uid))
    pointer = pointers.read(experiment, uid_name(copied.uid)).pointer
    assert pointer
    assert (pointer.checkpoint_id, pointer.uid, pointer.gone) == (copied.checkpoint_id, copied.uid, False)
    save(source, 3, idempotency_key="other")
    damage(source, key_name("other"))
    deletion.delete_all(source, [item.checkpoint_id for item in source.index.manifests()])
    deletion.purge(source, grace_seconds=0, asked=True)
    assert pointers.mend(source, key_name("other"))
    assert source.key(key_name("other")) not in names(source)


@pytest.mark.parametrize("asked", [False, True])
def test_what_cannot_be_removed_keeps_nothing_else_from_going(store: MemoryStore, asked: bool) -> None:
    """A person who asked is told in the end, this time and the next."""
    home = Experiment(store, "e", "e")
    stuck, other, _ = (save(home, epoch) for epoch in (1, 2, 3))

    def refuse(operation: str, key: str) -> None:
        if (operation, key) == ("delete", home.key(stuck.payload.name)):
            raise StoreError("injected", path=key)

    experiment = Experiment(FaultyStore(store, FaultPlan(between=refuse)), "e", "e")
    for due in (other, None):
        deletion.delete_all(home, [stuck.checkpoint_id, *([due.checkpoint_id] if due else [])])
        if asked:
            with pytest.raises(StoreError, match="injected"):
                deletion.purge(experiment, grace_seconds=0, asked=True)
        else:
            purged = deletion.purge(experiment, grace_seconds=0)
            assert [item.checkpoint_id for item in purged] == ([due.checkpoint_id] if due else [])
        assert state_of(home, other.checkpoint_id) == "gone"
        assert state_of(home, stuck.checkpoint_id) == "purging"
    assert [item.checkpoint_id for item in deletion.purge(home, grace_seconds=0)] == [stuck.checkpoint_id]


def test_what_was_written_anew_is_not_deleted(experiment: Experiment) -> None:
    """Whoever deletes a small file means the one that was read."""
    before = experiment.put("x", b"old", ABSENT)
    after = experiment.put("x", b"new", before.version)
    with pytest.raises(VersionConflictError):
        experiment.delete_key("x", before.version)
    assert experiment.store.stat(experiment.key("x")) == after
    assert experiment.delete_key("x", after.version)
    assert experiment.store.stat(experiment.key("x")) is None
