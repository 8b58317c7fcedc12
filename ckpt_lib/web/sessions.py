"""Browsers that have signed in to the page: each has a cookie, which stands for the token that it was given."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping

from fastapi import HTTPException

from ckpt_lib.web.access import ANYONE, Access
from ckpt_lib.web.tokens import Scope, Token

_KEPT = 1_000
_KEPT_EACH = 100
"""The least recently used sessions are forgotten, of one token and of all: no token ends those of all others."""


class Sessions:
    """The sessions of one server, in memory: a restart ends them. A token that is revoked ends its sessions at once."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self.needs_token = access.needs_token
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, text: str) -> str:
        """Return the id of a new session for a token. Raises HTTPException 401, or 503 as :class:`Access` does."""
        self._access.authenticate(text)
        session_id = secrets.token_urlsafe(32)
        with self._lock:
            own = [known for known, other in self._texts.items() if other == text]
            for oldest in own[: max(0, len(own) + 1 - _KEPT_EACH)]:
                del self._texts[oldest]
            self._texts[session_id] = text
            while len(self._texts) > _KEPT:
                self._texts.popitem(last=False)
        return session_id

    def end(self, session_id: str) -> None:
        """Forget a session."""
        with self._lock:
            self._texts.pop(session_id, None)

    def text_of(self, session_id: str | None) -> str | None:
        """Return the text of a session's token; ``None`` without a session."""
        with self._lock:
            return self._texts.get(session_id) if session_id else None

    def token_of(self, session_id: str | None) -> Token | None:
        """Return the token of a session; ``None`` where the server has no tokens. Raises HTTPException 401 or 503."""
        with self._lock:
            text = self._texts.get(session_id) if session_id else None
            if session_id and text:
                self._texts.move_to_end(session_id)
        return self._access.authenticate(text)

    def check(self, cookies: Mapping[str, str], host: str, scope: Scope) -> str:
        """Return the name of a browser's token for the audit log.

        Raises ``PermissionError`` if it has not signed in, or if the server or the token does not allow ``scope``.
        """
        try:
            token = self.token_of(cookies.get(cookie_name(host)))
            self._access.check_scope(scope, token)
        except HTTPException as error:
            raise PermissionError(str(error.detail)) from error
        return ANYONE if token is None else token.name


def cookie_name(host: str) -> str:
    """Return the name of the cookie at a ``Host``: browsers send cookies to every port of a machine."""
    port = host.rpartition(":")[2]
    return f"ckpt-session-{port}" if port.isdecimal() else "ckpt-session"
