"""Refuses requests before their bodies are read: without a valid token, from a foreign site, too many, or too
large.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import HTTPException, status
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckpt_lib.errors import LimitError
from ckpt_lib.web.access import ANYONE, Access
from ckpt_lib.web.limits import RateLimit
from ckpt_lib.web.problems import Refusal, response_of_error, response_of_status
from ckpt_lib.web.settings import ServerSettings, is_loopback

MAX_BODY_BYTES = 2**20
READING = frozenset({"GET", "HEAD", "OPTIONS"})
PAGE_PATH = "/ui"
"""The page has a gate of its own, for browsers."""


class Gate:
    """ASGI middleware around the operations of the API; ``public_path`` alone needs no token.

    What is sent to an upload, below ``uploads_path``, may be of any length: the operation limits it.
    """

    def __init__(
        self, app: ASGIApp, *, access: Access, settings: ServerSettings, public_path: str, uploads_path: str
    ) -> None:
        self._app = app
        self._access = access
        self._host = settings.host
        self._public_path = public_path
        self._rate_limit = RateLimit(settings.requests_per_second)
        self._uploads_path = uploads_path

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
        except LimitError as error:
            await response_of_error(error)(scope, receive, send)
            return
        await self._app(scope, receive if self._is_upload(scope) else _capped(receive), send)

    def _is_upload(self, scope: Scope) -> bool:
        return bool(scope["method"] == "PATCH" and scope["path"].startswith(self._uploads_path))

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may see another end of the body
            title = "the request has both a Content-Length and a Transfer-Encoding"
            raise HTTPException(status.HTTP_400_BAD_REQUEST, title, {"Connection": "close"})
        if not self._access.needs_token:
            check_host(headers, self._host)
            check_origin(scope["method"], headers)
        if scope["path"] != self._public_path and not is_of_page(scope["path"]):
            scheme, text = get_authorization_scheme_param(headers.get("authorization"))
            token = self._access.authenticate(text if scheme.lower() == "bearer" and text else None)
            who = scope.setdefault("state", {})["who"] = ANYONE if token is None else token.name
            self._check_rate(who)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES and not self._is_upload(scope):
            raise _too_large()

    def _check_rate(self, who: str) -> None:
        if seconds := self._rate_limit.seconds_to_wait(who):
            raise LimitError("the token has sent too many requests", retry_seconds=seconds)


def is_of_page(path: str) -> bool:
    """Tell whether a path is the page's, or below it."""
    return path == PAGE_PATH or path.startswith(f"{PAGE_PATH}/")


def check_host(headers: Headers, own_host: str) -> None:
    """Raise HTTPException 403 if a request names another machine: a page may have pointed its own name to this one."""
    name = _host_name(f"//{headers.get('host', '')}")
    if name is None or not (is_loopback(name) or name == own_host.lower()):
        raise Refusal(
            status.HTTP_403_FORBIDDEN,
            "the Host header names another machine",
            expected="localhost, or the address that the server listens at",
            hint="With tokens, a server of the API answers to every name; this one was started with `--no-tokens`.",
        )


def check_origin(method: str, headers: Headers) -> None:
    """Raise HTTPException 403 for a change that the page of another site asks for."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if method not in READING and origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        raise Refusal(
            status.HTTP_403_FORBIDDEN,
            "the request comes from another site's page",
            expected=f"no Origin header, or http://{host}",
            hint="Send it from a program, or from a page of this server.",
        )


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
