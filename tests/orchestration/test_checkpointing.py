"""``checkpointing``: resume, saves with task runs of their own, and an end that loses nothing, in any flow."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import Abort
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.config import OnSaveFailure
from ckpt_lib.errors import AlreadyRunningError, ConfigError, StoreError
from ckpt_lib.store.local.local_store import LocalStore
from prefect_checkpoints.tasks import checkpointing, validate_checkpoint
from tests.helpers import fingerprint
from tests.launch.running import wait_until
from tests.orchestration.runs import EXPERIMENT, read_task_run, saved_ids

pytestmark = pytest.mark.usefixtures("own_results")

EPOCHS, BATCHES = 3, 4


class Training:
    """A small training with dropout and a shuffled loader, that may fail once in the middle of an epoch."""

    def __init__(self, fail_at_step: int | None = None) -> None:
        self.fail_at_step = fail_at_step
        self.steps: list[int] = []
        self.result = ""

    def run(self, config: CheckpointConfig, **options: Any) -> None:
        torch.manual_seed(len(self.steps))  # another start than before: only a resume can bring it back
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = TensorDataset(torch.arange(24.0).reshape(8, 3))
        loader = ResumableLoader(DataLoader(data, 2, shuffle=True))
        state = TrainingState(model=model, optimizer=optimizer, data=loader)
        with checkpointing(config, EXPERIMENT, state, **options) as checkpoints:
            for _ in checkpoints.epochs(EPOCHS):
                for (batch,) in loader:
                    optimizer.zero_grad()
                    torch.autograd.backward(model(batch).square().mean())
                    optimizer.step()
                    checkpoints.count_step()
                    self.steps.append(checkpoints.step)
                    if checkpoints.step % 3 == 0:
                        checkpoints.save()
                    if checkpoints.step == self.fail_at_step:
                        self.fail_at_step = None
                        raise RuntimeError("the training fails once")
                checkpoints.save({"val_loss": 1.0 / checkpoints.epoch})
        # Not that of Python: threads of Prefect draw from it, at a WebSocket's pings for example.
        self.result = fingerprint([replace(state, rng=False).capture(), torch.get_rng_state()])


def run_flow(training: Callable[[], object], **options: Any) -> State[Any]:
    @flow(**options)
    def train() -> None:
        training()

    return train(return_state=True)


def task_runs(state: State[Any], count: int) -> list[TaskRun]:
    """The task runs of a flow run that have ended, by name, once the server has noted so many."""
    assert state.state_details.flow_run_id is not None
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        wait_until("the task runs", lambda: len(client.read_task_runs(flow_run_filter=chosen)) >= count)
        found = client.read_task_runs(flow_run_filter=chosen)
    return sorted((read_task_run(run.id) for run in found), key=lambda run: run.name)


def test_each_commit_is_a_task_run(config: CheckpointConfig) -> None:
    """Visible by epoch and step, completed, and every one of them is a checkpoint when the flow ends."""
    training = Training()
    state = run_flow(lambda: training.run(config))
    assert state.is_completed()
    manager = CheckpointManager(config, EXPERIMENT)
    expected = {f"commit {EXPERIMENT} epoch {item.epoch} step {item.step}" for item in manager.list_checkpoints()}
    runs = task_runs(state, 7)
    assert {run.name for run in runs} == expected
    assert all(run.state and run.state.is_completed() for run in runs)
    assert [item.step for item in manager.list_checkpoints()] == [3, 4, 6, 8, 9, 12, 12]


def test_a_retried_flow_goes_on_exactly(config: CheckpointConfig, tmp_path: Path) -> None:
    """From the last checkpoint, in the middle of an epoch; it ends as a flow that never failed."""
    whole = Training()
    run_flow(lambda: whole.run(CheckpointConfig(checkpoint_dir=str(tmp_path / "whole"))))
    retried = Training(fail_at_step=7)
    state = run_flow(lambda: retried.run(config), retries=1)
    assert state.is_completed()
    assert retried.steps == [*range(1, 8), *range(7, 13)]
    assert retried.result == whole.result


@pytest.mark.parametrize("start", ["fresh", "from"])
def test_another_start_is_kept_over_retries(config: CheckpointConfig, start: str) -> None:
    """A training from the beginning, or from an older checkpoint, goes on from its own saves when it is retried."""
    first = Training()
    run_flow(lambda: first.run(config))
    older = next(item for item in CheckpointManager(config, EXPERIMENT).list_checkpoints() if item.step == 6)
    again = Training(fail_at_step=10)
    chosen = start if start == "fresh" else f"from:{older.checkpoint_id}"
    state = run_flow(lambda: again.run(config, start=chosen), retries=1)
    assert state.is_completed()
    begin = 1 if start == "fresh" else 7
    assert again.steps == [*range(begin, 11), *range(10, 13)]
    manager = CheckpointManager(config, EXPERIMENT)
    runs = {item.run_id for item in manager.list_checkpoints()}
    assert len(runs) == 2
    if start == "from":
        assert again.result == first.result


def test_tasks_of_the_flow_use_the_same_manager(config: CheckpointConfig) -> None:
    """What it has verified need not be read again; afterwards nothing of it is kept."""
    found = []

    def body() -> None:
        state = TrainingState(model=nn.Linear(2, 2))
        with checkpointing(config, EXPERIMENT, state) as checkpoints:
            for _ in checkpoints.epochs(1):
                checkpoints.save().result()
                found.append(bool(validate_checkpoint(config, EXPERIMENT)))

    assert run_flow(body).is_completed()
    assert found == [True]
    from prefect_checkpoints.tasks import _options

    assert _options._kept == {}


def test_a_failed_commit_is_told(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task run fails, and so does the flow: at the next save or at its end."""

    def refuse(*_: object) -> None:
        raise StoreError("the disk is broken")

    def body() -> None:
        with checkpointing(config, EXPERIMENT, TrainingState(model=nn.Linear(2, 2))) as checkpoints:
            monkeypatch.setattr(LocalStore, "open_write", refuse)
            for _ in checkpoints.epochs(1):
                checkpoints.save()

    state = run_flow(body)
    assert state.is_failed()
    assert "the disk is broken" in str(state.message)
    (run,) = task_runs(state, 1)
    assert run.state is not None
    assert run.state.is_failed()
    assert saved_ids(config) == []


def test_a_save_waits_for_no_server(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that trains asks Prefect's server nothing, also for what became of the commits before."""
    asking: list[int] = []
    real = httpx.Client.send

    def note(client: httpx.Client, *given: Any, **options: Any) -> httpx.Response:
        asking.append(threading.get_ident())
        return real(client, *given, **options)

    def body() -> None:
        with checkpointing(config, EXPERIMENT, TrainingState(model=nn.Linear(2, 2))) as checkpoints:
            monkeypatch.setattr(httpx.Client, "send", note)
            for _ in checkpoints.epochs(3):
                asking.clear()
                handle = checkpoints.save({"val_loss": 1 / checkpoints.epoch})
                assert threading.get_ident() not in asking
                handle.result()
                wait_until("the end of the task run", checkpoints._commits[-1].wrapped_future.done)

    assert run_flow(body).is_completed()
    assert len(saved_ids(config)) == 3


@pytest.mark.parametrize(("fails", "on_failure"), [(False, "raise"), (True, "raise"), (True, "warn")])
def test_a_signal_before_a_save_saves_once(
    config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch, fails: bool, on_failure: OnSaveFailure
) -> None:
    """The save that the loop makes then is the last one; where it fails, another one is tried."""
    config = config.model_copy(update={"backup_checkpoints": False, "on_save_failure": on_failure})
    real = LocalStore.open_write

    def fail_once(store: LocalStore, *given: Any, **options: Any) -> Any:
        monkeypatch.setattr(LocalStore, "open_write", real)
        raise StoreError("the disk is broken")

    def body() -> None:
        model = nn.Linear(2, 2)
        with checkpointing(config, EXPERIMENT, TrainingState(model=model)) as checkpoints:
            for _ in checkpoints.epochs(3):
                checkpoints.count_step()
                if checkpoints.epoch == 2:
                    checkpoints.manager.flush()
                    signal.raise_signal(signal.SIGTERM)
                    if fails:
                        monkeypatch.setattr(LocalStore, "open_write", fail_once)
                checkpoints.save()

    earlier = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which Prefect sends once more at the end
    try:
        with pytest.raises(Abort, match="SIGTERM ended the training at step 2"):
            run_flow(body)
    finally:
        signal.signal(signal.SIGTERM, earlier)
    manager = CheckpointManager(config, EXPERIMENT)
    assert [(item.epoch, item.step, item.epoch_finished) for item in manager.list_checkpoints()] == [
        (1, 1, True),
        (2, 2, True),
    ]


def test_a_policy_that_says_no_makes_no_task_run(config: CheckpointConfig) -> None:
    """Calling ``save`` often is cheap."""

    def body() -> None:
        state = TrainingState(model=nn.Linear(2, 2))
        with checkpointing(config.model_copy(update={"save_interval": 5}), EXPERIMENT, state) as checkpoints:
            for _ in checkpoints.epochs(6):
                checkpoints.save()

    state = run_flow(body)
    assert [run.name for run in task_runs(state, 1)] == [f"commit {EXPERIMENT} epoch 5 step 0"]


@pytest.mark.parametrize("start", ["again", "from"])
def test_an_unknown_start_is_refused(config: CheckpointConfig, start: str) -> None:
    """Before training begins."""

    def body() -> None:
        with checkpointing(config, EXPERIMENT, TrainingState(model=nn.Linear(2, 2)), start=start):
            raise AssertionError

    with pytest.raises(ConfigError, match="start is unknown"):
        run_flow(body).result()


def test_a_configuration_that_saves_the_best_is_taken(config: CheckpointConfig) -> None:
    """Which metrics will come is not known when the training begins."""

    def body() -> None:
        options = config.model_copy(update={"save_best_only": True})
        with checkpointing(options, EXPERIMENT, TrainingState(model=nn.Linear(2, 2))) as run:
            for epoch in run.epochs(2):
                run.save({"val_loss": 1 / epoch})

    assert run_flow(body).is_completed()
    assert len(saved_ids(config)) == 2


def test_a_second_training_of_the_same_run_is_refused(
    config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a flow run that is run again while the process of its dead worker goes on."""
    monkeypatch.setattr("ckpt_lib.launch.locking.SECONDS_TO_WAIT", 0.1)

    def body() -> None:
        state = TrainingState(model=nn.Linear(2, 2))
        with checkpointing(config, EXPERIMENT, state), checkpointing(config, EXPERIMENT, state):
            raise AssertionError

    with pytest.raises(AlreadyRunningError):
        run_flow(body).result()


def test_outside_of_a_flow_it_is_refused(config: CheckpointConfig) -> None:
    """With a hint at what works there."""
    with (
        pytest.raises(ConfigError, match="for flows"),
        checkpointing(config, EXPERIMENT, TrainingState(model=nn.Linear(2, 2))),
    ):
        raise AssertionError
