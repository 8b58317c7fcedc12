"""A training flow that waits in the middle of an epoch, for tests that stop its process there."""

# Without `from __future__ import annotations`: Prefect sends flows to processes that do not import this module.

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from prefect import flow
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ckpt_lib import CheckpointConfig, ResumableLoader, TrainingState
from prefect_checkpoints.tasks import checkpointing
from tests.resuming.digests import digests_of

EPOCHS, BATCHES = 4, 8
SAVE_EVERY = 3
MIDDLE = 13
"""A step in the middle of the second epoch, after a save in it."""
WAITING_SECONDS = 120


@flow
def slow_training(config: CheckpointConfig, result: str, wait_at_step: int = 0) -> None:
    """Train, save every third step, and write at the end the steps of the last attempt and digests of all there is.

    In a step, it may wait for a signal.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = TensorDataset(torch.arange(3.0 * 4 * BATCHES).reshape(-1, 3) / 100)
    loader = ResumableLoader(DataLoader(data, 4, shuffle=True))
    state = TrainingState(model=model, optimizer=optimizer, data=loader)
    steps = []
    with checkpointing(config, "run", state) as run:
        for _ in run.epochs(EPOCHS):
            for (batch,) in loader:
                optimizer.zero_grad()
                torch.autograd.backward(model(batch).square().mean())
                optimizer.step()
                steps.append(run.step + 1)
                told = Path(f"{result}.waits")
                if steps[-1] == wait_at_step and not told.exists():  # once: a run that was killed there comes again
                    _wait_for_signal(told, run._safe_point.__self__)  # type: ignore[attr-defined]
                run.count_step()
                if run.step % SAVE_EVERY == 0:
                    run.save()
            run.save({"val_loss": 1.0 / run.epoch})
    digests = digests_of(model=model, optimizer=optimizer, loader=loader)
    del digests["generator of Python"]  # threads of Prefect draw from it, at a WebSocket's pings for example
    Path(result).write_text(json.dumps({"steps": steps, "digests": digests}))


def _wait_for_signal(told: Path, preemption: Any) -> None:
    """Create a file, and wait until a signal asks to stop, as a step that takes long: Prefect goes on beside it."""
    told.touch()
    deadline = time.monotonic() + WAITING_SECONDS
    while not preemption.requested and time.monotonic() < deadline:
        time.sleep(0.05)
