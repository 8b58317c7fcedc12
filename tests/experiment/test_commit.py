"""The save protocol: what is acknowledged is whole, and no id is shared."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from ckpt_lib.core.manifest import Claim, Manifest
from ckpt_lib.core.names import CheckpointId
from ckpt_lib.errors import (
    CheckpointError,
    ConfigError,
    CorruptCheckpointError,
    NotDurableError,
    StorageFullError,
    StoreError,
    UnsupportedFormatError,
)
from ckpt_lib.experiment import claims, commit, deletion, edits, files
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
    assert sweep(experiment).files == []
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


def test_a_store_that_is_full_keeps_no_payload(clock: Clock) -> None:
    """Wherever the room ends, also where it is the manifest that finds none: the end of the claim needs it too.

    No record is left either: a store that is full for long would fill with them, until nothing can be deleted.
    """
    for quota_bytes in range(1, 10_000, 40):
        experiment = Experiment(FaultyStore(new_store(clock), FaultPlan(quota_bytes=quota_bytes)), "e", "e")
        try:
            save(experiment)
        except StorageFullError:
            assert not [name for name in names(experiment) if CHECKPOINT_ID in name]
        else:
            break
    assert quota_bytes > 1000
    assert experiment.is_complete(experiment.get(CHECKPOINT_ID))


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
    monkeypatch.setattr(claims, "RENEW_AFTER_SECONDS", 0.0)

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


def test_a_claim_is_told_from_a_manifest(experiment: Experiment) -> None:
    """Nobody sees a checkpoint that is being saved."""
    held = claims.claim_new(experiment, CheckpointId(1, 100, MOMENT), "a" * 32, ".pt")
    view = experiment.index.view()
    assert view.manifests == ()
    assert [claim.uid for claim in view.claims] == ["a" * 32]
    assert isinstance(experiment.read(held.checkpoint_id).record, Claim)
    with pytest.raises(CheckpointError):
        experiment.get(held.checkpoint_id)
