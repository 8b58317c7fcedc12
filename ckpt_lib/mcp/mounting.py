"""``mount``: the tools that only read, at ``/mcp`` of the REST API's server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from mcp.server.transport_security import TransportSecuritySettings

from ckpt_lib.mcp.server import create_server

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ckpt_lib.config import CheckpointConfig

PATH = "/mcp"


def mount(app: FastAPI, config: CheckpointConfig) -> None:
    """Serve the tools that only read at ``/mcp`` of an app, whose gate checks tokens, hosts and sizes before.

    Each request is complete by itself: nothing is remembered from one to the next.
    """
    server = create_server(config)
    tools = server.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # the gate knows the hosts
    )
    app.router.routes.extend(tools.routes)
    of_app = app.router.lifespan_context

    @asynccontextmanager
    async def with_tools(started: Any) -> AsyncIterator[Any]:
        async with of_app(started) as state, server.session_manager.run():
            yield state

    app.router.lifespan_context = with_tools
