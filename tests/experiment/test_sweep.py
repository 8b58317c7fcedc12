"""Sweeps: leftovers go, and what anybody may still need stays."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from ckpt_lib.core.names import CheckpointId
from ckpt_lib.core.owners import Owner
from ckpt_lib.errors import StorageFullError
from ckpt_lib.experiment import claims
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from tests.experiment.small import CHECKPOINT_ID, MOMENT, Clock, names, save, state_of


def test_a_sweep_takes_leftovers_alone(experiment: Experiment, clock: Clock) -> None:
    """Not checkpoints, however old; not what people put there; not what a living process is writing."""
    made = save(experiment)
    held = claims.claim_new(experiment, CheckpointId(2, 0, MOMENT), "a" * 32, ".pt")
    x = made.checkpoint_id
    kept = [
        "notes.txt",
        f"{x}-copy.pt",
        f"{x}.txt",
        f"{x}.pt.bak",
        f"{x}/part",
        f"{x}.{'1' * 16}/part",
        held.claim.files[0],
    ]
    stray = [f"{x}.{'0' * 16}.pt", f"{x}.{'1' * 16}.pt"]
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


def test_a_claim_that_this_process_gave_up_is_waited_for_by_nobody(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk it cannot even be ended: it is taken for dead at once, and no other claim of this process is."""
    ended, going_on = (
        claims.claim_new(experiment, CheckpointId(epoch, 0, MOMENT), "a" * 32, ".pt") for epoch in range(2)
    )

    def full(*_: object, **options: object) -> None:
        raise StorageFullError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "put_record", full)
        claims.give_up(ended)
    assert state_of(experiment, ended.checkpoint_id) == "saving"
    assert sweep(experiment).claims == [ended.checkpoint_id]
    assert state_of(experiment, going_on.checkpoint_id) == "saving"
