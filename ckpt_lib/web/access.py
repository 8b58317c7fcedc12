"""Who may do what: each operation says the scope that it needs, and one without is no operation of this server."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, HTTPException, Request, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ckpt_lib.web.settings import ServerSettings
from ckpt_lib.web.tokens import Scope, TokenFile

ANYONE = "anyone on this machine"
"""Who acts where a server has no tokens."""

bearer = HTTPBearer(auto_error=False, description="A token that `ckpt token create` has printed.")
_FAILURES_ALLOWED, _FAILURE_SECONDS = 20, 60.0


class Access:
    """Decides whether a request may do what it asks for, and who makes it."""

    def __init__(self, settings: ServerSettings) -> None:
        self._read_only = settings.read_only
        self._tokens = None if settings.tokens_path is None else TokenFile(settings.tokens_path)
        self._failures: deque[float] = deque(maxlen=_FAILURES_ALLOWED)

    def check(self, scope: Scope, text: str | None) -> str:
        """Return the name of who may do what needs ``scope``, by the text of a token; raise the answer to others."""
        if self._read_only and scope != "read":
            raise HTTPException(status.HTTP_403_FORBIDDEN, "this server only reads")
        if self._tokens is None:
            return ANYONE
        self._refuse_guessing()
        token = self._tokens.find(text) if text else None
        now = datetime.now(UTC)
        if token is None or not token.allows("read", now):
            self._failures.append(time.monotonic())
            told = "a token is needed" if text is None else "the token is unknown, or has expired"
            raise HTTPException(status.HTTP_401_UNAUTHORIZED, told, {"WWW-Authenticate": "Bearer"})
        if not token.allows(scope, now):
            raise HTTPException(status.HTTP_403_FORBIDDEN, f"the token allows to {token.scope}, not to {scope}")
        return token.name

    def _refuse_guessing(self) -> None:
        full = len(self._failures) == _FAILURES_ALLOWED
        if full and (left := self._failures[0] + _FAILURE_SECONDS - time.monotonic()) > 0:
            headers = {"Retry-After": str(int(left) + 1)}
            raise HTTPException(status.HTTP_429_TOO_MANY_REQUESTS, "too many wrong tokens", headers)


def needs(scope: Scope) -> object:
    """Return the dependency of an operation that needs ``scope``; it gives the name of who asks."""

    def check(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
        access: Access = request.app.state.access
        request.state.who = who = access.check(scope, credentials.credentials if credentials else None)
        return who

    return Depends(check)


Reader = Annotated[str, needs("read")]
Writer = Annotated[str, needs("write")]
Deleter = Annotated[str, needs("delete")]
