"""Checks the token of a request against the scope that its operation needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import ConfigError
from ckpt_lib.web.problems import Refusal
from ckpt_lib.web.settings import ServerSettings
from ckpt_lib.web.tokens import Scope, Token, TokenFile

ANYONE = "anyone on this machine"
"""The name in the audit log where a server has no tokens."""
RUN_TOKEN = "the token of this run"  # noqa: S105
"""The name in the audit log for the token that is only in memory."""

bearer = HTTPBearer(auto_error=False, description="A token that `ckpt token NAME` has printed.")


class Access:
    """Decides whether a request may do what it asks for."""

    def __init__(self, settings: ServerSettings) -> None:
        self._read_only = settings.read_only
        self._file = None if settings.tokens_path is None else TokenFile(settings.tokens_path)
        secret = settings.run_token
        self._of_run = None if secret is None else Token.of(secret.get_secret_value(), RUN_TOKEN, "delete")
        self.needs_token = self._file is not None or self._of_run is not None

    def authenticate(self, text: str | None) -> Token | None:
        """Return the token with this text; ``None`` where the server has no tokens.

        Raises HTTPException 401, or 503 if the token file cannot be read.
        """
        if not self.needs_token:
            return None
        token = self._find(text) if text else None
        if token is None or token.has_expired():
            raise Refusal(
                status.HTTP_401_UNAUTHORIZED,
                "the request has no token" if text is None else "the token is unknown or has expired",
                expected="the header `Authorization: Bearer TOKEN`",
                hint="`ckpt token NAME`, on the machine of the server, prints a new token.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return token

    def check_scope(self, scope: Scope, token: Token | None) -> None:
        """Raise HTTPException 403 if the server or the token does not allow ``scope``."""
        if self._read_only and scope != "read":
            raise Refusal(
                status.HTTP_403_FORBIDDEN,
                "this server is read-only",
                expected=f"what needs the scope read; this needs {scope}",
                hint="It was started with `ckpt serve --read-only`; another server of the store may allow it.",
            )
        if token is not None and not token.allows(scope):
            raise Refusal(
                status.HTTP_403_FORBIDDEN,
                f"the token allows {token.scope}, not {scope}",
                expected=f"a token with the scope {scope}",
                hint=f"`ckpt token NAME --scope {scope}`, on the machine of the server, prints one.",
            )

    def _find(self, text: str) -> Token | None:
        if self._of_run is not None and self._of_run.matches(text):
            return self._of_run
        try:
            return None if self._file is None else self._file.find(text)
        except (ConfigError, OSError) as error:
            logger.error("the token file cannot be read: %s", error)
            detail = "tokens cannot be checked; the server's log says why"
            raise Refusal(status.HTTP_503_SERVICE_UNAVAILABLE, detail) from error


def authorize(request: Request, scope: Scope, text: str | None) -> str:
    """Return the token's name, and note it for the audit log. Raises HTTPException 401, 403 or 503."""
    access: Access = request.app.state.access
    token = access.authenticate(text)
    request.state.who = ANYONE if token is None else token.name  # before the scope: a refusal is logged by name
    access.check_scope(scope, token)
    return str(request.state.who)


def needs(scope: Scope) -> object:
    """Return the dependency of an operation that needs ``scope``; its value is the token's name."""

    def check(request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
        return authorize(request, scope, credentials.credentials if credentials else None)

    return Depends(check)


Reader = Annotated[str, needs("read")]
Writer = Annotated[str, needs("write")]
Deleter = Annotated[str, needs("delete")]
