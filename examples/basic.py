"""Save, resume and choose the best, in a plain PyTorch loop: ``python examples/basic.py 10``.

Run it again with more epochs, and it goes on where it stopped.
"""

import sys

import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager


def main(epochs: int) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    wanted = inputs.sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    manager = CheckpointManager(CheckpointConfig(monitor_metric="val_loss", max_checkpoints=3), "basic")
    resumed = manager.resume(model=model, optimizer=optimizer)
    first = resumed["next_epoch"] if resumed else 1
    for epoch in range(first, epochs + 1):
        loss = nn.functional.mse_loss(model(inputs[:200]), wanted[:200])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            val_loss = nn.functional.mse_loss(model(inputs[200:]), wanted[200:]).item()
        manager.save_checkpoint(model=model, optimizer=optimizer, epoch=epoch, metrics={"val_loss": val_loss})

    best = manager.get_checkpoint("best")
    print(
        f"trained epochs {first} to {epochs}; the best is epoch {best.epoch}: val_loss {best.metrics['val_loss']:.4f}"
    )
    manager.load_checkpoint("best", model)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
