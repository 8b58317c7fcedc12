"""Trainings that are killed and resumed end as if nothing had happened, bit for bit."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.folders import memory_folder
from tests.resuming.runs import Trainings
from tests.resuming.setups import SETUPS

KILLS = 3


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: what is tested does not depend on a disk."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as found:
        yield Path(found)


@pytest.fixture(scope="module")
def trainings(folder: Path) -> Iterator[Trainings]:
    found = Trainings(folder / "first")
    yield found
    found.close()


@pytest.mark.parametrize("name", SETUPS)
def test_a_killed_training_ends_like_one_that_was_not(trainings: Trainings, folder: Path, name: str) -> None:
    """Weights, optimizer, every generator, position in the data and the sequence of batches are equal at the end."""
    whole = trainings.to_the_end(name, folder / f"{name} whole")
    (folder / f"{name} killed").mkdir()
    trainings.killed(name, folder / f"{name} killed", KILLS, whole, random.Random(name))
