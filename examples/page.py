"""A training that the page sees and can ask to save: ``python examples/page.py 600``, and then ``ckpt ui --open``.

It trains for so many seconds. Beside it, the page's "Live runs" show it, and its buttons save and load here.
"""

import sys
import time
from typing import Any

import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager


def main(seconds: float) -> None:
    model = nn.Linear(64, 8)
    manager = CheckpointManager(CheckpointConfig(monitor_metric="loss", save_interval=10, max_checkpoints=20), "live")
    epoch = 0
    until = time.monotonic() + seconds

    def state() -> dict[str, Any]:
        return {"model": model, "epoch": epoch, "metrics": {"loss": 1 / (epoch + 1)}}

    with manager.share(state=state, load=lambda checkpoint_id: manager.load_checkpoint(checkpoint_id, model)):
        while time.monotonic() < until:
            with torch.no_grad():
                model.weight += 0.01 * torch.randn_like(model.weight)  # in place of a step of a real training
            manager.save_checkpoint(**state())
            manager.serve_requests()
            epoch += 1
            time.sleep(0.2)
    print(f"trained {epoch} epochs, saved {len(manager.checkpoint_ids())} checkpoints")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 600)
