"""A program of its own that saves a checkpoint in a flow: store, experiment and epoch are its arguments."""

from __future__ import annotations

import sys

from prefect import flow
from torch import nn

from ckpt_lib import CheckpointConfig
from prefect_checkpoints.tasks import save_checkpoint


@flow
def saving(store: str, experiment_name: str, epoch: int) -> None:
    """Save one checkpoint."""
    config = CheckpointConfig(checkpoint_dir=store, monitor_metric="accuracy", monitor_mode="max")
    print(save_checkpoint(config, experiment_name, model=nn.Linear(3, 2), epoch=epoch))


if __name__ == "__main__":
    saving(sys.argv[1], sys.argv[2], int(sys.argv[3]))
