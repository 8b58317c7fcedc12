"""When a command that has ended is started again, and after which wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_lib.core.wording import count_of
from ckpt_lib.launch.report import LaunchAttempt

LONGEST_DELAY_SECONDS = 300.0
_FINAL = {"done": "the command has ended", "preempted": "a command that was asked to stop is not restarted"}


@dataclass(frozen=True)
class RestartPolicy:
    """How often a command is restarted.

    ``max_fruitless_restarts`` is the stricter limit: how many restarts in a row may be made after attempts that made
    no checkpoint. What ends before its first save will do so again, while a run that gets on is worth more patience.
    The wait before a restart doubles with each fruitless attempt in a row, and is at most five minutes.
    """

    max_restarts: int = 3
    max_fruitless_restarts: int = 1
    delay_seconds: float = 10.0

    def conclusion(self, attempts: Sequence[LaunchAttempt]) -> str | None:
        """Return why there is no further attempt; ``None`` if there is one."""
        if (outcome := attempts[-1].outcome) in _FINAL:
            return _FINAL[outcome]
        if len(attempts) > self.max_restarts:
            return f"no restart is left of {self.max_restarts}"
        if (fruitless := _fruitless(attempts)) > self.max_fruitless_restarts:
            without = count_of(fruitless, "attempt")
            return f"{without} in a row made no checkpoint, so another one would most likely end like that"
        return None

    def delay(self, attempts: Sequence[LaunchAttempt]) -> float:
        """Return how many seconds to wait before the next attempt."""
        doublings = min(_fruitless(attempts), 30)
        return min(self.delay_seconds * float(2**doublings), max(LONGEST_DELAY_SECONDS, self.delay_seconds))


def _fruitless(attempts: Sequence[LaunchAttempt]) -> int:
    """Return how many attempts at the end made no checkpoint."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.checkpoint_ids:
            break
        count += 1
    return count
