"""Whatever goes wrong, at every step of everything that writes: nothing needs a repair by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ckpt_lib.core.manifest import FileEntry
from ckpt_lib.errors import StoreUnavailableError
from ckpt_lib.experiment import claims, commit, copies, deletion, edits, replacement
from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.experiment.sweep import sweep
from ckpt_lib.store.memory import MemoryStore
from ckpt_lib.testing.faulty_store import FaultPlan, FaultyStore
from tests.experiment.small import Clock, new_store, save, write


def _life(experiment: Experiment) -> None:
    """Everything that writes, once."""
    first = save(experiment, 1, idempotency_key="k")
    save(experiment, 2)
    edits.edit(experiment, first.checkpoint_id, lambda item: item.changed(tags=("t",)))
    edits.quarantine(experiment, experiment.read(first.checkpoint_id), {"files": []})
    edits.release(experiment, experiment.read(first.checkpoint_id))
    copies.copy(experiment, first, Experiment(experiment.store, "b", "e"))
    source = experiment.get(first.checkpoint_id)
    replacement.replace_payload(experiment, source, ".pt", _write_again, thinned=None)
    replacement.switch_back(experiment, first.checkpoint_id, experiment.get(first.checkpoint_id).obsolete[-1])
    replacement.remove_obsolete(experiment, grace_seconds=0)
    deletion.delete_all(experiment, [first.checkpoint_id])
    deletion.undelete(experiment, first.checkpoint_id)
    deletion.delete_all(experiment, [first.checkpoint_id])
    deletion.purge(experiment, grace_seconds=0)
    sweep(experiment)


def _write_again(held: replacement.HeldNext) -> list[FileEntry]:
    payload = commit.Payload(held)
    write(payload)
    return payload.files


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
        assert all(item.next is None for item in view.manifests), step
        named = {experiment.key(name) for item in (*view.manifests, *view.deleted) for name in item.all_names}
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
