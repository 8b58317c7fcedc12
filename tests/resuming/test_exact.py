"""Trainings that are killed and resumed end as if nothing had happened, bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.folders import memory_folder
from tests.resuming.runs import Trainings
from tests.resuming.setups import SETUPS

KILLS = 3
MANY_KILLS = 20


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    """In memory, where there is a folder for that: what is tested does not depend on a disk."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        found = Trainings(Path(folder))
        yield found
        found.close()


@pytest.mark.parametrize("kills", [KILLS, pytest.param(MANY_KILLS, marks=pytest.mark.servers)])
@pytest.mark.parametrize("name", SETUPS)
def test_a_killed_training_ends_like_one_that_was_not(trainings: Trainings, name: str, kills: int) -> None:
    """Weights, optimizer, every generator, position in the data and the sequence of batches are equal at the end.

    Whatever was killed after a save has gone on from there.
    """
    series = trainings.killed(name, kills, str(kills))
    assert series.wrong == []
    assert series.kills >= kills
    assert series.is_proof
