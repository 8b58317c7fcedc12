"""Deletions: what asks first, what is undone, what comes back, and what makes room."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Literal

import pytest

from ckpt_lib.errors import (
    CheckpointNotFoundError,
    ProtectedCheckpointError,
    StoreError,
    StorePermissionError,
    StoreUnavailableError,
)
from ckpt_lib.experiment import claims, deletion, edits
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store.memory import MemoryStore
from ckpt_lib.testing.faulty_store import FaultPlan, FaultyStore
from tests.experiment.small import Clock, save, state_of


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


def test_a_mark_is_taken_back_by_who_set_it(experiment: Experiment, clock: Clock) -> None:
    """A run that cannot go on takes its own mark back, and not that of a run that has resumed since."""
    saved = save(experiment).checkpoint_id
    first = edits.mark_in_use(experiment, saved)
    clock.now += timedelta(minutes=1)
    second = edits.mark_in_use(experiment, saved)
    edits.take_mark_back(experiment, first, until=None)
    assert experiment.get(saved).in_use_until == second.in_use_until
    edits.take_mark_back(experiment, second, until=first.in_use_until)
    assert experiment.get(saved).in_use_until == first.in_use_until
    edits.take_mark_back(experiment, first, until=None)
    assert deletion.delete_all(experiment, [saved]).deleted


def test_what_was_listed_may_be_old(experiment: Experiment, store: MemoryStore) -> None:
    """A pin that another process has set since the listing holds; one that it has taken off does not."""
    pinned, unpinned = save(experiment), save(experiment, 2)
    edits.edit(experiment, unpinned.checkpoint_id, lambda item: item.changed(pinned=True))
    experiment.index.view()
    other = Experiment(store, "e", "e")
    edits.edit(other, pinned.checkpoint_id, lambda item: item.changed(pinned=True))
    edits.edit(other, unpinned.checkpoint_id, lambda item: item.changed(pinned=False))
    outcome = deletion.delete_all(experiment, [pinned.checkpoint_id, unpinned.checkpoint_id])
    assert list(outcome.refused) == [pinned.checkpoint_id]
    assert [item.uid for item in outcome.deleted] == [unpinned.uid]


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("operation", ["put", "open_read"])
def test_a_manifest_out_of_reach_keeps_no_other_one_from_going(
    store: MemoryStore, operation: str, for_good: bool
) -> None:
    """It cannot be read, or not be written: it stays, the error says why, and the others go."""
    *victims, support = (save(Experiment(store, "e", "e"), epoch) for epoch in range(4))
    stuck = victims[1].checkpoint_id

    def between(called: str, key: str) -> None:
        if called == operation and key == f"e/{stuck}.json":
            raise StorePermissionError("the store refuses access", path=key)

    watched = Experiment(FaultyStore(store, FaultPlan(between=between)), "e", "e")
    outcome = deletion.delete_all(
        watched, [item.checkpoint_id for item in victims], relied_on=[support.checkpoint_id], for_good=for_good
    )
    assert [item.uid for item in outcome.deleted] == [victims[0].uid, victims[2].uid]
    assert {name: type(error) for name, error in outcome.refused.items()} == {stuck: StorePermissionError}
    assert state_of(Experiment(store, "e", "e"), stuck) == "live"


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("fail_at", range(2, 8))
def test_many_writes_that_are_cut_off_are_looked_for(
    store: MemoryStore, fail_at: int, when: Literal["before", "after"], for_good: bool
) -> None:
    """One of many writes gets no answer: those that happened are not taken for somebody else's.

    The first write asks for the time.
    """
    *victims, support = (save(Experiment(store, "e", "e"), epoch) for epoch in range(4))
    plan = FaultPlan(fail_at=fail_at, when=when, error=StoreUnavailableError, only=frozenset({"put"}))
    watched = Experiment(FaultyStore(store, plan), "e", "e")
    outcome = deletion.delete_all(
        watched, [item.checkpoint_id for item in victims], relied_on=[support.checkpoint_id], for_good=for_good
    )
    assert plan.failures == 1
    assert not outcome.refused
    assert [item.uid for item in outcome.deleted] == [item.uid for item in victims]


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


def test_a_deletion_for_good_ends_when_its_support_goes(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is gone by then is gone; the other victims stay, and the support can be brought back."""
    monkeypatch.setattr(deletion, "_AT_ONCE", 1)
    experiment = Experiment(store, "e", "e")
    first, second, support = save(experiment), save(experiment, 2), save(experiment, 3)

    def between(operation: str, key: str) -> None:
        if operation == "delete" and key.endswith(first.payload.name):
            deletion.delete_all(Experiment(store, "e", "e"), [support.checkpoint_id])

    watched = Experiment(FaultyStore(store, FaultPlan(between=between)), "e", "e")
    outcome = deletion.delete_all(
        watched,
        [first.checkpoint_id, second.checkpoint_id],
        relied_on=[support.checkpoint_id],
        for_good=True,
    )
    assert [item.uid for item in outcome.deleted] == [item.uid for item in outcome.freed] == [first.uid]
    assert list(outcome.refused) == [second.checkpoint_id]
    states = [state_of(experiment, item.checkpoint_id) for item in (first, second, support)]
    assert states == ["gone", "live", "deleted"]


def test_a_deletion_for_good_goes_on_after_what_cannot_be_removed(store: MemoryStore) -> None:
    """It is deleted, and the next purge frees it."""
    experiment = Experiment(store, "e", "e")
    stuck, other, support = save(experiment), save(experiment, 2), save(experiment, 3)

    def between(operation: str, key: str) -> None:
        if operation == "delete" and key.endswith(stuck.payload.name):
            raise StoreError("a bad sector")

    watched = Experiment(FaultyStore(store, FaultPlan(between=between)), "e", "e")
    outcome = deletion.delete_all(
        watched,
        [stuck.checkpoint_id, other.checkpoint_id],
        relied_on=[support.checkpoint_id],
        for_good=True,
    )
    assert [item.uid for item in outcome.deleted] == [stuck.uid, other.uid]
    assert [item.uid for item in outcome.freed] == [other.uid]
    assert state_of(experiment, stuck.checkpoint_id) == "purging"
    assert [item.uid for item in deletion.purge(experiment, grace_seconds=0)] == [stuck.uid]


def test_a_purge_that_someone_began_is_durable_before_its_files_go(store: MemoryStore) -> None:
    """Whoever began it may have been killed before its record was: power loss would bring it back without files."""
    experiment = Experiment(store, "e", "e")
    made, _ = save(experiment), save(experiment, 2)
    edits.rewrite(experiment, experiment.read(made.checkpoint_id), state="purging")
    done: list[str] = []
    plan = FaultPlan(between=lambda operation, key: done.append(f"{operation} {key}"))
    assert deletion.purge(Experiment(FaultyStore(store, plan), "e", "e"), grace_seconds=0)
    written, removed = f"put e/{made.checkpoint_id}.json", f"delete e/{made.payload.name}"
    assert written in done[: done.index(removed)]


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


def test_the_end_of_an_old_record_leaves_what_took_its_place(experiment: Experiment, clock: Clock) -> None:
    """Another purger went on with it, ended it, and a restore has the id by now."""
    made = save(experiment)
    clock.now += timedelta(days=2)
    purging = edits.rewrite(experiment, experiment.read(made.checkpoint_id), state="purging")
    assert purging
    assert edits.rewrite(experiment, purging, state="live")
    claims.end(experiment, purging)
    assert state_of(experiment, made.checkpoint_id) == "live"
