"""``RateLimit``: how many requests each token may send."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

_BURST_SECONDS = 2.0
_ROUNDING = 1e-9
"""Whoever waits as long as it was told is answered."""


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimit:
    """A bucket for each name, which fills steadily and holds what two seconds fill in. For one thread."""

    def __init__(self, per_second: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def seconds_to_wait(self, name: str) -> int:
        """Count a request. Return 0 if it may be answered, or else after how many seconds the next one may be."""
        if self._per_second is None:
            return 0
        now, most = self._clock(), max(1.0, _BURST_SECONDS * self._per_second)
        bucket = self._buckets.setdefault(name, _Bucket(most, now))
        bucket.tokens = min(most, bucket.tokens + (now - bucket.filled_at) * self._per_second)
        bucket.filled_at = now
        if bucket.tokens > 1 - _ROUNDING:
            bucket.tokens -= 1
            return 0
        return math.ceil((1 - bucket.tokens) / self._per_second)
