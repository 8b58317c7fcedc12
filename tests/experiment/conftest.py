"""Fixtures of an experiment in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ckpt_lib.experiment.experiment import Experiment
from ckpt_lib.store.memory import MemoryStore
from tests.experiment.small import Clock, new_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[MemoryStore]:
    store = new_store(clock)
    yield store
    for entry in store.list("", recursive=True):
        store.delete(entry.key)


@pytest.fixture
def experiment(store: MemoryStore) -> Experiment:
    return Experiment(store, "e", "e")
