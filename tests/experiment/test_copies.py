"""Copies and repaired files: whole, of the same bytes, and in nobody else's place."""

from __future__ import annotations

import pytest

from ckpt_lib.errors import CheckpointExistsError, CheckpointNotFoundError, CorruptCheckpointError
from ckpt_lib.experiment import copies, deletion, files
from ckpt_lib.experiment.experiment import Experiment
from tests.experiment.small import DATA, names, read, save


def test_a_copy_is_whole_and_leaves_its_source_alone(experiment: Experiment) -> None:
    """Progress counts every byte; copying again changes nothing; a purged one does not come back unless asked."""
    made, target = save(experiment), Experiment(experiment.store, "e/backups", "e")
    seen: list[int] = []
    copied = copies.copy(experiment, made, target, progress=seen.append)
    assert copied
    assert copied.uid == made.uid
    assert target.is_complete(copied)
    assert sum(seen) == len(DATA)
    assert copies.copy(experiment, made, target) == copied
    other = copies.copy(experiment, save(experiment, 2), target)
    assert other
    assert deletion.delete_all(target, [made.checkpoint_id]).deleted
    assert copies.copy(experiment, made, target) is None
    deletion.purge(target, grace_seconds=0)
    assert copies.copy(experiment, made, target) is None
    back = copies.copy(experiment, made, target, asked=True)
    assert back
    assert back.payload.name != copied.payload.name
    assert target.is_complete(back)
    assert experiment.get(made.checkpoint_id) == made


@pytest.mark.parametrize("damage", [b"other!!", b"short", None])
def test_damage_is_never_copied(experiment: Experiment, damage: bytes | None) -> None:
    """The error says where it is, and the target has no new checkpoint."""
    made, target = save(experiment), Experiment(experiment.store, "b", "e")
    if damage is None:
        experiment.store.delete(experiment.key(made.payload.name))
    else:
        experiment.store.put(experiment.key(made.payload.name), damage)
    with pytest.raises(CorruptCheckpointError) as caught:
        copies.copy(experiment, made, target)
    assert caught.value.damages
    assert target.index.manifests() == []


def test_what_is_deleted_before_it_is_copied_is_gone_and_not_damaged(experiment: Experiment) -> None:
    """Who asked for the copy can tell."""
    made = save(experiment)
    save(experiment, 2)
    deletion.delete_all(experiment, [made.checkpoint_id])
    deletion.purge(experiment, grace_seconds=0)
    with pytest.raises(CheckpointNotFoundError):
        copies.copy(experiment, made, Experiment(experiment.store, "b", "e"))


def test_a_copy_does_not_take_anothers_place(experiment: Experiment) -> None:
    """Another checkpoint's id, or a foreign file's name: refused, or a suffix if so wished."""
    made, target = save(experiment), Experiment(experiment.store, "b", "e")
    there = save(target)
    with pytest.raises(CheckpointExistsError):
        copies.copy(experiment, made, target)
    adopted = copies.copy(experiment, made, target, new_id=True, change=lambda item: item.changed(sequence=7))
    assert adopted
    assert (adopted.checkpoint_id, adopted.sequence) == (f"{there.checkpoint_id}_2", 7)
    assert copies.copy(experiment, made, target, new_id=True) == adopted
    foreign = Experiment(experiment.store, "c", "e")
    foreign.store.put(foreign.key(made.payload.name), b"mine")
    with pytest.raises(CheckpointExistsError):
        copies.copy(experiment, made, foreign)
    assert read(foreign, made.payload.name) == b"mine"


@pytest.mark.parametrize("use_pointer", [True, False])
def test_a_copy_comes_after_the_purge_of_an_earlier_one(experiment: Experiment, use_pointer: bool) -> None:
    """Whoever purges it is at it, or was killed: the copy finishes the purge, and does not wait for another one."""
    made, target = save(experiment), Experiment(experiment.store, "backups", "e")
    copies.copy(experiment, made, target, use_pointer=use_pointer)
    found = target.read(made.checkpoint_id)
    target.put_record(found.manifest.changed(state="purging"), found.version)
    again = copies.copy(experiment, made, target, asked=True, use_pointer=use_pointer)
    assert again is not None
    assert again.claim != found.manifest.claim
    assert target.is_complete(target.get(made.checkpoint_id))


def test_a_repair_brings_the_same_bytes(experiment: Experiment) -> None:
    """Other bytes are refused before anything changes; a repair of what was purged meanwhile leaves no file."""
    made = save(experiment)
    save(experiment, 2)
    experiment.store.put(experiment.key(made.payload.name), b"rotten!")
    with pytest.raises(CorruptCheckpointError):
        files.replace_file(experiment, made, made.payload, [b"other"])
    assert read(experiment, made.payload.name) == b"rotten!"
    assert files.replace_file(experiment, made, made.payload, [DATA[:3], DATA[3:]])
    assert read(experiment, made.payload.name) == DATA
    deletion.delete_all(experiment, [made.checkpoint_id])
    deletion.purge(experiment, grace_seconds=0)
    assert not files.replace_file(experiment, made, made.payload, [DATA])
    assert not [name for name in names(experiment) if made.payload.name in name]
