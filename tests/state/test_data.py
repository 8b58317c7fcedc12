"""A data loader goes on with the batch that would have come next, or says why it cannot."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader
from ckpt_lib.errors import ConfigError, StateMismatchError
from ckpt_lib.state.data import approximation_of
from ckpt_lib.state.generators import GlobalGenerators


class Noisy(Dataset[torch.Tensor]):
    """Samples of random numbers, and the index of each."""

    def __init__(self, count: int = 20) -> None:
        self.count = count
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        self.loaded.append(index)
        return torch.tensor([index, random.random(), float(np.random.rand()), float(torch.rand(()))])


class AsAsked(Dataset[torch.Tensor]):
    """Takes a batch of indices of any type."""

    def __len__(self) -> int:
        return 2_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(())

    def __getitems__(self, indices: Any) -> list[torch.Tensor]:
        return [torch.zeros(())]


class Counting(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(17))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


KINDS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(Noisy(), 3),
    "shuffled": lambda: DataLoader(Noisy(), 3, shuffle=True),
    "shuffled by a generator": lambda: DataLoader(Noisy(), 3, shuffle=True, generator=generator()),
    "the last one dropped": lambda: DataLoader(Noisy(), 3, shuffle=True, drop_last=True),
    "with replacement": lambda: DataLoader(
        Noisy(), 3, sampler=RandomSampler(Noisy(), replacement=True, num_samples=40, generator=generator())
    ),
    "weighted": lambda: DataLoader(Noisy(), 3, sampler=WeightedRandomSampler([1.0, 2.0] * 10, 20)),
    "by a sampler of batches": lambda: DataLoader(
        Noisy(), batch_sampler=BatchSampler(RandomSampler(Noisy()), 4, drop_last=False)
    ),
    "sample by sample": lambda: DataLoader(Noisy(), batch_size=None, shuffle=True),
    "one of two processes": lambda: DataLoader(
        Noisy(), 3, sampler=DistributedSampler(Noisy(), num_replicas=2, rank=1, seed=4)
    ),
}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def take(batches: Iterator[torch.Tensor], count: int) -> list[str]:
    """Take batches as a training does, which draws random numbers after each."""
    found = []
    for _ in range(count):
        batch = next(batches, None)
        if batch is None:
            break
        found.append(f"{batch.tolist()} {random.random()} {torch.rand(()).item()}")
    return found


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), epochs=st.integers(0, 2), count=st.integers(0, 8), seed=st.integers(0, 9))
def test_the_next_batches_are_those_that_would_have_come(kind: str, epochs: int, count: int, seed: int) -> None:
    """From any batch of any epoch, with every kind of sampler; random numbers of samples and of training as well."""
    seed_all(seed)
    whole = ResumableLoader(KINDS[kind]())
    for _ in range(epochs):
        list(whole)
    batches = iter(whole)
    take(batches, count)
    position, generators = whole.state_dict(), GlobalGenerators().state_dict()
    if position["is_mid_epoch"]:
        expected = [take(batches, 99), take(iter(whole), 99)]
    else:
        expected = [take(iter(whole), 99), take(iter(whole), 99)]

    seed_all(99)
    resumed = ResumableLoader(KINDS[kind]())
    resumed.load_state_dict(position)
    GlobalGenerators().load_state_dict(generators)
    assert [take(iter(resumed), 99), take(iter(resumed), 99)] == expected


@pytest.mark.parametrize("deterministic", [False, True])
def test_what_was_seen_is_not_loaded_again(deterministic: bool) -> None:
    """Without worker processes, passing over batches costs no loading."""
    whole = ResumableLoader(DataLoader(Noisy(), 2, shuffle=True))
    batches = iter(whole)
    seen = take(batches, 4)
    dataset = Noisy()
    resumed = ResumableLoader(DataLoader(dataset, 2, shuffle=True), deterministic=deterministic)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.batches_done == len(seen) == 4
    assert len(list(resumed)) == 6
    assert len(dataset.loaded) == 12


@pytest.mark.parametrize("deterministic", [False, True])
def test_worker_processes_go_on(deterministic: bool) -> None:
    """With worker processes as well: the same samples, and the same noise unless it was said that there is none."""

    def loader() -> ResumableLoader[torch.Tensor]:
        # Not forked: what other tests run in this process is not made for that.
        plain = DataLoader(Noisy(), 3, shuffle=True, num_workers=2, multiprocessing_context="forkserver")
        return ResumableLoader(plain, deterministic=deterministic)

    seed_all(3)
    whole = loader()
    batches = iter(whole)
    take(batches, 3)
    position, generators = whole.state_dict(), GlobalGenerators().state_dict()
    expected = list(batches)
    resumed = loader()
    resumed.load_state_dict(position)
    GlobalGenerators().load_state_dict(generators)
    found = list(resumed)
    columns = slice(0, 1) if deterministic else slice(None)
    assert [batch[:, columns].tolist() for batch in found] == [batch[:, columns].tolist() for batch in expected]


def test_an_iterable_dataset_is_read_again() -> None:
    """One that begins each epoch with the same samples."""
    whole = ResumableLoader(DataLoader(Counting(), 2), deterministic=True)
    batches = iter(whole)
    for _ in range(3):
        next(batches)
    resumed = ResumableLoader(DataLoader(Counting(), 2), deterministic=True)
    resumed.load_state_dict(whole.state_dict())
    assert torch.cat(list(resumed)).tolist() == list(range(6, 17))
    assert len(torch.cat(list(resumed))) == 17


def test_the_position_says_whether_an_epoch_goes_on() -> None:
    """After the last batch it still does: what follows the loop is yet to come. After the loop not.

    A loop that was left has not come to its end: someone stopped it, or an error. ``end_epoch`` says that it was meant.
    """
    loader = ResumableLoader(DataLoader(Noisy(4), 2))
    found = [loader.is_mid_epoch]
    found += [loader.is_mid_epoch for _ in loader]
    found.append(loader.is_mid_epoch)
    for _ in loader:
        break
    found.append(loader.is_mid_epoch)
    assert loader.batches_done == 1
    loader.end_epoch()
    found.append(loader.is_mid_epoch)
    assert found == [False, True, True, False, True, False]
    assert len(list(loader)) == 2
    assert len(loader) == 2


def test_after_the_last_batch_the_loop_ends_at_once() -> None:
    """A checkpoint of the last batch: the resumed loop has no batch, and what follows the loop is done."""
    whole = ResumableLoader(DataLoader(Noisy(4), 2))
    batches = iter(whole)
    take(batches, 2)
    resumed = ResumableLoader(DataLoader(Noisy(4), 2))
    resumed.load_state_dict(whole.state_dict())
    assert list(resumed) == []
    assert len(list(resumed)) == 2


def test_a_position_that_waits_is_saved_as_it_is() -> None:
    """Saved again before its first batch, as by a signal right after resuming."""
    whole = ResumableLoader(DataLoader(Noisy(), 3, shuffle=True))
    batches = iter(whole)
    take(batches, 2)
    position = whole.state_dict()
    resumed = ResumableLoader(DataLoader(Noisy(), 3, shuffle=True))
    resumed.load_state_dict(position)
    assert resumed.state_dict() == position
    assert resumed.is_mid_epoch


class Forgetful(Sampler[int]):
    """Shuffles by a generator that has no state."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        return iter(self._random.sample(range(20), 20))


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        (lambda: DataLoader(Noisy(), 3, sampler=Forgetful()), lambda: DataLoader(Noisy(), 3, sampler=Forgetful())),
        (lambda: DataLoader(Noisy(), 3), lambda: DataLoader(Noisy(), 3, sampler=range(20)[::-1])),
        (lambda: DataLoader(Noisy(20), 3), lambda: DataLoader(Noisy(20), 3, shuffle=True)),
    ],
    ids=["a hidden generator", "another order", "shuffled now"],
)
def test_another_order_is_refused(saved: Callable[[], Any], own: Callable[[], Any]) -> None:
    """Never a batch twice, or one left out, without a word."""
    whole = ResumableLoader(saved())
    batches = iter(whole)
    take(batches, 2)
    resumed = ResumableLoader(own())
    resumed.load_state_dict(whole.state_dict())
    with pytest.raises(StateMismatchError, match="does not repeat the order"):
        list(resumed)


class LargeBatches:
    """Batches of more indices than ``repr()`` shows, which differ in the middle."""

    def __init__(self, kind: Callable[[Any], Any], seed: int) -> None:
        self.kind, self.seed = kind, seed

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        middle = np.random.default_rng(self.seed).permutation(np.arange(10, 1990))
        order = np.concatenate([np.arange(10), middle, np.arange(1990, 2000)])
        return iter([self.kind(order), self.kind(order)])


@pytest.mark.parametrize(
    "kind", [np.asarray, torch.as_tensor, lambda order: [order], lambda order: {"all": order}, np.ndarray.tolist]
)
def test_every_index_counts(kind: Callable[[Any], Any]) -> None:
    """Another order in the middle of a large batch is noticed, whatever type a sampler of batches hands out."""
    whole = ResumableLoader(DataLoader(AsAsked(), batch_sampler=LargeBatches(kind, 1)))
    next(iter(whole))
    for seed in (1, 2):
        resumed = ResumableLoader(DataLoader(AsAsked(), batch_sampler=LargeBatches(kind, seed)))
        resumed.load_state_dict(whole.state_dict())
        if seed == 1:
            assert len(list(resumed)) == 1
        else:
            with pytest.raises(StateMismatchError, match="does not repeat the order"):
                list(resumed)


def test_another_length_is_refused() -> None:
    """At once, when the position is loaded."""
    whole = ResumableLoader(DataLoader(Noisy(20), 3))
    batches = iter(whole)
    take(batches, 2)
    with pytest.raises(StateMismatchError, match="another one than was saved"):
        ResumableLoader(DataLoader(Noisy(40), 3)).load_state_dict(whole.state_dict())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([1, 2], "takes a plain DataLoader"),
        (DataLoader(Counting(), 2), "iterable dataset cannot be restored exactly"),
        (ResumableLoader(DataLoader(Noisy(), 2)), "takes a plain DataLoader"),
        (DataLoader(Noisy(), 2, num_workers=1, persistent_workers=True), "persist"),
    ],
    ids=["a list", "an iterable dataset", "one that is wrapped", "workers that persist"],
)
def test_what_cannot_be_exact_is_refused(loader: Any, message: str) -> None:
    """With a sentence that says what will do."""
    with pytest.raises(ConfigError, match=message):
        ResumableLoader(loader)


class EpochCounter(Sampler[int]):
    """Shuffles by the number of the epoch, which it counts itself."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(torch.randperm(20, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Owner(Sampler[int]):
    """Shuffles by a generator of its own."""

    def __init__(self) -> None:
        self.chance = np.random.default_rng(1)

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        return iter(self.chance.permutation(20).tolist())


class Wrapping(Sampler[int]):
    """Hands out what other samplers do, one after the other."""

    def __init__(self, *inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        return itertools.chain(*self.inner)


def wrapping() -> Sampler[int]:
    """A generator that is held two levels below the sampler."""
    return Wrapping(Wrapping(RandomSampler(range(20), generator=generator())))


@pytest.mark.parametrize("sampler", [EpochCounter, Owner, wrapping])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_samplers_with_a_state_of_their_own_go_on(sampler: Callable[[], Any], count: int) -> None:
    """The number of an epoch and any generator among their attributes are found, in mid-epoch and between epochs."""
    whole = ResumableLoader(DataLoader(Noisy(), 3, sampler=sampler()))
    list(whole)
    batches = iter(whole)
    take(batches, count)
    position = whole.state_dict()
    expected = [[int(index) for batch in loop for index in batch[:, 0]] for loop in (batches, whole)]
    resumed = ResumableLoader(DataLoader(Noisy(), 3, sampler=sampler()))
    resumed.load_state_dict(position)
    loops: list[Any] = [resumed if position["is_mid_epoch"] else [], resumed]
    assert [[int(index) for batch in loop for index in batch[:, 0]] for loop in loops] == expected


def test_a_loop_inside_another_is_said_to_be_approximate() -> None:
    """The inner one has taken the position away."""
    loader = ResumableLoader(DataLoader(Noisy(), 5))
    for _ in loader:
        list(loader)
        break
    assert "while another one was not over" in loader.state_dict()["approximate"]
    list(loader)
    assert loader.state_dict()["approximate"] is None


@pytest.mark.parametrize(("saved", "own"), [(0, 1), (1, 0), (1, 2), (2, 2), (0, 0)])
@pytest.mark.parametrize("deterministic", [False, True])
def test_another_number_of_workers_is_said_to_be_approximate(saved: int, own: int, deterministic: bool) -> None:
    """Workers draw from generators of their own: only a dataset that draws none has the same batches."""
    whole, resumed = (
        ResumableLoader(DataLoader(Noisy(), 5, num_workers=count), deterministic=deterministic)
        for count in (saved, own)
    )
    reason = approximation_of(resumed, whole.state_dict())
    if saved == own or deterministic:
        assert reason is None
    else:
        assert reason is not None
        assert f"num_workers={own}, and it was {saved}" in reason


def test_a_load_that_is_undone_leaves_a_running_loop() -> None:
    """Its next batch is the next one, and so is the position that it saves."""
    loader = ResumableLoader(DataLoader(Noisy(), 5))
    batches = iter(loader)
    next(batches)
    position = loader.state_dict()
    next(batches)
    back = loader.way_back()
    loader.load_state_dict(position)
    back()
    next(batches)
    assert loader.batches_done == 3
    assert loader.state_dict()["batches_done"] == 3


def test_signals_to_the_group_leave_workers_alone(tmp_path: Path) -> None:
    """SIGTERM to all processes of a training with workers: it saves at its safe point, and all of them end."""
    code = """
import os, signal, sys, time, torch
from torch import nn
from torch.utils.data import DataLoader
from ckpt_lib import CheckpointConfig, CheckpointManager, ResumableLoader, TrainingState
loader = ResumableLoader(DataLoader(torch.arange(40.0).reshape(40, 1), 2, num_workers=2))
state = TrainingState(model=nn.Linear(1, 1), data=loader)
manager, step = CheckpointManager(CheckpointConfig(checkpoint_dir=sys.argv[1]), "run"), 0
with manager.save_on_signal(lambda: {"state": state, "epoch": 1, "step": step}) as preemption:
    for batch in loader:
        step += 1
        if step == 3:
            os.killpg(0, signal.SIGTERM)
            time.sleep(0.5)
        preemption.safe_point()
"""
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "store")], start_new_session=True)
    assert child.wait(100) == 143
    manager = CheckpointManager(CheckpointConfig(checkpoint_dir=str(tmp_path / "store")), "run")
    assert manager.get_checkpoint("latest").step == 3
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)
