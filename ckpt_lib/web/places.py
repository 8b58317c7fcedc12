"""``Places``: how many may do something at a time, in all and with one token."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from fastapi import HTTPException, status

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
        """Take a place and return what gives it back, once. Raises HTTPException 503 if there is none."""
        with self._lock:
            if self._taken[who] >= self._most_each or self._taken.total() >= self._most:
                title = f"there are as many {self._what} as the server allows at a time"
                raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, title, {"Retry-After": str(_SECONDS_TO_WAIT)})
            self._taken[who] += 1
        held = [who]

        def give_back() -> None:
            with self._lock:
                if held:
                    self._taken[held.pop()] -= 1
                    self._taken += Counter()  # forgets those without any

        return give_back
