"""``Feed``: the last events of a server, which any number of clients follow.

Events are kept once for all clients, and a client is no more than a position among them: one that is too slow for what
is kept is told to read everything anew.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

_KEPT = 1_000


class FeedEvent(NamedTuple):
    """One event, with its data as JSON."""

    number: int
    kind: str
    data: str


class Feed:
    """The last events. Any thread may publish; those who follow share one event loop."""

    def __init__(self, *, kept: int = _KEPT) -> None:
        self._lock = threading.Lock()
        self._events: deque[FeedEvent] = deque(maxlen=kept)
        self._last = 0
        self._origin = secrets.token_hex(4)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._is_closed = False
        self.followers = 0
        """How many clients follow at this moment."""

    def publish(self, kind: str, data: str) -> None:
        """Add an event, and wake those who follow."""
        with self._lock:
            self._last += 1
            self._events.append(FeedEvent(self._last, kind, data))
        self._wake()

    def start_anew(self) -> None:
        """Forget all events: whoever comes back from before is told to read everything anew."""
        with self._lock:
            self._events.clear()
            self._origin = secrets.token_hex(4)

    def close(self) -> None:
        """End every ``follow``."""
        self._is_closed = True
        self._wake()

    def event_id(self, number: int) -> str:
        """Return what a client gives as ``Last-Event-ID`` to go on after the event of this number."""
        return f"{self._origin}-{number}"

    async def follow(self, last_event_id: str | None, *, idle_seconds: float) -> AsyncIterator[FeedEvent | int | None]:
        """Yield each event after ``last_event_id`` as it comes, and ``None`` whenever nothing has for a while.

        A number stands for events that are not known any more: what comes after it is complete again.
        """
        self._loop = asyncio.get_running_loop()
        self.followers += 1
        try:
            position = self._position(last_event_id)
            while not self._is_closed:
                changed = self._changed
                found = None if position is None else self._since(position)
                if found is None:
                    yield (position := self._last)
                elif found:
                    for event in found:
                        yield event
                    position = found[-1].number
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(idle_seconds):
                            await changed.wait()
                        continue
                    yield None
        finally:
            self.followers -= 1

    def _position(self, last_event_id: str | None) -> int | None:
        origin, _, number = (last_event_id or "").partition("-")
        return int(number) if origin == self._origin and number.isdecimal() and number.isascii() else None

    def _since(self, position: int) -> list[FeedEvent] | None:
        """Return the events after a position, or ``None`` if some of them are forgotten."""
        with self._lock:
            count = self._last - position
            if not 0 <= count <= len(self._events):
                return None
            return list(islice(self._events, len(self._events) - count, None))

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and nobody follows
                self._loop.call_soon_threadsafe(self._renew)

    def _renew(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
