"""Train on several processes, stop at a signal, and go on exactly: ``torchrun --nproc-per-node 2 train.py 10``."""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ckpt_lib import CheckpointManager, ResumableLoader, TrainingState


def main(epochs: int) -> None:
    dist.init_process_group("gloo")  # "nccl" on GPUs
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(96, 4), torch.randn(96, 1))
    sampler: DistributedSampler[tuple[torch.Tensor, ...]] = DistributedSampler(dataset)
    loader = ResumableLoader(DataLoader(dataset, batch_size=8, sampler=sampler))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.Linear(16, 1)))
    optimizer = torch.optim.AdamW(model.parameters())
    torch.manual_seed(dist.get_rank())  # each rank drops other neurons
    state = TrainingState(model=model, optimizer=optimizer, data=loader)

    manager = CheckpointManager.from_env()
    resumed = manager.resume(state)
    first, step = (resumed["next_epoch"], resumed["step"]) if resumed else (1, 0)
    epoch = first
    with manager.save_on_signal(lambda: {"state": state, "epoch": epoch, "step": step}) as preemption:
        for epoch in range(first, epochs + 1):
            sampler.set_epoch(epoch)
            for inputs, targets in loader:
                loss = nn.functional.mse_loss(model(inputs), targets)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                step += 1
                preemption.safe_point()
            manager.save_checkpoint(state, epoch=epoch, step=step)
            if dist.get_rank() == 0:
                print(f"epoch {epoch}, step {step}", flush=True)
    manager.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(epochs=int(sys.argv[1]))
