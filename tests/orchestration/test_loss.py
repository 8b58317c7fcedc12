"""What the training flow takes for a loss spike."""

from __future__ import annotations

import math
import random

import pytest

from prefect_checkpoints.flows._loss import LossWatch


def noisy(count: int, seed: int = 0) -> list[float]:
    """A loss that falls from 2.5 to 0.5, with noise."""
    chance = random.Random(seed)
    return [0.5 + 2 * math.exp(-step / 200) + chance.gauss(0, 0.1) for step in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_spike(seed: int) -> None:
    """Nor is the beginning of a training."""
    watch = LossWatch()
    assert not any(watch.is_spike(loss) for loss in noisy(2_000, seed))


@pytest.mark.parametrize("spike", [math.nan, math.inf, -math.inf, 9.0, 1e9])
def test_a_spike_is_one_and_does_not_count(spike: float) -> None:
    """However often it comes: it does not raise the averages that it is compared with."""
    watch = LossWatch()
    losses = noisy(300)
    for loss in losses:
        watch.is_spike(loss)
    assert [watch.is_spike(spike) for _ in range(100)] == [True] * 100
    assert watch.end_epoch() == pytest.approx(sum(losses) / len(losses))


def test_its_state_goes_on() -> None:
    """Restored, it judges as before."""
    watch, other = LossWatch(), LossWatch()
    for loss in noisy(100):
        watch.is_spike(loss)
    other.load_state_dict(watch.state_dict())
    assert [other.is_spike(loss) for loss in (0.6, 5.0, 1.2)] == [watch.is_spike(loss) for loss in (0.6, 5.0, 1.2)]
    assert other.end_epoch() == watch.end_epoch()
