"""Retries and caches of tasks: what is tried again, what is remembered, and that nothing is done twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import get_run_context
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import CorruptCheckpointError, StateMismatchError, StoreUnavailableError
from ckpt_lib.saving.failover import RETRY_DELAYS_SECONDS
from ckpt_lib.store.local import LocalStore
from prefect_checkpoints import tasks
from tests.orchestration.runs import (
    EXPERIMENT,
    ByReference,
    damage,
    flip_a_byte,
    in_flow,
    payload_file,
    saved,
    task_run,
)

pytestmark = pytest.mark.usefixtures("own_results")


def test_a_retried_flow_has_one_checkpoint_per_step(config: CheckpointConfig) -> None:
    """A flow run that fails after saving and is retried saves each (epoch, step) once, and gets the first id."""
    ids = []

    @flow(retries=1)
    def training() -> None:
        torch.manual_seed(0)
        ids.append(tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1, step=10))
        if get_run_context().flow_run.run_count == 1:  # type: ignore[union-attr]
            raise RuntimeError("the machine went away")

    training()
    assert len(ids) == 2
    assert CheckpointManager(config, EXPERIMENT).checkpoint_ids() == [ids[0]] == [ids[1]]


def test_two_flow_runs_have_checkpoints_of_their_own(config: CheckpointConfig) -> None:
    """The same step of another run is another checkpoint."""

    @flow
    def training() -> str | None:
        return tasks.save_checkpoint(config, EXPERIMENT, model=ByReference(), epoch=1, step=10)

    assert training() != training()


def test_a_store_that_does_not_answer_is_tried_again(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient error that outlasts the save's own attempts is retried, and one checkpoint comes of it."""
    failures = iter([StoreUnavailableError("the store did not answer")] * (1 + len(RETRY_DELAYS_SECONDS)))
    real = LocalStore.open_write

    def flaky(self: LocalStore, key: str) -> Any:
        if key.startswith(f"{EXPERIMENT}/checkpoint") and (error := next(failures, None)):
            raise error
        return real(self, key)

    monkeypatch.setattr(LocalStore, "open_write", flaky)
    quick = tasks.save_checkpoint.with_options(retry_delay_seconds=0)

    run = task_run(in_flow(lambda: quick(config, EXPERIMENT, model=ByReference(), epoch=1, return_state=True)))
    assert run.run_count == 2
    assert len(CheckpointManager(config, EXPERIMENT).checkpoint_ids()) == 1


@pytest.mark.parametrize("damaged", [True, False])
def test_damage_and_bad_input_are_not_tried_again(config: CheckpointConfig, damaged: bool) -> None:
    """Neither corruption nor a model that does not fit is retried; the typed error reaches the caller."""
    config = config.model_copy(update={"backup_checkpoints": False})  # from a backup, damage is mended
    (checkpoint_id,) = saved(config, losses=(1.0,))
    if damaged:
        damage(config, checkpoint_id)
    model = nn.Linear(3, 2) if damaged else nn.Linear(4, 4)
    state = in_flow(lambda: tasks.load_checkpoint(config, EXPERIMENT, checkpoint_id, model=model, return_state=True))
    assert state.is_failed()
    assert task_run(state).run_count == 1
    with pytest.raises(CorruptCheckpointError if damaged else StateMismatchError):
        state.result()


def test_validation_is_remembered_until_the_file_changes(config: CheckpointConfig) -> None:
    """Another flow run gets the remembered report; a rewritten file, and a scrub, are read again."""
    (checkpoint_id,) = saved(config, losses=(1.0,))
    path = payload_file(config, checkpoint_id)

    def check(refresh: bool = False) -> State[Any]:
        validate = tasks.validate_checkpoint.with_options(refresh_cache=refresh)
        return in_flow(lambda: validate(config, EXPERIMENT, "latest", return_state=True))

    first, second = check(), check()
    assert (first.name, second.name) == ("Completed", "Cached")
    assert first.result() == second.result()
    assert first.result()
    assert check(refresh=True).name == "Completed"
    flip_a_byte(path)
    damaged = check()
    assert damaged.name == "Completed"
    assert not damaged.result()


def test_comparison_is_remembered_until_something_it_shows_changes(config: CheckpointConfig) -> None:
    """Equal comparisons come from the cache, with equal values; an edited tag makes it a new one."""
    ids = saved(config, losses=(1.0, 0.5))

    def compare() -> State[Any]:
        return in_flow(lambda: tasks.compare_checkpoints(config, EXPERIMENT, ids, tensors=True, return_state=True))

    first, second = compare(), compare()
    assert (first.name, second.name) == ("Completed", "Cached")
    assert first.result() == second.result()
    CheckpointManager(config, EXPERIMENT).edit_checkpoint(ids[0], add_tags=["new"])
    third = compare()
    assert third.name == "Completed"
    assert third.result()["tags_comparison"] == {"new": [True, False]}


def test_a_repair_that_cannot_succeed_is_not_tried_again(config: CheckpointConfig) -> None:
    """Damage in both copies fails the task at once, with the typed error."""
    (only,) = saved(config, losses=(1.0,))
    for folder in ("", "backups"):
        damage(config, only, folder)
    state = in_flow(lambda: tasks.repair_checkpoint(config, EXPERIMENT, only, return_state=True))
    assert task_run(state).run_count == 1
    with pytest.raises(CorruptCheckpointError, match="in both copies"):
        state.result()


@pytest.mark.parametrize("difference", ["weights", "metrics", "tags", "description", "run_config", "extra_state"])
def test_another_state_of_the_same_step_is_saved(config: CheckpointConfig, difference: str) -> None:
    """In one flow run, whatever differs at the same epoch and step is a save of its own; each repeat is none."""
    model = nn.Linear(2, 2)
    others: dict[str, Any] = {
        "metrics": {"val_loss": 1.0},
        "tags": ["seed-2"],
        "description": "again",
        "run_config": {"seed": 2},
        "extra_state": {"seed": 2},
    }

    @flow
    def saves() -> list[str | None]:
        ids = [tasks.save_checkpoint(config, EXPERIMENT, model=model, epoch=1) for _ in range(2)]
        changed = {difference: others[difference]} if difference in others else {}
        if not changed:
            nn.init.zeros_(model.weight)
        ids += [tasks.save_checkpoint(config, EXPERIMENT, model=model, epoch=1, **changed) for _ in range(2)]
        return ids

    first, repeated, other, other_repeated = saves()
    assert first == repeated
    assert other == other_repeated
    assert first != other
    assert len(CheckpointManager(config, EXPERIMENT).list_checkpoints()) == 2
