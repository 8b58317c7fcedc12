"""Trainings that draw random numbers wherever trainings do, for tests of exact resumption.

Each is small, deterministic on a CPU, and tells at its end all that it consists of, as digests.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.state.generators import GlobalGenerators

SAMPLES, BATCH, EPOCHS = 60, 8, 3


class Samples(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples with random noise from every generator that a dataset may use, in whichever process loads them."""

    def __init__(self, count: int = SAMPLES) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        value = torch.full((4,), index / self.count) + 0.1 * torch.rand(4)
        value = value + 0.1 * random.random() + 0.1 * float(np.random.rand())
        return value, torch.tensor([index / self.count])


class SamplesWithState(Samples):
    """The same, for a loader that asks its dataset in each worker process for a state: here that of the generators."""

    def state_dict(self) -> dict[str, Any]:
        return GlobalGenerators().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        GlobalGenerators().load_state_dict(state)


class Recorder:
    """A chain of digests of every batch that training has seen."""

    def __init__(self) -> None:
        self.digest = ""

    def note(self, batch: list[torch.Tensor]) -> None:
        content = b"".join(tensor.numpy().tobytes() for tensor in batch)
        self.digest = hashlib.sha256(self.digest.encode() + content).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {"digest": self.digest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.digest = state["digest"]


@dataclass(frozen=True)
class Setup:
    """One kind of training."""

    workers: int = 0
    shuffle: bool = True
    stateful: bool = False
    amp: bool = False
    ema: bool = False
    distributed: bool = False
    save_every: int = 3
    """Batches from one save to the next; 0 saves at the end of each epoch alone."""
    background: bool = False


SETUPS = {
    "plain loop": Setup(shuffle=False, save_every=0),
    "mid-epoch saves": Setup(shuffle=False),
    "shuffling, no workers": Setup(),
    "shuffling, two workers": Setup(workers=2),
    "torchdata, two workers": Setup(workers=2, stateful=True),
    "mixed precision": Setup(amp=True),
    "averaged weights": Setup(ema=True, background=True),
    "two processes": Setup(distributed=True),
}


def model_of() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def loader_of(setup: Setup) -> Any:
    if setup.stateful:
        from torchdata.stateful_dataloader import StatefulDataLoader

        with warnings.catch_warnings():  # it calls what newer versions of PyTorch do not want to be called
            warnings.simplefilter("ignore", UserWarning)
            return StatefulDataLoader(SamplesWithState(), BATCH, shuffle=setup.shuffle, num_workers=setup.workers)
    sampler: DistributedSampler[Any] | None = DistributedSampler(Samples(), seed=3) if setup.distributed else None
    shuffle = setup.shuffle if sampler is None else None
    return ResumableLoader(DataLoader(Samples(), BATCH, shuffle=shuffle, sampler=sampler, num_workers=setup.workers))


def train(setup: Setup, folder: Path) -> dict[str, str]:
    """Train to the end, from wherever an earlier run in ``folder`` came to; return digests of all there is."""
    rank = torch.distributed.get_rank() if setup.distributed else 0
    random.seed(rank)
    np.random.seed(rank)
    torch.manual_seed(0)
    model: nn.Module = model_of()
    torch.manual_seed(rank)
    if setup.distributed:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    scaler = torch.amp.GradScaler("cpu", enabled=setup.amp)
    average = AveragedModel(
        model,
        multi_avg_fn=get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    recorder, noise, loader = Recorder(), torch.Generator().manual_seed(rank), loader_of(setup)
    state = TrainingState(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        data={"batches": loader, "seen": recorder},  # of each rank
        others={
            **({"scaler": scaler} if setup.amp else {}),
            **({"average": average} if setup.ema else {}),
        },
        generators={"noise": noise},
    )
    config = CheckpointConfig(checkpoint_dir=str(folder), max_checkpoints=3, backup_checkpoints=False)
    manager = CheckpointManager(config, "run")
    save = manager.save_checkpoint_async if setup.background else manager.save_checkpoint
    resumed = manager.resume(state)
    first, step = (0, 0) if resumed is None else (resumed["next_epoch"], resumed["step"])
    for epoch in range(first, EPOCHS):
        if setup.distributed:
            loader.loader.sampler.set_epoch(epoch)
        for batch in loader:
            recorder.note(batch)
            values, targets = batch
            optimizer.zero_grad()
            with torch.autocast("cpu", enabled=setup.amp):
                noisy = values + 0.01 * torch.rand(values.shape, generator=noise)
                loss = functional.mse_loss(model(noisy), targets)
            torch.autograd.backward(scaler.scale(loss))
            scaler.step(optimizer)
            scaler.update()
            average.update_parameters(model)
            step += 1
            if setup.save_every and step % setup.save_every == 0:
                save(state, epoch=epoch, step=step)
        scheduler.step()
        save(state, epoch=epoch, step=step)
    manager.close()
    if setup.distributed:  # before each step, ranks take over the buffers of rank 0; so they do after the last
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    return digests_of(state)


def digests_of(state: TrainingState) -> dict[str, str]:
    """Return a digest of the state of each object, and of each generator."""
    return {part.label: hashlib.sha256(_canonical(part.item.state_dict())).hexdigest() for part in state.parts()}


def _canonical(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return repr((value.dtype, tuple(value.shape))).encode() + value.detach().contiguous().numpy().tobytes()
    if isinstance(value, Mapping):
        return b"{" + b",".join(repr(key).encode() + _canonical(item) for key, item in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return repr(value).encode()
