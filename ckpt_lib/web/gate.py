"""Refuses requests before their bodies are read: without a valid token, from a foreign site, or too large."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import HTTPException, status
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckpt_lib.web.access import ANYONE, Access
from ckpt_lib.web.problems import response_of_status
from ckpt_lib.web.settings import ServerSettings, is_loopback

MAX_BODY_BYTES = 2**20
READING = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """ASGI middleware around the operations of the API; ``public_path`` alone needs no token."""

    def __init__(self, app: ASGIApp, *, access: Access, settings: ServerSettings, public_path: str) -> None:
        self._app = app
        self._access = access
        self._host = settings.host
        self._public_path = public_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _as_declared(send)
        try:
            self._check(scope)
        except HTTPException as error:
            await response_of_status(error)(scope, receive, send)
            return
        await self._app(scope, _capped(receive), send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if not self._access.needs_token:
            self._check_site(scope["method"], headers)
        if scope["path"] != self._public_path:
            scheme, text = get_authorization_scheme_param(headers.get("authorization"))
            token = self._access.authenticate(text if scheme.lower() == "bearer" and text else None)
            scope.setdefault("state", {})["who"] = ANYONE if token is None else token.name
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            raise _too_large()

    def _check_site(self, method: str, headers: Headers) -> None:
        """Keep web pages out: a browser on this machine reaches a server that needs no token, for any page."""
        host = headers.get("host", "")
        name = _host_name(f"//{host}")
        if name is None or not (is_loopback(name) or name == self._host.lower()):
            raise HTTPException(status.HTTP_403_FORBIDDEN, "the Host header names another machine")
        origin = headers.get("origin")
        if method not in READING and origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise HTTPException(status.HTTP_403_FORBIDDEN, "the request comes from another site's page")


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _too_large() -> HTTPException:
    return HTTPException(status.HTTP_413_CONTENT_TOO_LARGE, f"the body is larger than {MAX_BODY_BYTES:,} bytes")


def _as_declared(send: Send) -> Send:
    """Return ``send`` with the header that keeps browsers from taking what is JSON for a page."""

    async def send_as_declared(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return send_as_declared


def _capped(receive: Receive) -> Receive:
    """Return ``receive`` with a limit, also for a body whose length no header gives."""
    received_bytes = 0

    async def receive_capped() -> Message:
        nonlocal received_bytes
        message = await receive()
        received_bytes += len(message.get("body", b""))
        if received_bytes > MAX_BODY_BYTES:
            raise _too_large()
        return message

    return receive_capped
