"""Writes one line of the log for every request that changes something: the token's name, the request, its status."""

from __future__ import annotations

import json
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckpt_lib.web.gate import READING, is_of_page

logger = logging.getLogger("ckpt_lib.audit")
_LONGEST_PATH = 3_000
"""No path of an operation is longer; those of requests without a token could fill the disk."""


class Audit:
    """ASGI middleware that logs requests that change something, also those that are refused or fail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING or is_of_page(scope["path"]):  # it notes what it does
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        status = 500  # an error that escapes is answered outside this middleware

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        finally:
            facts = {
                "who": state.get("who"),
                "method": scope["method"],
                "path": scope["path"][:_LONGEST_PATH],
                "status": status,
                "from": scope["client"][0] if scope.get("client") else None,
            }
            logger.info(json.dumps(facts))  # JSON in ASCII: a name cannot begin a second line
