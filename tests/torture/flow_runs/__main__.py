"""Flow runs that are killed: ``python -m tests.torture.flow_runs COUNT SEED STORE``, where a server is to be found."""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import torch
from prefect import Flow, flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from ckpt_lib import CheckpointConfig, CheckpointManager
from prefect_checkpoints.flows import TrainingParameters, train
from prefect_checkpoints.tasks import save_checkpoint
from tests.torture.concurrency import leftovers, manager_at
from tests.torture.processes import Child
from tests.torture.rows import Outcome

EPOCHS = 20
TRAINING = TrainingParameters(epochs=EPOCHS, batch_size=512, channels=2)
FLOW_RUN_SECONDS = 90.0
IMPORTED_LATE = (
    *("sklearn.datasets", "torch._dynamo", "prefect.task_engine", "graphviz"),
    *(
        "ckpt_lib.analysis.statistics",
        "ckpt_lib.analysis.compare",
        "ckpt_lib.analysis.plots",
        "ckpt_lib.formats.torch.format",
    ),
)
"""What a run would import for itself, anew in each fork."""


@flow
def retrain(config: CheckpointConfig, experiment_name: str, training: TrainingParameters) -> None:
    """Train without resuming: begun again, it saves again what it has saved before."""
    torch.manual_seed(training.seed)
    model = torch.nn.Linear(2, 1)
    for epoch in range(1, training.epochs + 1):
        torch.nn.init.constant_(model.weight, epoch)
        save_checkpoint(config, experiment_name, model=model, epoch=epoch, step=10 * epoch)


FLOWS: tuple[Flow[Any, Any], ...] = (train, retrain)


@dataclass(frozen=True)
class FlowRun:
    """One flow run on the server, whose process may be begun again and again."""

    kind: Flow[Any, Any]
    id: UUID
    parameters: dict[str, Any]

    def process(self) -> Child:
        return Child(self._execute, timeout_seconds=FLOW_RUN_SECONDS)

    def _execute(self) -> None:
        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(self.id)
        run_flow(self.kind, flow_run=flow_run, parameters=self.parameters)

    def run_to_its_end(self) -> None:
        with self.process() as child:
            child.result()


def _kill_flow_runs(count: int, seed: str, store: Path) -> Outcome:
    outcome = Outcome()
    torch.set_num_threads(1)
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    weights: dict[str, dict[str, torch.Tensor]] = {}
    number = 0
    while outcome.injected < count:
        kind = FLOWS[number % len(FLOWS)]
        manager = manager_at(store, f"{kind.name}{number}", max_checkpoints=10 * EPOCHS)
        flow_run = _begin(kind, manager)
        kills = 0
        if kind.name in weights:  # the first of each kind is not interrupted: it says where the others must arrive
            chance = random.Random(f"{seed} {number}")
            kills = _kill_until_ended(chance, manager, flow_run, count - outcome.injected)
        flow_run.run_to_its_end()
        expected = weights.setdefault(kind.name, _weights(manager))
        wrong = [*_check(manager), *_check_weights(manager, expected)]
        outcome.violations += [f"seed {seed}, {manager.experiment_name}, {kills} kills: {line}" for line in wrong]
        outcome.injected += kills
        number += 1
    outcome.detail = f"{number} flow runs"
    return outcome


def _begin(kind: Flow[Any, Any], manager: CheckpointManager) -> FlowRun:
    parameters = {"experiment_name": manager.experiment_name, "config": manager.config, "training": TRAINING}
    with Child(_create_flow_run, kind, parameters) as child:
        return FlowRun(kind, child.result(), parameters)


def _create_flow_run(kind: Flow[Any, Any], parameters: dict[str, Any]) -> UUID:
    with get_client(sync_client=True) as client:
        return client.create_flow_run(kind, parameters=kind.serialize_parameters(parameters)).id


def _kill_until_ended(chance: random.Random, manager: CheckpointManager, flow_run: FlowRun, limit: int) -> int:
    """Kill the flow run at random moments, until one comes after its end; the number of kills."""
    for kills in range(limit):
        with flow_run.process() as child:
            saved = len(manager.checkpoint_ids())
            if chance.random() < 0.8:  # else it may not even have begun
                while child.is_alive and len(manager.checkpoint_ids()) == saved < EPOCHS:
                    time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.4))
            if not child.is_alive:
                child.result()
                return kills
            child.kill()
    return limit


def _check(manager: CheckpointManager) -> Iterator[str]:
    found = manager.list_checkpoints()
    steps = Counter((item.epoch, item.step) for item in found)
    if max(steps.values()) > 1:
        yield f"not one checkpoint for each step: {steps}"
    if [item.epoch for item in found] != list(range(1, EPOCHS + 1)):
        yield f"the epochs are {[item.epoch for item in found]}"
    yield from (str(report) for report in manager.validate_all() if not report)
    manager.cleanup_checkpoints()
    folder = Path(manager.config.checkpoint_dir) / manager.experiment_name
    yield from (f"{left} was left behind" for left in leftovers(folder))


def _weights(manager: CheckpointManager) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = manager.load_checkpoint()["model_state_dict"]
    return loaded


def _check_weights(manager: CheckpointManager, expected: dict[str, torch.Tensor]) -> Iterator[str]:
    for name, tensor in _weights(manager).items():
        if not torch.equal(tensor, expected[name]):
            yield f"{name} is not what it is after a run without interruption"


if __name__ == "__main__":
    print(json.dumps(asdict(_kill_flow_runs(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))))
