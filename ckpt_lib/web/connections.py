"""The connections of a server: how many there may be, and how long one may take to ask, and to take an answer."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ckpt_lib.core.logs import logger

MOST_CONNECTIONS = 4_000
HEAD_SECONDS = 30.0
STALLED_SECONDS = 120.0
"""A client that takes nothing for so long loses its connection, and what the server holds in memory for it."""
_FILES_KEPT_FREE = 200
"""For the store, jobs and transfers: a server without file descriptors can do nothing at all."""
_FEWEST = 10


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that closes connections of which there are too many, and those on which nothing happens.

    A connection needs no token: anyone who reaches the server could otherwise keep it from answering.
    """

    most_connections = MOST_CONNECTIONS
    _waiting_for_head: asyncio.TimerHandle | None = None
    _waiting_for_client: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop_watching()
        self._stop_waiting_for_client()

    def pause_writing(self) -> None:
        """Wait for the client to take what was sent."""
        super().pause_writing()
        if self._waiting_for_client is None:
            self._waiting_for_client = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on sending."""
        super().resume_writing()
        self._stop_waiting_for_client()

    def _stop_waiting_for_client(self) -> None:
        if self._waiting_for_client is not None:
            self._waiting_for_client.cancel()
            self._waiting_for_client = None

    def _watch_head(self) -> None:
        """Let the connection end if the head of the request that it waits for is not there in time."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._waiting_for_head is None:
            self._waiting_for_head = self.loop.call_later(HEAD_SECONDS, self._end)

    def _stop_watching(self) -> None:
        if self._waiting_for_head is not None:
            self._waiting_for_head.cancel()
            self._waiting_for_head = None

    def _end(self) -> None:
        self._waiting_for_head = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()


def protocol_for(most_files: int) -> type[BoundedProtocol]:
    """Return the protocol of a process that may open so many files."""

    class Protocol(BoundedProtocol):
        most_connections = max(_FEWEST, min(MOST_CONNECTIONS, most_files - _FILES_KEPT_FREE))

    return Protocol


def allow_many_files() -> int:
    """Raise the limit of open files as far as this process may, and return it: many systems begin with 1,024."""
    try:
        import resource
    except ImportError:  # no POSIX
        return MOST_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + 2 * _FILES_KEPT_FREE
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return wanted if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # macOS allows less than it says
        return soft
    return most


def survive(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what went wrong in the event loop. A log that cannot be written does not end the server."""
    with suppress(Exception):
        logger.error("%s", context.get("message", "the event loop"), exc_info=context.get("exception"))
