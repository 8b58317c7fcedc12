"""Runs the server until it is interrupted."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Callable
from contextlib import closing

import uvicorn
from fastapi import FastAPI

from ckpt_lib.errors import ConfigError
from ckpt_lib.web.app import create_app
from ckpt_lib.web.connections import allow_many_files, protocol_for, survive
from ckpt_lib.web.jobs import Jobs
from ckpt_lib.web.settings import ServerSettings

_SECONDS_TO_END = 10
"""A client that takes or sends nothing must not keep the server from ending; what it has sent is kept."""

_SECONDS_IDLE = 75
"""Longer than clients keep an idle connection, as httpx does for 5 s: a request on one that is being closed fails."""


def run(
    settings: ServerSettings,
    *,
    announce: Callable[[str], object],
    create: Callable[[ServerSettings], FastAPI] = create_app,
) -> None:
    """Serve until SIGINT or SIGTERM; ``announce`` gets the address of the server once the port is open.

    ``create`` makes the app: the API alone or, by :func:`ckpt_lib.page.create_app`, with the page.

    Raises :class:`~ckpt_lib.errors.ConfigError` for an address that cannot be listened at, and
    :class:`~ckpt_lib.errors.AlreadyRunningError` if another server uses the ``jobs_folder``.
    """
    app = create(settings)
    jobs: Jobs = app.state.jobs
    with _listener(settings) as listener, closing(jobs):
        jobs.open()  # before the address is announced
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        announce(f"http://{host}:{listener.getsockname()[1]}")
        gc.freeze()  # what is there now stays: to look through it for garbage would hold up answers
        ApiServer(app).run(sockets=[listener])


class ApiServer(uvicorn.Server):
    """A server that ends streams without an end of their own before it waits, not for ever, for other requests."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            http=protocol_for(allow_many_files()),
            ws="none",
            log_level="warning",
            timeout_graceful_shutdown=_SECONDS_TO_END,
            timeout_keep_alive=_SECONDS_IDLE,
        )
        super().__init__(config)
        self._end_streams: list[Callable[[], None]] = app.state.end_streams

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(survive)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for end in self._end_streams:
            end()
        await super().shutdown(sockets)


def _listener(settings: ServerSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        made = socket.create_server((settings.host, settings.port), family=family)
        # Unless a socket says that it is of TCP, asyncio lets the system hold back the end of each answer for 40 ms.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())
    except OSError as error:
        raise ConfigError(
            f"the server cannot listen at {settings.host}, port {settings.port}: {error.strerror or error}",
            hint="--port 0 chooses a free port.",
        ) from error
