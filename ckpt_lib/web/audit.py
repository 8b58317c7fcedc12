"""One line of the log for every request that changes something: who, what, and how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

logger = logging.getLogger("ckpt_lib.audit")
_READING = {"GET", "HEAD", "OPTIONS"}


def install(app: FastAPI) -> None:
    """Log what an app is asked to change, also where it refuses."""

    @app.middleware("http")
    async def note(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        if request.method not in _READING:
            facts = {
                "who": getattr(request.state, "who", None),
                "method": request.method,
                "path": request.url.path,
                "status": response.status_code,
                "from": request.client.host if request.client else None,
            }
            logger.info(json.dumps(facts))  # JSON in ASCII: a name cannot begin a second line
        return response
