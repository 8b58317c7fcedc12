"""A training as a Prefect flow whose saves are tasks: ``python examples/prefect_flow.py 5``.

Each save is a task run that is retried when the store does not answer, and the summary is an artifact. Without a
server, Prefect starts one for the time of the run.
"""

import sys
from typing import Any

import torch
from prefect import flow
from torch import nn

from ckpt_lib import CheckpointConfig
from prefect_checkpoints.tasks import resume_training, save_checkpoint, summarize_checkpoints, validate_checkpoint

EXPERIMENT = "prefect"


@flow
def training(config: CheckpointConfig, epochs: int) -> dict[str, Any]:
    """Train a small model, and return the summary of its checkpoints."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    wanted = inputs.sum(1, keepdim=True)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    resumed = resume_training(config, EXPERIMENT, model=model, optimizer=optimizer)
    for epoch in range(resumed["next_epoch"] if resumed else 1, epochs + 1):
        loss = nn.functional.mse_loss(model(inputs), wanted)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        metrics = {"loss": loss.item()}
        save_checkpoint(config, EXPERIMENT, model=model, optimizer=optimizer, epoch=epoch, metrics=metrics)
    validate_checkpoint(config, EXPERIMENT, "latest")
    return dict(summarize_checkpoints(config, EXPERIMENT))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    summary = training(CheckpointConfig(monitor_metric="loss"), count)
    print(f"{summary['total_checkpoints']} checkpoints, the best is {summary['best_checkpoint']}")
