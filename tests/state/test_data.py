"""A data loader goes on with the batch that would have come next, or says why it cannot."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
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

from ckpt_lib import ResumableLoader
from ckpt_lib.errors import ConfigError, StateMismatchError
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
        return ResumableLoader(DataLoader(Noisy(), 3, shuffle=True, num_workers=2), deterministic=deterministic)

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
    """Shuffles by a generator that no one else knows."""

    def __init__(self) -> None:
        self._random = random.Random()

    def __len__(self) -> int:
        return 20

    def __iter__(self) -> Iterator[int]:
        return iter(self._random.sample(range(20), 20))


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        (lambda: DataLoader(Noisy(), 3, sampler=Forgetful()), lambda: DataLoader(Noisy(), 3, sampler=Forgetful())),
        (lambda: DataLoader(Noisy(), 3), lambda: DataLoader(Noisy(), 3, sampler=range(20)[::-1])),
        (lambda: DataLoader(Noisy(20), 3), lambda: DataLoader(Noisy(21), 3, shuffle=True)),
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
    ],
    ids=["a list", "an iterable dataset", "one that is wrapped"],
)
def test_what_cannot_be_exact_is_refused(loader: Any, message: str) -> None:
    """With a sentence that says what will do."""
    with pytest.raises(ConfigError, match=message):
        ResumableLoader(loader)


def test_workers_that_persist_are_said_to_be_approximate() -> None:
    """Their generators go on from epoch to epoch, and are in no state."""
    persistent = DataLoader(Noisy(), 2, num_workers=1, persistent_workers=True)
    assert "workers that persist" in ResumableLoader(persistent).state_dict()["approximate"]
    assert ResumableLoader(persistent, deterministic=True).state_dict()["approximate"] is None
