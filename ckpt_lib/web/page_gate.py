"""The gate of the page: signs browsers in, and refuses what comes from another site or asks for something else."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, quote

from fastapi import HTTPException, status
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckpt_lib.web.gate import PAGE_PATH, READING, check_host, check_origin, is_of_page
from ckpt_lib.web.page_bodies import checked_body, read_at_most
from ckpt_lib.web.problems import response_of_status
from ckpt_lib.web.sessions import Sessions, cookie_name
from ckpt_lib.web.settings import ServerSettings

SIGN_IN = f"{PAGE_PATH}/sign-in"
SIGN_OUT = f"{PAGE_PATH}/sign-out"
_MAX_FORM_BYTES = 4_096
_NEEDED = re.compile(
    r"/?|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static|svelte)/.*"
    r"|/gradio_api/(run/predict|queue/join|queue/data|heartbeat/\w+|cancel|reset|startup-events|app_id|login_check)/?"
)
"""What the page asks for. Gradio answers more: it takes uploads, fetches addresses and hands out files."""
_DOWNLOAD = re.compile(rf"{PAGE_PATH}/(exports/[0-9a-f]{{32}}/files/.+)")
_UPLOAD = re.compile(rf"{PAGE_PATH}/(uploads(?:/[0-9a-f]{{32}})?)")
"""What the API answers for the page: a link, or a script, in a browser carries a cookie, and no token."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""The policy keeps the page from loading anything of another server."""


class PageGate:
    """ASGI middleware around the page; other paths pass."""

    def __init__(self, app: ASGIApp, *, sessions: Sessions, settings: ServerSettings, api_path: str) -> None:
        self._app = app
        self._sessions = sessions
        self._api_path = api_path
        self._host = settings.host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/favicon.ico":  # browsers ask for it, signed in or not
            await Response(_ICON, media_type="image/svg+xml")(scope, receive, send)
            return
        if scope["type"] != "http" or not is_of_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        request = Request(scope, receive)
        try:
            answer = await self._answer(request)
            passed_on = _passed_on(request) if answer is None else None
            if answer is None and passed_on is None and request.method not in READING:
                receive = await checked_body(request)
        except HTTPException as error:
            answer = response_of_status(error)
        except ClientDisconnect:
            return
        if answer is None and passed_on is not None:
            scope = self._as_api_request(scope, f"{self._api_path}/{passed_on}")
        await (answer or self._app)(scope, receive, _guarded(send))

    def _as_api_request(self, scope: Scope, path: str) -> Scope:
        """Return the request as one to the API, with the token of the browser's session."""
        request = Request(scope)
        headers = [item for item in scope["headers"] if item[0] != b"authorization"]
        if text := self._sessions.text_of(request.cookies.get(cookie_name(request.headers.get("host", "")))):
            headers.append((b"authorization", f"Bearer {text}".encode()))
        return {**scope, "path": path, "raw_path": quote(path).encode(), "headers": headers}

    async def _answer(self, request: Request) -> Response | None:
        """Return what the gate answers itself; ``None`` for what the page answers."""
        path, host = request.url.path, request.headers.get("host", "")
        check_origin(request.method, request.headers)
        if not self._sessions.needs_token:
            check_host(request.headers, self._host)
        if path == SIGN_IN and request.method == "POST":
            return self._sign_in(await _posted_token(request), request)
        if path == SIGN_OUT and request.method == "POST":
            return self._sign_out(request, host)
        is_page = path.rstrip("/") == PAGE_PATH and request.method in READING
        if is_page and (text := request.query_params.get("token")):
            return self._sign_in(text, request)
        try:
            self._sessions.token_of(request.cookies.get(cookie_name(host)))
        except HTTPException as error:
            if is_page and error.status_code == status.HTTP_401_UNAUTHORIZED:
                return _sign_in_page("")
            raise
        if _passed_on(request) is None and not _NEEDED.fullmatch(path.removeprefix(PAGE_PATH)):
            raise HTTPException(status.HTTP_404_NOT_FOUND, "the page has no such part")
        return None

    def _sign_in(self, text: str, request: Request) -> Response:
        try:
            session_id = self._sessions.start(text)
        except HTTPException as error:
            if error.status_code != status.HTTP_401_UNAUTHORIZED:
                raise
            return _sign_in_page("This token is unknown or has expired.")
        # A page that leads on, not a redirect: after a link from another site, a browser would not send the cookie.
        answer = HTMLResponse(f'<!doctype html><title>Checkpoints</title>{_LEAD_ON}<a href="{PAGE_PATH}/">Go on</a>')
        name, is_secure = cookie_name(request.headers.get("host", "")), request.url.scheme == "https"
        answer.set_cookie(name, session_id, path=PAGE_PATH, httponly=True, samesite="strict", secure=is_secure)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def _sign_out(self, request: Request, host: str) -> Response:
        self._sessions.end(request.cookies.get(cookie_name(host), ""))
        answer = RedirectResponse(f"{PAGE_PATH}/", status.HTTP_303_SEE_OTHER)
        answer.delete_cookie(cookie_name(host), path=PAGE_PATH, httponly=True, samesite="strict")
        return answer


def _passed_on(request: Request) -> str | None:
    """Return the path, below that of the API, of what the API answers; ``None`` for what the page does.

    Bodies of these are bounded there: an upload takes as much as it was begun with, and a block at a time.
    """
    path = request.scope["path"]
    found = _UPLOAD.fullmatch(path) or (request.method in READING and _DOWNLOAD.fullmatch(path))
    return found[1] if found else None


def _guarded(send: Send) -> Send:
    """Return ``send`` with the headers of the page, and without those by which Gradio lets pages of other ports of this
    machine read it.
    """

    async def send_guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers.update(_HEADERS)
        await send(message)

    return send_guarded


_ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><path d="M3 2h8l2 2v10H3z" fill="#1d4fc4"/>
<path d="M5 9l2 2 4-4" stroke="#fff" fill="none" stroke-width="1.6"/></svg>"""
_LEAD_ON = f'<meta http-equiv="refresh" content="0;url={PAGE_PATH}/">'


async def _posted_token(request: Request) -> str:
    body = await read_at_most(request, _MAX_FORM_BYTES)
    return parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()


def _sign_in_page(problem: str) -> Response:
    told = f'<p role="alert">{problem}</p>' if problem else ""
    return HTMLResponse(
        _SIGN_IN_PAGE.replace("<!--problem-->", told), status.HTTP_401_UNAUTHORIZED if problem else status.HTTP_200_OK
    )


_SIGN_IN_PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in · Checkpoints</title><link rel="icon" href="data:,"><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 24rem; margin: 15vh auto; padding: 0 1rem }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; font: inherit }}
input, button {{ padding: .6rem; margin: .4rem 0 1rem; border: 1px solid #888; border-radius: .4rem }}
button {{ background: #2456c9; border-color: #2456c9; color: #fff; cursor: pointer }}
[role=alert] {{ border-left: .25rem solid #c4314b; padding-left: .7rem }}
</style></head><body><main><h1>Checkpoints</h1><!--problem-->
<form method="post" action="{SIGN_IN}"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button></form>
<p>The program that serves this page has printed an address with a token. <code>ckpt token NAME</code> creates another
token.</p></main></body></html>
"""
