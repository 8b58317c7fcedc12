"""``Places``: how many may do something at a time, in all and with one token."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from ckpt_lib.errors import LimitError

_SECONDS_TO_WAIT = 5


class Places:
    """Hands out places. No token gets more than half of them, so that none keeps all others out."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._most_each = max(1, most // 2)
        self._what = what
        self._taken: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, who: str) -> Callable[[], None]:
        """Take a place and return what gives it back, once.

        Raises :class:`~ckpt_lib.errors.LimitError` if there is none.
        """
        with self._lock:
            if self._taken[who] >= self._most_each or self._taken.total() >= self._most:
                raise LimitError(
                    f"there are as many {self._what} as the server allows at a time",
                    expected=f"at most {self._most:,} in all, and {self._most_each:,} of one token",
                    retry_seconds=_SECONDS_TO_WAIT,
                )
            self._taken[who] += 1
        held = [who]

        def give_back() -> None:
            with self._lock:
                if held:
                    self._taken[held.pop()] -= 1
                    self._taken += Counter()  # forgets those without any

        return give_back
