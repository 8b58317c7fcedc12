"""Trainings that draw random numbers wherever trainings do, for tests of exact resumption.

Each is small, deterministic on a CPU, and tells at its end all that it consists of, as digests.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader, TrainingState
from ckpt_lib.state.generators import GlobalGenerators
from tests.resuming.digests import digests_of

SAMPLES, BATCH, EPOCHS = 60, 8, 3
EXPERIMENT = "run"


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
    own_order: bool = False
    """Whether the loader has a generator of its own, which decides the order."""
    stateful: bool = False
    amp: bool = False
    ema: bool = False
    distributed: bool = False
    save_every: int = 3
    """Batches from one save to the next; 0 saves at the end of each epoch alone."""
    background: bool = False
    format: str = "torch"

    @property
    def batches(self) -> int:
        """How many batches an epoch has on each rank."""
        return math.ceil(SAMPLES / (2 if self.distributed else 1) / BATCH)

    @property
    def steps(self) -> int:
        """How many batches there are in all."""
        return EPOCHS * self.batches


SETUPS = {
    "plain loop": Setup(own_order=True, save_every=0),
    "mid-epoch saves": Setup(shuffle=False),
    "shuffling, no workers": Setup(own_order=True),
    "shuffling, two workers": Setup(workers=2),
    "torchdata, two workers": Setup(workers=2, stateful=True),
    "mixed precision": Setup(amp=True),
    "averaged weights": Setup(ema=True, background=True),
    "safetensors": Setup(own_order=True, amp=True, ema=True, background=True, format="safetensors"),
    "two processes": Setup(distributed=True, workers=1, save_every=2),
}


class Watcher(Protocol):
    """Whoever wants to know where a training is."""

    def begins(self, resumed_step: int | None) -> None:
        """It goes on from a step, or begins anew."""

    def takes(self, step: int) -> None:
        """So many batches are done, and the next one comes."""


class Nobody:
    """A watcher that does nothing."""

    def begins(self, resumed_step: int | None) -> None:
        pass

    def takes(self, step: int) -> None:
        pass


def config_of(folder: Path, payload_format: str = "torch") -> CheckpointConfig:
    """Return where a training in ``folder`` keeps its checkpoints, and how."""
    return CheckpointConfig(
        checkpoint_dir=str(folder), max_checkpoints=3, backup_checkpoints=False, format=payload_format
    )


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
    order = torch.Generator().manual_seed(5) if setup.own_order else None
    return ResumableLoader(
        DataLoader(Samples(), BATCH, shuffle=shuffle, sampler=sampler, num_workers=setup.workers, generator=order)
    )


class Training:
    """The objects of one kind of training, as they are before it begins."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        rank = torch.distributed.get_rank() if setup.distributed else 0
        random.seed(rank)
        np.random.seed(rank)
        torch.manual_seed(0)
        self.model: nn.Module = model_of()
        torch.manual_seed(rank)
        if setup.distributed:
            self.model = nn.parallel.DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, EPOCHS)
        self.scaler = torch.amp.GradScaler("cpu", growth_interval=5, enabled=setup.amp)
        self.average = AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(0.9),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.loader, self.seen, self.noise = loader_of(setup), Recorder(), torch.Generator().manual_seed(rank)

    def state(self) -> TrainingState:
        return TrainingState(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            data={"batches": self.loader, "seen": self.seen},  # of each rank
            others=self._others(),
            generators={"noise": self.noise},
        )

    def _others(self) -> dict[str, Any]:
        return {
            **({"scaler": self.scaler} if self.setup.amp else {}),
            **({"average": self.average} if self.setup.ema else {}),
        }

    def take(self, batch: list[torch.Tensor]) -> None:
        self.seen.note(batch)
        values, targets = batch
        self.optimizer.zero_grad()
        with torch.autocast("cpu", enabled=self.setup.amp):
            noisy = values + 0.01 * torch.rand(values.shape, generator=self.noise)
            loss = functional.mse_loss(self.model(noisy), targets)
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.model)

    def end_epoch(self) -> None:
        with warnings.catch_warnings():  # that no optimizer has stepped: not in this process, after the first epoch
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def digests(self) -> dict[str, str]:
        if self.setup.distributed:  # before each step, ranks take over the buffers of rank 0; so they do after the last
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        loader = {} if self.setup.stateful else {"loader": self.loader}  # torchdata's prepares a loop to tell its state
        return digests_of(
            model=self.model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            seen=self.seen,
            noise=self.noise,
            **loader,
            **self._others(),
        )


def train(setup: Setup, folder: Path, watcher: Watcher | None = None) -> dict[str, str]:
    """Train to the end, from wherever an earlier run in ``folder`` came to; return digests of all there is."""
    watcher = watcher or Nobody()
    training = Training(setup)
    state = training.state()
    manager = CheckpointManager(config_of(folder, setup.format), EXPERIMENT)
    save = manager.save_checkpoint_async if setup.background else manager.save_checkpoint
    resumed = manager.resume(state)
    first, step = (0, 0) if resumed is None else (resumed["next_epoch"], resumed["step"])
    watcher.begins(None if resumed is None else step)
    for epoch in range(first, EPOCHS):
        if setup.distributed:
            training.loader.loader.sampler.set_epoch(epoch)
        for batch in training.loader:
            watcher.takes(step)
            training.take(batch)
            step += 1
            if setup.save_every and step % setup.save_every == 0:
                save(state, epoch=epoch, step=step)
        training.end_epoch()
        save(state, epoch=epoch, step=step)
    manager.close()
    return training.digests()
