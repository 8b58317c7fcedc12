"""The save protocol: what is acknowledged is whole, no id is shared, and nothing needs a repair by hand."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    NotDurableError,
    ProtectedCheckpointError,
    StoreError,
    StoreUnavailableError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment import claims, commit, copies, deletion, edits, files
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.store.memory import ALL, MemoryStore
from ckpt_lib.testing.faulty_store import BitFlip, FaultPlan, FaultyStore
from tests.experiment.small import (
    CHECKPOINT_ID,
    DATA,
    MOMENT,
    Clock,
    draft,
    names,
    new_store,
    read,
    save,
    state_of,
    write,
)

# Saving


def test_a_save_leaves_a_payload_a_manifest_and_nothing_else(experiment: Experiment) -> None:
    """Under the documented names, with the digests that ``sha256sum`` prints."""
    made = save(experiment)
    assert made.checkpoint_id == "checkpoint_epoch_0001_step_000100_20231201_143022"
    assert names(experiment) == [f"e/{made.checkpoint_id}.json", f"e/{made.checkpoint_id}.pt"]
    assert made.payload.sha256 == hashlib.sha256(DATA).hexdigest()
    assert experiment.get(made.checkpoint_id) == made


def test_saves_of_one_second_get_suffixes(experiment: Experiment) -> None:
    """Each id once, in the order of saving; one that was deleted, or purged, is not given again."""
    first = save(experiment)
    deletion.delete_all(experiment, [first.checkpoint_id])
    second = save(experiment)
    deletion.purge(experiment, grace_seconds=0)
    third = save(experiment)
    assert [item.checkpoint_id[50:] for item in (first, second, third)] == ["", "2", "3"]
    assert [item.sequence for item in (first, second, third)] == [1, 2, 3]


def test_an_id_that_a_foreign_file_has_is_not_taken(experiment: Experiment) -> None:
    """Someone's copy under our kind of name is left as it is, by sweeps as well."""
    foreign = f"{CHECKPOINT_ID}.pt"
    experiment.store.put(experiment.key(foreign), b"mine")
    assert save(experiment).checkpoint_id == f"{CHECKPOINT_ID}_2"
    assert sweep(experiment).unnamed == [foreign]
    assert read(experiment, foreign) == b"mine"


def test_a_late_claim_names_its_file_after_itself(experiment: Experiment, clock: Clock) -> None:
    """A day after the id's time, an earlier claim of it may have ended: its owner may still remove ``X.pt``."""
    clock.now = MOMENT + timedelta(days=1)
    made = save(experiment)
    assert made.payload.name == f"{made.checkpoint_id}.{made.claim}.pt"
    assert names(experiment) == [f"e/{made.checkpoint_id}.{made.claim}.pt", f"e/{made.checkpoint_id}.json"]


def test_a_payload_may_be_a_folder(experiment: Experiment) -> None:
    """Each file with its digests; names that lead elsewhere are refused, and nothing is left then."""

    def several(*parts: str) -> Callable[[commit.Payload], None]:
        def write(payload: commit.Payload) -> None:
            for part in parts:
                with payload.open(part) as stream:
                    stream.write(part.encode())

        return write

    made = commit.save(experiment, draft(), several("a.bin", "b/c.bin"), format_name="parts", suffix="/")
    assert [file.name for file in made.files] == [f"{made.checkpoint_id}/a.bin", f"{made.checkpoint_id}/b/c.bin"]
    assert experiment.is_complete(experiment.get(made.checkpoint_id))
    with pytest.raises(UnsupportedFormatError):
        commit.save(experiment, draft(2), several("a.bin", "../x"), format_name="parts", suffix="/")
    assert len(experiment.index.manifests()) == 1
    assert not [name for name in names(experiment) if "epoch_0002" in name and not name.endswith(".json")]


def test_saves_at_once_never_meet(store: MemoryStore) -> None:
    """Eight threads, one second, one epoch: as many checkpoints, ids and whole payloads as saves."""
    made: list[Manifest] = []
    threads = [threading.Thread(target=lambda: made.append(save(Experiment(store, "e", "e")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    experiment = Experiment(store, "e", "e")
    assert len({item.checkpoint_id for item in made}) == len(experiment.index.manifests()) == 8
    assert all(experiment.is_complete(item) for item in made)


def test_a_save_lists_once_and_no_more(store: MemoryStore) -> None:
    """Before its first: the sequence goes on from the largest there, whatever others are called."""
    save(Experiment(store, "e", "e"), 9)
    plan = FaultPlan()
    experiment = Experiment(FaultyStore(store, plan), "e", "e")
    assert [save(experiment, epoch).sequence for epoch in (1, 2, 3)] == [2, 3, 4]
    assert [call for call in plan.calls if call.startswith("list")] == ["list e"]


def test_an_idempotency_key_saves_once(store: MemoryStore) -> None:
    """One after the other, and when it was deleted meanwhile: one checkpoint, which comes back."""
    experiment = Experiment(store, "e", "e")
    first = save(experiment, idempotency_key="k")
    assert save(experiment, 2, idempotency_key="k") == first
    deletion.delete_all(experiment, [first.checkpoint_id])
    assert save(experiment, 2, idempotency_key="k").uid == first.uid
    assert [item.uid for item in experiment.index.manifests()] == [first.uid]


def test_a_damaged_checkpoint_does_not_answer_for_its_key(experiment: Experiment) -> None:
    """A retry after the payload got lost saves again."""
    first = save(experiment, idempotency_key="k")
    experiment.store.delete(experiment.key(first.payload.name))
    again = save(experiment, idempotency_key="k")
    assert again.checkpoint_id != first.checkpoint_id
    assert experiment.is_complete(again)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_serializer_that_fails_leaves_nothing(experiment: Experiment, error: BaseException) -> None:
    """Whatever it raises comes out, interrupts included; the id is not given again."""

    def fail(payload: commit.Payload) -> None:
        with payload.open() as stream:
            stream.write(DATA)
            raise error

    with pytest.raises(type(error)):
        commit.save(experiment, draft(), fail, format_name="torch", suffix=".pt")
    assert names(experiment) == [f"e/{CHECKPOINT_ID}.json"]
    assert state_of(experiment, CHECKPOINT_ID) == "gone"
    assert save(experiment).checkpoint_id == f"{CHECKPOINT_ID}_2"


def test_a_manifest_that_cannot_be_written_takes_the_payload_with_it(experiment: Experiment) -> None:
    """A fact outside UTF-8, seen only at the end, leaves nothing behind."""
    with pytest.raises(ConfigError):
        save(experiment, config={"a": "\ud800"})
    assert state_of(experiment, CHECKPOINT_ID) == "gone"
    assert len(names(experiment)) == 1


@pytest.mark.parametrize("verify", [True, False])
def test_what_was_written_wrong_is_found(store: MemoryStore, verify: bool) -> None:
    """By reading back, where that was asked for; and by digests of what was handed over, not of what was written."""
    experiment = Experiment(FaultyStore(store, FaultPlan(write_flips=[BitFlip(3, key="*.pt")])), "e", "e")
    if verify:
        with pytest.raises(CorruptCheckpointError):
            save(experiment, verify=True)
        assert state_of(experiment, CHECKPOINT_ID) == "gone"
    else:
        assert files.find_stored_damages(experiment, save(experiment).payload)


def test_a_commit_that_may_not_be_durable_is_raised_and_stays_whole(store: MemoryStore) -> None:
    """Others see it already: its files are not taken away any more."""
    plan = FaultPlan(fail_at=2, when="after", error=NotDurableError, only=frozenset({"put"}))
    with pytest.raises(NotDurableError):
        save(Experiment(FaultyStore(store, plan), "e", "e"))
    experiment = Experiment(store, "e", "e")
    assert experiment.is_complete(experiment.get(CHECKPOINT_ID))


def test_one_that_was_taken_for_dead_is_refused(experiment: Experiment, clock: Clock) -> None:
    """A save that slept for a day while a sweep went by: a typed error, and none of its files is left."""

    def slow(payload: commit.Payload) -> None:
        write(payload)
        clock.now += timedelta(days=2)
        assert sweep(experiment).claims == [CHECKPOINT_ID]
        write_again(payload)

    def write_again(payload: commit.Payload) -> None:
        payload.files.clear()
        write(payload)

    with pytest.raises(StoreError, match="took this save for dead"):
        commit.save(experiment, draft(), slow, format_name="torch", suffix=".pt")
    assert names(experiment) == []


def test_a_long_upload_renews_its_claim(experiment: Experiment, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, no sweep takes it for dead while it writes."""
    monkeypatch.setattr(claims, "_RENEW_AFTER_SECONDS", 0.0)

    def slow(payload: commit.Payload) -> None:
        clock.now += timedelta(hours=20)
        write(payload)
        clock.now += timedelta(hours=20)
        assert sweep(experiment).claims == []

    commit.save(experiment, draft(), slow, format_name="torch", suffix=".pt")
    assert state_of(experiment, CHECKPOINT_ID) == "live"


@pytest.mark.parametrize("missing", ["create_if_absent", "replace_if_version"])
def test_a_store_without_conditions_wants_a_single_writer(clock: Clock, missing: str) -> None:
    """Unless the caller gives his word, nothing is written; with it, names carry the claim."""
    store = new_store(clock, replace(ALL, delete_if_version=False, **{missing: False}))
    with pytest.raises(ConfigError, match="single_writer"):
        save(Experiment(store, "e", "e"))
    assert store.list("") == []
    alone = Experiment(store, "e", "e", single_writer=True)
    made = save(alone)
    assert made.payload.name == f"{made.checkpoint_id}.{made.claim}.pt"
    edits.edit(alone, made.checkpoint_id, lambda item: item.changed(tags=("t",)))
    save(alone, 2)
    assert [item.checkpoint_id for item in deletion.delete_all(alone, [made.checkpoint_id]).deleted]
    assert len(deletion.purge(alone, grace_seconds=0)) == 1
    assert [item.epoch for item in alone.index.manifests()] == [2]


def test_without_conditional_deletes_what_is_gone_stays(clock: Clock) -> None:
    """Its key is never removed, so no late purger removes another's."""
    store = new_store(clock, replace(ALL, delete_if_version=False))
    experiment = Experiment(store, "e", "e")
    made = save(experiment)
    save(experiment, 2)
    deletion.delete_all(experiment, [made.checkpoint_id])
    clock.now += timedelta(days=3)
    deletion.purge(experiment, grace_seconds=0)
    sweep(experiment)
    assert state_of(experiment, made.checkpoint_id) == "gone"


# Whatever goes wrong, at every step


def _life(experiment: Experiment) -> None:
    """Everything that writes, once."""
    first = save(experiment, 1, idempotency_key="k")
    save(experiment, 2)
    edits.edit(experiment, first.checkpoint_id, lambda item: item.changed(tags=("t",)))
    edits.quarantine(experiment, experiment.read(first.checkpoint_id), {"files": []})
    edits.release(experiment, experiment.read(first.checkpoint_id))
    copies.copy(experiment, first, Experiment(experiment.store, "b", "e"))
    deletion.delete_all(experiment, [first.checkpoint_id])
    deletion.undelete(experiment, first.checkpoint_id)
    deletion.delete_all(experiment, [first.checkpoint_id])
    deletion.purge(experiment, grace_seconds=0)
    sweep(experiment)


class Killed(BaseException):
    """The process ends here: nothing more reaches the store."""


def _changes() -> frozenset[str]:
    return frozenset({"put", "delete", "commit"})


def _steps(clock: Clock) -> int:
    plan, store = FaultPlan(only=_changes()), new_store(clock)
    _life(Experiment(FaultyStore(store, plan), "e", "e"))
    return len(plan.calls)


def _live_until(store: MemoryStore, step: int) -> None:
    """Do everything, and be killed before one of the steps."""
    plan = FaultPlan(only=_changes())

    def kill(_: str, key: str) -> None:
        if len(plan.calls) + 1 >= step:
            raise Killed(key)

    plan.between = kill
    with pytest.raises(Killed):
        _life(Experiment(FaultyStore(store, plan), "e", "e"))


def test_killed_at_any_step_the_next_operation_needs_no_repair(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint that is seen is whole, the same operations work again, and a sweep leaves nothing behind."""
    for step in range(1, _steps(clock) + 1):
        store = new_store(clock)
        _live_until(store, step)
        for path in ("e", "b"):
            experiment = Experiment(store, path, "e")
            assert all(experiment.is_complete(item) for item in experiment.index.manifests()), step
        with monkeypatch.context() as patch:
            patch.setattr(claims, "is_proven_dead", lambda _: True)
            after = Experiment(store, "e", "e")
            sweep(after)
            deletion.purge(after, grace_seconds=0)
            _life(after)
            _assert_nothing_is_left(store, step)


def _assert_nothing_is_left(store: MemoryStore, step: int) -> None:
    for path in ("e", "b"):
        experiment = Experiment(store, path, "e")
        sweep(experiment)
        view = experiment.index.view()
        assert {claim.state for claim in view.claims} <= {"gone"}, step
        named = {experiment.key(file.name) for item in (*view.manifests, *view.deleted) for file in item.files}
        assert {key for key in view.entries if key.endswith(".pt")} == named, step


@pytest.mark.parametrize("when", ["before", "after"])
def test_one_lost_answer_at_any_step_changes_nothing(clock: Clock, when: Any) -> None:
    """Of a conditional write: it is looked for, and repeated if it did not happen. Other errors are harmless."""
    steps = _steps(clock)
    for step in range(1, steps + 1):
        store = new_store(clock)
        plan = FaultPlan(fail_at=step, when=when, error=StoreUnavailableError, only=_changes())
        experiment = Experiment(FaultyStore(store, plan), "e", "e")
        try:
            _life(experiment)
        except StoreUnavailableError:
            is_repeated = plan.calls[step - 1].startswith("put") and not plan.calls[step - 1].endswith(".ckpt-clock")
            assert not is_repeated, plan.calls[step - 1]
        plain = Experiment(store, "e", "e")
        assert all(plain.is_complete(item) for item in plain.index.manifests()), step


# Edits, deletions, copies


def test_edits_at_once_are_all_applied(store: MemoryStore) -> None:
    """Each is tried again on what the other wrote: no edit gets lost."""
    made = save(Experiment(store, "e", "e"))

    def tag(number: int) -> None:
        experiment = Experiment(store, "e", "e")
        edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(tags=(*item.tags, f"t{number}")))

    threads = [threading.Thread(target=tag, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Experiment(store, "e", "e").get(made.checkpoint_id).tags) == 8


def test_an_edit_that_fails_changes_nothing(experiment: Experiment) -> None:
    """The old manifest stays, byte for byte; unknown fields of newer versions survive one that works."""
    made = save(experiment)
    before = read(experiment, f"{made.checkpoint_id}.json")
    with pytest.raises(ConfigError):
        edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(description="\ud800"))
    assert read(experiment, f"{made.checkpoint_id}.json") == before
    edits.edit(experiment, made.checkpoint_id, lambda item: item.model_copy(update={"from_the_future": [1]}))
    edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(pinned=True))
    assert experiment.get(made.checkpoint_id).model_extra == {"from_the_future": [1]}


def test_a_deletion_asks_first(experiment: Experiment, clock: Clock) -> None:
    """About the manifest as it is replaced: what is pinned, or was resumed from in the last hour, stays."""
    pinned, used = save(experiment), save(experiment, 2)
    edits.edit(experiment, pinned.checkpoint_id, lambda item: item.changed(pinned=True))
    edits.mark_in_use(experiment, used.checkpoint_id)
    outcome = deletion.delete_all(experiment, [pinned.checkpoint_id, used.checkpoint_id, "checkpoint_x"])
    assert {type(error) for error in outcome.refused.values()} == {ProtectedCheckpointError}
    assert len(experiment.index.manifests()) == len(outcome.refused) == 2
    clock.now += timedelta(hours=1)
    assert deletion.delete_all(experiment, [used.checkpoint_id]).deleted


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_deletion_whose_support_goes_is_undone(store: MemoryStore, moment: int) -> None:
    """Whenever another deletion takes what it relied on, before its last look, the victim is there in the end."""
    experiment = Experiment(store, "e", "e")
    victim, support = save(experiment), save(experiment, 2)
    count_of_calls = count(1)
    looks: list[str] = []

    def between(operation: str, key: str) -> None:
        looks.append(operation)
        if next(count_of_calls) == moment:
            deletion.delete_all(Experiment(store, "e", "e"), [support.checkpoint_id])
            gone_at.append(len(looks))

    gone_at: list[int] = []
    watched = Experiment(FaultyStore(store, FaultPlan(between=between)), "e", "e")
    outcome = deletion.delete_all(watched, [victim.checkpoint_id], relied_on=[support.checkpoint_id])
    assert gone_at
    assert not outcome.deleted
    assert state_of(experiment, victim.checkpoint_id) == "live"


def test_what_was_deleted_comes_back_as_it_was(experiment: Experiment, clock: Clock) -> None:
    """Within its grace period, pinned from the first moment if so wished; after it nothing does, as the error says."""
    made = save(experiment)
    save(experiment, 2)
    deletion.delete_all(experiment, [made.checkpoint_id])
    assert deletion.purge(experiment, grace_seconds=60) == []
    with pytest.raises(CheckpointNotFoundError, match="ckpt undelete"):
        experiment.get(made.checkpoint_id)
    back = deletion.undelete(experiment, made.checkpoint_id, pin=True)
    assert back.changed(pinned=False, revision=made.revision) == made
    edits.edit(experiment, made.checkpoint_id, lambda item: item.changed(pinned=False))
    deletion.delete_all(experiment, [made.checkpoint_id])
    clock.now += timedelta(seconds=60)
    assert [item.uid for item in deletion.purge(experiment, grace_seconds=60)] == [made.uid]
    with pytest.raises(CheckpointNotFoundError, match="ckpt restore"):
        deletion.undelete(experiment, made.checkpoint_id)


def test_what_lost_its_payload_is_not_brought_back(experiment: Experiment) -> None:
    """Nothing is listed that is not whole."""
    made = save(experiment)
    deletion.delete_all(experiment, [made.checkpoint_id])
    experiment.store.delete(experiment.key(made.payload.name))
    with pytest.raises(CheckpointNotFoundError):
        deletion.undelete(experiment, made.checkpoint_id)


def test_room_is_made_of_what_was_deleted_first(experiment: Experiment, clock: Clock) -> None:
    """Only as much as is needed, and the last valid checkpoint comes back instead of going."""
    made = [save(experiment, epoch) for epoch in (1, 2, 3)]
    for item in made:
        deletion.delete_all(experiment, [item.checkpoint_id])
        clock.now += timedelta(seconds=1)
    purged = deletion.purge(experiment, grace_seconds=0)
    assert [item.epoch for item in purged] == [1, 2]
    assert state_of(experiment, made[2].checkpoint_id) == "live"


def test_a_sweep_takes_leftovers_alone(experiment: Experiment, clock: Clock) -> None:
    """Not checkpoints, however old; not what people put there; not what a living process is writing."""
    made = save(experiment)
    held = claims.claim_new(experiment, CheckpointId(2, 0, MOMENT), "a" * 32, ".pt")
    x = made.checkpoint_id
    kept = ["notes.txt", f"{x}-copy.pt", f"{x}.txt", f"{x}.pt.bak", f"{x}/part", held.claim.files[0]]
    stray = [f"{x}.{'0' * 16}.pt", f"{x}.{'1' * 16}/part"]
    for name in (*kept, *stray):
        experiment.store.put(experiment.key(name), b"x")
    assert sorted(sweep(experiment).files) == stray
    assert set(kept) < {name.removeprefix("e/") for name in names(experiment)}
    clock.now += timedelta(days=1)
    assert sweep(experiment).claims == [held.checkpoint_id]
    assert state_of(experiment, made.checkpoint_id) == "live"
    assert experiment.is_complete(made)


def test_the_claim_of_a_dead_process_ends_at_once(experiment: Experiment) -> None:
    """One of this host that has ended is waited for by nobody; its files go with it."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    owner = Owner.current().model_copy(update={"pid": child})
    os.waitpid(child, 0)
    held = claims.claim_new(experiment, CheckpointId(1, 100, MOMENT), "a" * 32, ".pt")
    experiment.put_record(held.claim.changed(owner=owner), held.found.version)
    experiment.store.put(experiment.key(held.claim.files[0]), b"half")
    assert sweep(experiment).claims == [CHECKPOINT_ID]
    assert names(experiment) == [f"e/{CHECKPOINT_ID}.json"]


def test_a_quarantine_cites_what_was_read(experiment: Experiment) -> None:
    """A manifest that changed since is left alone; readers of the newest valid one pass over what is set aside."""
    first, second = save(experiment), save(experiment, 2)
    found = experiment.read(second.checkpoint_id)
    edits.edit(experiment, second.checkpoint_id, lambda item: item.changed(tags=("t",)))
    assert edits.quarantine(experiment, found, {"files": ["x"]}) is None
    deletion.delete_all(experiment, [first.checkpoint_id], relied_on=[second.checkpoint_id])
    aside = edits.quarantine(experiment, experiment.read(second.checkpoint_id), {"files": ["x"]})
    assert aside
    assert aside.quarantined
    assert aside.quarantined.report == {"files": ["x"]}
    assert [item.uid for item in experiment.index.view().valid] == [first.uid], "the last valid one came back"
    assert edits.release(experiment, experiment.read(second.checkpoint_id))
    assert len(experiment.index.view().valid) == 2


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


def test_a_claim_is_told_from_a_manifest(experiment: Experiment) -> None:
    """Nobody sees a checkpoint that is being saved."""
    held = claims.claim_new(experiment, CheckpointId(1, 100, MOMENT), "a" * 32, ".pt")
    view = experiment.index.view()
    assert view.manifests == ()
    assert [claim.uid for claim in view.claims] == ["a" * 32]
    assert isinstance(experiment.read(held.checkpoint_id).record, Claim)
    with pytest.raises(CheckpointError):
        experiment.get(held.checkpoint_id)
