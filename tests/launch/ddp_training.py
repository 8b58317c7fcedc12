"""A training of two ranks, as ``torchrun`` starts it; rank zero saves every few steps, and all ranks resume."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ckpt_lib import CheckpointManager
from tests.launch.steps import SAVE_EVERY, batch, build

_signals: list[int] = []


def note(number: int, _frame: FrameType | None) -> None:
    _signals.append(number)


def is_asked_to_stop() -> bool:
    """Whether any rank is: the ranks must agree, or one would wait for the others for ever."""
    flag = torch.tensor(int(bool(_signals)))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


def main(last_step: int, seconds_per_step: float, steps: Path) -> None:
    """Train to the last step, and note each step of rank zero in a file."""
    signal.signal(signal.SIGTERM, note)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model, optimizer = build()
    manager = CheckpointManager.from_env()
    found = manager.resume(model, optimizer)
    step = found["step"] if found else 0
    wrapped: nn.Module = DistributedDataParallel(model)
    while step < last_step:
        step += 1
        inputs, targets = batch(step, rank)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(wrapped(inputs), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        time.sleep(seconds_per_step)
        if rank == 0:
            with steps.open("a") as file:
                file.write(f"{os.environ['CKPT_LAUNCH_ATTEMPT']} {step} {os.getpid()}\n")
            print(f"step {step}", flush=True)
        stops = is_asked_to_stop()
        if rank == 0 and (step % SAVE_EVERY == 0 or stops):
            manager.save_checkpoint(model=model, optimizer=optimizer, epoch=1, step=step, force=True)
        if stops:
            dist.barrier()
            sys.exit(128 + signal.SIGTERM)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
