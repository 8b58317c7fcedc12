"""``LossWatch``: the mean loss of an epoch, and whether a loss is a spike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_DECAY = 0.98
_DEVIATIONS = 6.0
_LEAST_RATIO = 2.0
_WARM_UP_STEPS = 20


class LossWatch:
    """Follows the loss of a training, step by step. Its state is saved with the training's.

    A loss is a spike if it is not finite, or if it is twice the moving average of the steps before and lies more than
    six moving standard deviations above it. The first 20 steps set the averages.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._mean = 0.0
        self._variance = 0.0
        self._epoch_total = 0.0
        self._epoch_steps = 0

    def is_spike(self, loss: float) -> bool:
        """Tell whether a loss is a spike. One that is none is noted."""
        if not math.isfinite(loss):
            return True
        limit = max(self._mean + _DEVIATIONS * math.sqrt(self._variance), _LEAST_RATIO * self._mean)
        if self._steps >= _WARM_UP_STEPS and loss > limit:
            return True
        self._note(loss)
        return False

    def _note(self, loss: float) -> None:
        weight = max(1 - _DECAY, 1 / (self._steps + 1))  # the first steps count alike
        difference = loss - self._mean
        self._mean += weight * difference
        self._variance = (1 - weight) * (self._variance + weight * difference * difference)
        self._steps += 1
        self._epoch_total += loss
        self._epoch_steps += 1

    def end_epoch(self) -> float:
        """Return the mean loss of the epoch that ends."""
        mean = self._epoch_total / max(self._epoch_steps, 1)
        self._epoch_total, self._epoch_steps = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
