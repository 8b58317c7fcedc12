"""A training flow that takes its time, for tests that stop its process in the middle of an epoch."""

# Without `from __future__ import annotations`: Prefect sends flows to processes that do not import this module.

import json
import random
import time
from pathlib import Path

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


@flow
def slow_training(checkpoints: CheckpointConfig, result: str, pause_seconds: float = 0.1) -> None:
    """Train, save every third step, and write at the end the steps of the last attempt and digests of all there is."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = TensorDataset(torch.arange(3.0 * 4 * BATCHES).reshape(-1, 3) / 100)
    loader = ResumableLoader(DataLoader(data, 4, shuffle=True))
    state = TrainingState(model=model, optimizer=optimizer, data=loader)
    steps = []
    with checkpointing(checkpoints, "run", state) as run:
        for _ in run.epochs(EPOCHS):
            for (batch,) in loader:
                optimizer.zero_grad()
                torch.autograd.backward(model(batch).square().mean())
                optimizer.step()
                time.sleep(pause_seconds)
                steps.append(run.step + 1)
                run.count_step()
                if run.step % SAVE_EVERY == 0:
                    run.save()
            run.save({"val_loss": 1.0 / run.epoch})
    digests = digests_of(model=model, optimizer=optimizer, loader=loader)
    Path(result).write_text(json.dumps({"steps": steps, "digests": digests}))
